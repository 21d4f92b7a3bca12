//! Runs a program in a box of an OCI image, and says what each step took.
//!
//! ```text
//! cargo run --release -p bouvet-host --example box -- nginx:alpine nginx -v
//! ```
//!
//! The kernel and the base image are those of `make images`; `BOUVET_KERNEL` and `BOUVET_ROOTFS` name others.

#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bouvet_host::{
    BoxConfig, CgroupChoice, EngineChoice, FirecrackerOptions, Host, HostOptions, ImageOptions,
    ImagesOptions, LogOptions, PullEvent,
};

fn options(dir: &Path) -> HostOptions {
    let output = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/output");
    let file = |variable: &str, name: &str| {
        std::env::var_os(variable).map_or_else(|| output.join(name), PathBuf::from)
    };
    HostOptions {
        dir: dir.join("host"),
        engine: EngineChoice::Auto,
        firecracker: FirecrackerOptions::default(),
        kernel: file("BOUVET_KERNEL", "vmlinux"),
        kernel_args: String::new(),
        rootfs: file("BOUVET_ROOTFS", "debian-devbox.ext4"),
        max_sandboxes: 4,
        cgroup: CgroupChoice::Detect,
        first_uid: 1_900_000_000,
        templates: Some(dir.join("templates")),
        pool: None,
        images: Some(ImageOptions { dir: dir.join("images"), pull: ImagesOptions::default() }),
        boxes: None,
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let image = words.next().ok_or("name an image, and a program with its arguments if it has none")?;
    let config = BoxConfig { image: image.clone(), cmd: words.collect(), ..BoxConfig::default() };
    let dir = std::env::temp_dir().join("bouvet-example");
    let host = Host::start(options(&dir)).await?;

    let begun = Instant::now();
    let pulled = host.pull(&image, |event| {
        if let PullEvent::Resolved { layers, .. } = event {
            println!("{} layers, {} bytes", layers.len(), layers.iter().map(|(_, bytes)| bytes).sum::<u64>());
        }
    });
    let pulled = pulled.await?;
    println!("pulled in {:?}: {}, {} bytes on disk", begun.elapsed(), pulled.id, pulled.size_bytes);
    for start in ["first start, with a template", "warm start"] {
        let begun = Instant::now();
        let sandbox = host.create(config.clone()).await?;
        println!("{start}: {:?}", begun.elapsed());
        let stop = sandbox.wait().await?;
        let mut log = sandbox.logs(LogOptions::default());
        while let Some(record) = log.next().await {
            print!("{}", String::from_utf8_lossy(&record.data));
        }
        println!("exit code {}", stop.exit_code);
        sandbox.destroy().await;
    }
    host.shut_down().await;
    Ok(())
}
