//! Brings files into a sandbox and out of it: small ones, large ones, a program, and a directory that both sides see.
//!
//! ```text
//! cargo run --release -p bouvet-host --example files
//! ```
//!
//! What VMs boot from is made by `make images`.

#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

mod site;

use std::error::Error;
use std::fs;

use bouvet_host::{ExecRequest, FileError, Host, MAX_CONTENT_BYTES, Program, Sandbox, VolumeSpec};
use bytes::Bytes;
use futures_util::stream;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let host = Host::start(site::options()).await?;
    let done = run(&host).await;
    host.shut_down().await;
    done
}

async fn run(host: &Host) -> Result<(), Box<dyn Error>> {
    let sandbox = host.create(site::small()).await?;
    small(&sandbox).await?;
    large(&sandbox).await?;
    program(&sandbox).await?;
    shared(&sandbox).await
}

async fn small(sandbox: &Sandbox) -> Result<(), Box<dyn Error>> {
    sandbox.write("/srv/notes.txt", "a first line\n".into(), false).await?;
    sandbox.write("/srv/notes.txt", "a second line\n".into(), true).await?;
    let part = sandbox.read("/srv/notes.txt", 15, 6).await?;
    println!("{:?} of {} bytes", String::from_utf8_lossy(&part.bytes), part.file_bytes);
    for entry in sandbox.list("/srv").await?.entries {
        println!("{} {:o} {} {} bytes", entry.kind, entry.mode, entry.name, entry.size);
    }
    match sandbox.read("/srv/nothing.txt", 0, 1).await {
        Err(FileError::NotFound(why)) => println!("not found: {why}"),
        other => return Err(format!("{other:?} came of a file that is not there").into()),
    }
    Ok(())
}

/// More than one call may carry.
async fn large(sandbox: &Sandbox) -> Result<(), Box<dyn Error>> {
    let part = Bytes::from(vec![b'x'; 64 * 1024]);
    let parts = 2 + MAX_CONTENT_BYTES / part.len();
    let content = stream::iter((0..parts).map(|_| Ok(part.clone())));
    let written_bytes = sandbox.write_stream("/srv/large", content, false).await?;
    let mut reader = sandbox.read_stream("/srv/large", 0).await?;
    let mut read_bytes = 0;
    while let Some(part) = reader.next().await? {
        read_bytes += part.len();
    }
    println!("{written_bytes} bytes written, {read_bytes} read");
    Ok(())
}

async fn program(sandbox: &Sandbox) -> Result<(), Box<dyn Error>> {
    let source = stream::iter([Ok(Bytes::from("#!/bin/sh\necho \"hello from $0\"\n"))]);
    sandbox.write_file("/srv/hello", source, 0o755).await?;
    let result = sandbox.exec(ExecRequest::arguments(["/srv/hello"])?).await?.finish().await?;
    print!("{}", result.stdout.text());
    Ok(())
}

async fn shared(sandbox: &Sandbox) -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("question"), "where are you?\n")?;
    let volume = VolumeSpec { host: dir.path().into(), guest: "/srv/shared".into(), read_only: false };
    // Mounted until it is dropped.
    let _volumes = sandbox.mount(&[volume]).await?;
    let command = "cd /srv/shared && tr a-z A-Z <question >answer";
    sandbox.exec(ExecRequest::new(Program::Command, command)).await?.finish().await?;
    print!("{}", fs::read_to_string(dir.path().join("answer"))?);
    Ok(())
}
