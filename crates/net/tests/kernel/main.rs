//! A network with a real kernel in front of it, and real servers behind it.

#![expect(clippy::unwrap_used, reason = "tests")]

mod ends;
mod gateway;
mod limits;
mod policy;
mod support;
mod tcp;
mod udp;
