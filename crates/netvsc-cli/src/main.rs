//! The program `netvsc`.
fn main() {}
