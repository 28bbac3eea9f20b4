//! The guest's NIC and the host's NIC service against each other, each woken only by the other's doorbell.

mod any_traffic;
mod life;
mod misbehaviour;
mod no_allocation;
mod offloads;
mod order;
mod pages;
mod queued;
mod queues;
mod stack;
mod world;
