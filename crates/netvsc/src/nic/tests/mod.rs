//! The NIC against a host that follows a script, over two real rings.

mod alive;
mod data;
mod faults;
mod host;
mod pages;
mod path;
mod restart;
mod start;
mod statuses;
mod stop;
mod wakeups;
