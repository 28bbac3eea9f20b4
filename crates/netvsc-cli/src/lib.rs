//! The program `netvsc`, as a library.

pub mod args;
pub mod capture;
pub mod embedded;
pub mod error;
pub mod event;
pub mod guest;
pub mod inspect;
pub mod install;
pub mod manual;
pub mod report;
pub mod run;
pub mod scenario;
pub mod sim;
pub mod transfer;
pub mod udev;
pub mod units;
