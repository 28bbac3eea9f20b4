//! The service against a scripted guest on a bare channel.

mod data;
mod guest;
mod hostile;
mod offloads;
mod queues;
mod sending;
mod startup;
mod switching;
mod versions;
