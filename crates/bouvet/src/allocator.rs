//! What the C library's allocator does with memory that is freed.
//!
//! A body of a request and what is made of it are large and short-lived. The allocator raises its threshold for memory of
//! its own mapping with the first of them, and keeps later ones in heaps, of which there are eight for each CPU. With a
//! fixed threshold and few heaps freed memory goes back to the system. Measured with 20 bodies of 64 MiB: 8 MiB and more
//! stay after a minute as it is, 1 to 3 MiB so; jemalloc and mimalloc are no better and take 1 to 10 MiB more at rest.

use std::ffi::c_int;

/// Larger blocks are mapped by themselves, and unmapped when they are freed. glibc's own first value.
const MMAP_THRESHOLD_BYTES: c_int = 128 * 1024;
/// Heaps of small blocks.
const MAX_ARENAS: c_int = 2;

/// Makes freed memory go back to the system. To be called before there are other threads.
#[cfg(target_env = "gnu")]
pub(crate) fn return_freed_memory() {
    for (option, value) in [(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES), (libc::M_ARENA_MAX, MAX_ARENAS)] {
        #[expect(unsafe_code, reason = "glibc has no other interface to its allocator")]
        // SAFETY: mallopt(3) takes plain numbers, and no other thread runs yet.
        let is_set = unsafe { libc::mallopt(option, value) } == 1;
        if !is_set {
            tracing::warn!(option, value, "could not set an option of the allocator");
        }
    }
}

/// Other C libraries have no such options.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn return_freed_memory() {}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn freed_memory_goes_back() {
        return_freed_memory();
        let resident_bytes = || {
            let status = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
        };
        // Its end would raise the threshold to its size.
        drop(std::hint::black_box(vec![1_u8; 30 << 20]));
        // Small blocks between the large ones would keep the heap from shrinking.
        let (large, small): (Vec<_>, Vec<_>) =
            (0..64).map(|_| (vec![1_u8; 1 << 20], vec![1_u8; 100])).unzip();
        let before = resident_bytes();
        drop(std::hint::black_box(large));
        std::hint::black_box(&small);
        // Other tests take memory meanwhile.
        assert!(resident_bytes() < before - (32 << 20));
    }
}
