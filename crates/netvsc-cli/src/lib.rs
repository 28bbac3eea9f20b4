//! The program `netvsc`, as a library.
