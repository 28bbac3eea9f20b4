//! The NIC against a host that follows a script, over two real rings.

mod host;
mod start;
