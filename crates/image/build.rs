//! Builds the guest binary, which this crate carries inside itself, so that one `cargo build` of any
//! program of ours gives one file that needs no companion.
//!
//! The guest is a static program with a build profile of its own, so it is built by a cargo of its own, in a
//! directory of its own (`target/guest`), which debug and release builds of the host share.

#![expect(
    clippy::disallowed_methods,
    reason = "a build script speaks with cargo by its environment and starts it"
)]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let crates = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..");
    for input in ["archive", "guest", "wire", "../Cargo.toml", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", crates.join(input).display());
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // OUT_DIR is TARGET/PROFILE/build/PACKAGE/out.
    let target_dir = out.ancestors().nth(4).ok_or("OUT_DIR is not inside a target directory")?.join("guest");
    let target = env::var("TARGET")?;
    build(&crates.join("guest/Cargo.toml"), &target, &target_dir)?;
    let built = target_dir.join(&target).join("guest/bouvet-guest");
    std::fs::copy(&built, out.join("bouvet-guest"))?;
    Ok(())
}

fn build(manifest: &Path, target: &str, target_dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo.args(["build", "--quiet", "--profile", "guest", "--bin", "bouvet-guest", "--target", target]);
    cargo.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(target_dir);
    // `--target` keeps the flags away from build scripts and procedural macros.
    cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    // `cargo clippy` sets this, and would check the guest here instead of building it.
    cargo.env_remove("RUSTC_WORKSPACE_WRAPPER");
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("building the guest failed: {status}").into());
    }
    Ok(())
}
