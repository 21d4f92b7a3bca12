//! What a VM boots from: the guest, the initramfs, and root file systems made from OCI images.

pub mod archive;
pub mod cache;
pub mod config;
pub mod credentials;
pub mod digest;
pub mod erofs;
#[cfg(test)]
mod handmade;
pub mod images;
pub mod initramfs;
mod layer;
mod limits;
pub mod load;
pub mod login;
mod manifest;
pub mod progress;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod save;
mod tree;
mod writeback;

pub use cache::{CacheOptions, ImageInfo};
pub use config::ImageConfig;
pub use digest::Digest;
pub use images::{Image, Images, ImagesOptions};
pub use layer::LayerError;
pub use layer::entries::ArchiveError;
pub use limits::Limits;
pub use manifest::ManifestError;
pub use progress::PullEvent;
pub use reference::Reference;
pub use registry::RegistryOptions;
pub use tree::MergeError;

/// The guest: a static executable for the architecture that this was built for.
pub const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bouvet-guest"));
