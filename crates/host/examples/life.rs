//! Takes a sandbox through its life: created, paused, resumed, stopped, started again with its files, and destroyed.
//!
//! ```text
//! cargo run --release -p bouvet-host --example life
//! ```
//!
//! What VMs boot from is made by `make images`.

#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

mod site;

use std::error::Error;
use std::time::Duration;

use bouvet_host::{BoxConfig, EventWatch, Host, LogOptions, Sandbox, Watched};

const NAME: &str = "life";
/// Counts its starts in a file, and has words for its end.
const SERVICE: &str = "echo x >>/root/starts; echo start $(wc -l </root/starts)
    trap 'echo bye; exit 5' TERM
    while :; do sleep 0.1; done";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let host = Host::start(site::options()).await?;
    let watching = tokio::spawn(print_events(host.events()));
    let done = run(&host).await;
    // Ends the events too.
    host.shut_down().await;
    watching.await?;
    done
}

async fn run(host: &Host) -> Result<(), Box<dyn Error>> {
    // It would be there still if this was killed before: it is persistent, and only one has its name.
    if let Ok(left) = host.find(NAME) {
        left.destroy().await;
    }
    let cmd = ["sh", "-c", SERVICE].map(String::from).into();
    let sandbox =
        host.create(BoxConfig { name: NAME.into(), cmd, persistent: true, ..site::small() }).await?;
    printed(&sandbox, "start 1").await?;

    sandbox.pause().await?;
    println!("it is {}, and uses no CPU", sandbox.state().name());
    sandbox.resume().await?;

    sandbox.stop(Duration::from_secs(10)).await?;
    println!("it ended with exit code {}", sandbox.wait().await?.exit_code);
    sandbox.start().await?;
    printed(&sandbox, "start 2").await?;

    let mut log = sandbox.logs(LogOptions { tail_lines: Some(2), ..LogOptions::default() });
    while let Some(record) = log.next().await {
        println!("log: {:?}", String::from_utf8_lossy(&record.data));
    }
    sandbox.destroy().await;
    Ok(())
}

async fn print_events(mut events: EventWatch) {
    while let Some(watched) = events.next().await {
        match watched {
            Watched::Event(event) => println!("event: {:?}", event.happening),
            Watched::Missed(count) => println!("{count} events were missed"),
        }
    }
    println!("no more events");
}

/// Waits until its main program has printed `text`.
async fn printed(sandbox: &Sandbox, text: &str) -> Result<(), Box<dyn Error>> {
    let mut log = sandbox.logs(LogOptions { follow: true, ..LogOptions::default() });
    let mut seen = String::new();
    while let Some(record) = log.next().await {
        seen.push_str(&String::from_utf8_lossy(&record.data));
        if seen.contains(text) {
            return Ok(());
        }
    }
    Err(format!("it ended without {text:?}: {seen:?}").into())
}
