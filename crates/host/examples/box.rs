//! Runs a program in a box of an OCI image, and says what each step took.
//!
//! ```text
//! cargo run --release -p bouvet-host --example box -- nginx:alpine nginx -v
//! ```
//!
//! What VMs boot from is made by `make images`.

#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

mod site;

use std::error::Error;
use std::time::Instant;

use bouvet_host::{BoxConfig, Host, LogOptions, PullEvent};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let image = words.next().ok_or("name an image, and a program with its arguments if it has none")?;
    let config = BoxConfig { image, cmd: words.collect(), ..site::small() };
    let host = Host::start(site::options()).await?;
    let done = run(&host, config).await;
    host.shut_down().await;
    done
}

async fn run(host: &Host, config: BoxConfig) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    let pulled = host.pull(&config.image, |event| {
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
    Ok(())
}
