//! Compiles the library that maps the memory of clones (`preload/clone_memory.rs`), which this crate carries inside itself.

#![expect(
    clippy::disallowed_methods,
    reason = "a build script speaks with cargo by its environment and starts the compiler"
)]

use std::env;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "preload/clone_memory.rs";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    let library = PathBuf::from(env::var("OUT_DIR")?).join("clone_memory.so");
    // QEMU is used on this processor alone.
    if env::var("CARGO_CFG_TARGET_ARCH")? != "x86_64" {
        return Ok(std::fs::write(library, b"")?);
    }
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc.args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "clone_memory", SOURCE]);
    rustc.args(["--target", &env::var("TARGET")?, "-o"]).arg(&library);
    rustc.args(["-Cpanic=abort", "-Copt-level=s", "-Cstrip=symbols", "-Dwarnings"]);
    // Nothing but itself: it fits the C library of any host.
    rustc.args(["-Clink-arg=-nostdlib", "-Clink-arg=-nostartfiles"]);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let status = rustc.status()?;
    if !status.success() {
        return Err(format!("compiling `{SOURCE}` failed: {status}").into());
    }
    Ok(())
}
