//! What a VM boots from.

pub mod initramfs;

/// The guest: a static executable for the architecture that this was built for.
pub const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bouvet-guest"));
