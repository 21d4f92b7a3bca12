//! Limits that both ends of the link rely on. Limits of one end alone live with that end.

/// A frame with its header: what one write to the link may carry. virtio-serial hands a port's bytes on
/// in buffers of at most 32 KiB (`drivers/char/virtio_console.c`, `port_fops_write`).
pub const MAX_FRAME_BYTES: usize = 32 * 1024;

/// A gRPC message in either direction.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Payload of one chunk of a streamed file or program.
pub const CHUNK_BYTES: usize = 128 * 1024;

/// Source code of one `exec`: the published limit of 10 MB.
pub const MAX_PROGRAM_BYTES: usize = 10 * 1024 * 1024;

/// Head or tail of one output stream that one `exec` may ask for.
pub const MAX_OUTPUT_PART_BYTES: usize = 1024 * 1024;

/// Entropy that a personalise message must bring at least.
pub const MIN_ENTROPY_BYTES: usize = 32;

/// Length of a path in the guest: Linux's `PATH_MAX`.
pub const MAX_PATH_BYTES: usize = 4096;

/// Entries that one `list` may return.
pub const MAX_LIST_ENTRIES: u32 = 10_000;

/// Stream and connection windows of HTTP/2: enough to keep a link of 200 MB/s busy, and the bound of what
/// one end can make the other hold.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// See [`STREAM_WINDOW_BYTES`].
pub const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

const _: () = assert!(CHUNK_BYTES < MAX_MESSAGE_BYTES);
const _: () = assert!(2 * MAX_OUTPUT_PART_BYTES < MAX_MESSAGE_BYTES, "both tails travel in one exit message");
