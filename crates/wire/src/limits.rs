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

/// Connections that the host may have to the control port of one sandbox's sidecar.
pub const MAX_CONNECTIONS: usize = 64;

/// Connections that may lead through all ports of one sandbox together: as many as a busy server has. Those to a sidecar
/// are counted by themselves, so that whoever reaches a port cannot keep its operator from that.
pub const MAX_PORT_CONNECTIONS: usize = 128;

/// Ports of the host that may lead into one sandbox. Each takes a descriptor of the host's, and a task.
pub const MAX_PORTS: usize = 64;

/// Bytes of one direction of a connection that the receiving end has not passed on yet. Both ends read what comes at
/// once, and hold it here, so that a program or client that does not read keeps nobody else's bytes from passing.
pub const TUNNEL_WINDOW_BYTES: usize = 64 * 1024;

// What waits for programs, and as much on its way from them, takes half at most of the 48 MiB that the guest keeps from
// programs for itself and its kernel.
const _: () = assert!(2 * (MAX_CONNECTIONS + MAX_PORT_CONNECTIONS) * TUNNEL_WINDOW_BYTES <= 24 * 1024 * 1024);

/// Peers whose datagrams may pass through all ports of one sandbox together. Each takes a descriptor of the guest's.
pub const MAX_PEERS: usize = 256;

/// The payload of a datagram: what one of IPv4 has room for, with its headers (RFC 768, RFC 791).
pub const MAX_DATAGRAM_BYTES: usize = 65_507;

/// Contexts that one sandbox may have, dead ones among them.
pub const MAX_CONTEXTS: usize = 8;

/// Length of a context's name.
pub const MAX_CONTEXT_ID_BYTES: usize = 64;

/// Results that one run in a context may show, and their bytes together.
pub const MAX_RESULTS: usize = 32;
/// See [`MAX_RESULTS`].
pub const MAX_RESULTS_BYTES: usize = 8 * 1024 * 1024;

/// Bytes of one result, all its forms together.
pub const MAX_RESULT_BYTES: usize = 2 * 1024 * 1024;

/// Bytes of each stream that are kept for a context's next run, of what is printed between two.
pub const MAX_EARLIER_BYTES: usize = 64 * 1024;

/// Length of the name by which a later result may replace one.
pub const MAX_RESULT_ID_BYTES: usize = 256;

/// Forms of one result, and the length of their names.
pub const MAX_RESULT_PARTS: usize = 16;
/// See [`MAX_RESULT_PARTS`].
pub const MAX_MIME_BYTES: usize = 128;

/// What is kept of a result as plain text.
pub const MAX_RESULT_TEXT_BYTES: usize = 64 * 1024;

/// Entropy that a personalise message must bring at least.
pub const MIN_ENTROPY_BYTES: usize = 32;

/// Length of a path in the guest: Linux's `PATH_MAX`.
pub const MAX_PATH_BYTES: usize = 4096;

/// Entries that one `list` may return.
pub const MAX_LIST_ENTRIES: u32 = 10_000;

/// Programs that may run at once in one sandbox, and files that may be on their way.
pub const MAX_OPEN_EXECS: usize = 64;
/// See [`MAX_OPEN_EXECS`].
pub const MAX_TRANSFERS: usize = 8;

/// Files left out of an archive that are named, and bytes of each path and reason.
pub const MAX_SKIPPED_NAMES: usize = 1000;

/// Volumes of one sandbox.
pub const MAX_VOLUMES: usize = 32;

/// What one read or write of a file in a volume may carry: as many pages as fit into a stream's window with headers.
pub const MAX_VOLUME_IO_BYTES: usize = 240 * 1024;

/// A message of the FUSE protocol in either direction: what one read or write carries, and its headers, which are
/// 80 bytes (`include/uapi/linux/fuse.h`). The kernel asks for room for 4096.
pub const MAX_FUSE_MESSAGE_BYTES: usize = MAX_VOLUME_IO_BYTES + 4096;

/// The MTU of a sandbox's network interface, the largest that a TUN device takes (`drivers/net/tun.c`, `MAX_MTU`):
/// packets never meet a wire, and with it nothing over IPv4 needs to be fragmented.
pub const NETWORK_MTU_BYTES: u32 = 65_535;

/// Bytes of the packets that one message carries: as many as come at once, up to the first with which they are more
/// than half of this.
pub const MAX_PACKETS_BYTES: usize = 2 * NETWORK_MTU_BYTES as usize;

/// What one end may send on one HTTP/2 stream before the other has read it: a millisecond of a link of 200 MB/s,
/// which is more than a round trip takes.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same for a connection: the bound of what one end can make the other hold. It has room for all streams, so
/// that those whose callers do not read keep nobody else from reading.
pub const CONNECTION_WINDOW_BYTES: u32 = 28 * 1024 * 1024;

/// Calls that may be under way at once: those with a limit of their own, and as many short ones as matter.
pub const MAX_CALLS: u32 = 512;

const _: () = assert!(
    (MAX_OPEN_EXECS + MAX_TRANSFERS + MAX_VOLUMES + 1) * (STREAM_WINDOW_BYTES as usize)
        < CONNECTION_WINDOW_BYTES as usize
);
const _: () = assert!(
    MAX_OPEN_EXECS + MAX_TRANSFERS + MAX_VOLUMES + MAX_CONNECTIONS + MAX_PORT_CONNECTIONS + MAX_PORTS + 64
        <= MAX_CALLS as usize
);
const _: () = assert!(
    TUNNEL_WINDOW_BYTES < STREAM_WINDOW_BYTES as usize,
    "a connection is never held up by HTTP/2's window"
);
const _: () = assert!(MAX_FUSE_MESSAGE_BYTES < MAX_MESSAGE_BYTES, "a FUSE message travels in one message");
const _: () = assert!(
    MAX_FUSE_MESSAGE_BYTES < STREAM_WINDOW_BYTES as usize,
    "a request is never held up by the volume's own window alone"
);

const _: () = assert!(CHUNK_BYTES < MAX_MESSAGE_BYTES);
const _: () = assert!(
    MAX_PACKETS_BYTES < STREAM_WINDOW_BYTES as usize,
    "packets are never held up by their own stream's window alone"
);
const _: () = assert!(2 * MAX_OUTPUT_PART_BYTES < MAX_MESSAGE_BYTES, "both tails travel in one exit message");
const _: () = assert!(
    MAX_RESULT_BYTES + MAX_RESULT_PARTS * 2 * MAX_MIME_BYTES < MAX_MESSAGE_BYTES,
    "a result travels in one message"
);
const _: () = assert!(MAX_RESULT_TEXT_BYTES < MAX_RESULT_BYTES && MAX_RESULT_BYTES <= MAX_RESULTS_BYTES);
