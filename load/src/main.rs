//! sluice-load
fn main() {}
