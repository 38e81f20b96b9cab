//! sluice-processor
fn main() {}
