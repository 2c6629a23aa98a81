//! The flm command.
fn main() {}
