//! Linux as a Hyper-V guest.
