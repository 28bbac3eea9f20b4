//! The service against a scripted guest on a bare channel.

mod data;
mod guest;
mod hostile;
mod queues;
mod startup;
mod switching;
mod versions;
