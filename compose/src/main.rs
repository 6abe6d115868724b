//! The all-in-one.
fn main() {}
