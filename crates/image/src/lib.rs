//! What a VM boots from: the guest, the initramfs, and root file systems made from OCI images.

pub mod digest;
pub mod erofs;
#[cfg(test)]
mod handmade;
pub mod initramfs;
mod layer;
mod limits;
pub mod reference;
mod tree;

pub use digest::Digest;
pub use limits::Limits;
pub use reference::Reference;

/// The guest: a static executable for the architecture that this was built for.
pub const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bouvet-guest"));
