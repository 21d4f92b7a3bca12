//! The contract between the host and the guest of one sandbox.
//!
//! Two layers share one byte stream (a virtio-serial port or a vsock connection):
//!
//! 1. [`frame`]: a preamble that (re)starts the link and an eight-byte header before each run of bytes,
//!    so that a guest that wakes from a snapshot in the middle of a connection finds its way to a new one.
//! 2. gRPC over HTTP/2 inside those frames: the service in [`v1`], generated from `proto/`.
//!
//! This crate opens nothing and does no I/O. Both ends depend on it and on nothing of each other.

pub mod disk;
pub mod frame;
pub mod limits;
pub mod mime;
pub mod owner;
pub mod volume;

/// The generation of this contract. Host and guest of one sandbox are always built together, so unequal
/// generations mean a stale template or initramfs, and the link is refused.
pub const GENERATION: u32 = 8;

/// Name of the virtio-serial port that carries the link.
pub const LINK_PORT: &str = "bouvet.link";

/// The vsock port on which a guest waits for its host, in a VM that has vsock instead.
pub const LINK_VSOCK_PORT: u32 = 1024;

/// Messages and service.
#[expect(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated; documented in the .proto"
)]
pub mod v1 {
    tonic::include_proto!("bouvet.guest.v1");
}
