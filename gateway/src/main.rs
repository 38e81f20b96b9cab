//! sluice-gateway
fn main() {}
