//! What a pull says while it goes on.

use crate::digest::Digest;

/// A step of a pull. Of each kind with numbers the last has `done_bytes` equal to `total_bytes`.
///
/// ```no_run
/// use bouvet_image::PullEvent;
///
/// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
/// let progress = |event| match event {
///     PullEvent::Asking { registry } => println!("asking {registry}"),
///     PullEvent::Resolved { id, layers } => println!("{id} of {} layers", layers.len()),
///     PullEvent::Layer { done_bytes, total_bytes, .. } => println!("{done_bytes}/{total_bytes}"),
///     PullEvent::Waiting => println!("somebody else pulls it"),
///     PullEvent::Converting { done_bytes, total_bytes } => println!("{done_bytes}/{total_bytes}"),
/// };
/// images.pull(&"nginx:alpine".parse()?, progress).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullEvent {
    /// A registry is asked which image the reference means now.
    Asking {
        /// Its name.
        registry: String,
    },
    /// Which image the reference means now.
    Resolved {
        /// The image.
        id: Digest,
        /// Digests of its layers, and their bytes as they are transferred.
        layers: Vec<(Digest, u64)>,
    },
    /// Somebody else pulls the same image or one of its layers, here or in another process; we wait for that.
    Waiting,
    /// A layer is transferred. One that was there already, or is on this machine, is done at once.
    Layer {
        /// Which.
        digest: Digest,
        /// Bytes that were transferred.
        done_bytes: u64,
        /// All its bytes.
        total_bytes: u64,
    },
    /// The root file system is written.
    Converting {
        /// Bytes that were written.
        done_bytes: u64,
        /// All its bytes.
        total_bytes: u64,
    },
}
