#!/bin/bash
# Guess: `tokio::sync::mpsc::channel(1)` has room for one message, and an empty channel next to none.
# Found: each channel allocates a block of 32 messages when it is made, whatever its capacity: 32 times the size of the type.
# Versions: tokio 1.54.1, on 64 bits.
# Why it matters: a library that gives each idle session a few channels of large enums takes tens of KiB a session, which no
# capacity makes smaller. Boxed messages do.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat > "$dir/Cargo.toml" <<'TOML'
[package]
name = "try"
version = "0.0.0"
edition = "2021"
[dependencies]
tokio = { version = "=1.54.1", default-features = false, features = ["sync"] }
[workspace]
TOML
cat > "$dir/src/main.rs" <<'RUST'
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;
static BYTES: AtomicUsize = AtomicUsize::new(0);

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        System.alloc(layout)
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        System.dealloc(block, layout)
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn bytes_of<T>(capacity: usize) -> usize {
    let before = BYTES.load(Ordering::Relaxed);
    let _channel = tokio::sync::mpsc::channel::<T>(capacity);
    BYTES.load(Ordering::Relaxed) - before
}

fn main() {
    let (inline, boxed) = (bytes_of::<[u8; 1024]>(1), bytes_of::<Box<[u8; 1024]>>(1));
    println!("tokio 1.54.1, capacity 1: {inline} bytes for messages of 1024 bytes, {boxed} if they are boxed");
    assert!(inline >= 32 * 1024 && boxed < 2048);
}
RUST
cargo run --quiet --manifest-path "$dir/Cargo.toml"
# Seen:
#   tokio 1.54.1, capacity 1: 33312 bytes for messages of 1024 bytes, 800 if they are boxed
