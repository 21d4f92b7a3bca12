//! Runs programs in a sandbox: to their end, watched while they print, fed, at a terminal, and signalled.
//!
//! ```text
//! cargo run --release -p bouvet-host --example exec
//! ```
//!
//! What VMs boot from is made by `make images`.

#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

mod site;

use std::error::Error;
use std::time::Duration;

use bouvet_host::{
    ExecEvent, ExecRequest, ExecStream, Host, Program, Sandbox, Signal, StreamEvent, WindowSize,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let host = Host::start(site::options()).await?;
    let done = run(&host).await;
    host.shut_down().await;
    done
}

async fn run(host: &Host) -> Result<(), Box<dyn Error>> {
    let sandbox = host.create(site::small()).await?;
    to_its_end(&sandbox).await?;
    while_it_prints(&sandbox).await?;
    fed(&sandbox).await?;
    at_a_terminal(&sandbox).await?;
    signalled(&sandbox).await
}

async fn to_its_end(sandbox: &Sandbox) -> Result<(), Box<dyn Error>> {
    let source = "import os, sys\nprint(6 * int(os.environ['FACTOR']))\nsys.exit(3)";
    let mut request = ExecRequest::new(Program::Python, source);
    request.env.insert("FACTOR".into(), "7".into());
    let result = sandbox.exec(request).await?.finish().await?;
    println!("Python says {}, exit code {}", result.stdout.text().trim(), result.exit.exit_code);
    Ok(())
}

async fn while_it_prints(sandbox: &Sandbox) -> Result<(), Box<dyn Error>> {
    let source = "for i in 1 2 3; do echo $i; sleep 0.2; done; echo done >&2";
    let mut program = sandbox.exec(ExecRequest::new(Program::Bash, source)).await?;
    while let Some(event) = program.next().await? {
        match event {
            ExecEvent::Stdout(data) => println!("Bash prints {:?}", String::from_utf8_lossy(&data)),
            ExecEvent::Stderr(data) => println!("Bash warns {:?}", String::from_utf8_lossy(&data)),
            ExecEvent::Exit(result) => println!("Bash ran for {:?}", result.exit.duration),
        }
    }
    Ok(())
}

async fn fed(sandbox: &Sandbox) -> Result<(), Box<dyn Error>> {
    // A program whose caller stays attached may take as long as it likes.
    let request = ExecRequest { timeout: Duration::ZERO, ..ExecRequest::arguments(["sort", "-n"])? };
    let program = sandbox.exec_stream(request).await?;
    let control = program.control();
    for number in [30, 4, 200] {
        control.write(format!("{number}\n").into()).await?;
    }
    control.close_stdin().await?;
    let (sorted, _) = rest(program).await?;
    println!("sorted: {}", sorted.replace('\n', " "));
    Ok(())
}

async fn at_a_terminal(sandbox: &Sandbox) -> Result<(), Box<dyn Error>> {
    let request = ExecRequest {
        terminal: Some(WindowSize { rows: 24, columns: 80 }),
        ..ExecRequest::arguments(["sh", "-c", "stty size; read line; stty size"])?
    };
    let mut program = sandbox.exec_stream(request).await?;
    if let Some(StreamEvent::Stdout(size)) = program.next().await? {
        println!("a terminal of {}", String::from_utf8_lossy(&size).trim());
    }
    let control = program.control();
    control.resize(WindowSize { rows: 50, columns: 132 }).await?;
    control.write("\n".into()).await?;
    let (size, _) = rest(program).await?;
    println!("and now of {}", size.trim());
    Ok(())
}

async fn signalled(sandbox: &Sandbox) -> Result<(), Box<dyn Error>> {
    let program = sandbox.exec_stream(ExecRequest::arguments(["sleep", "1000"])?).await?;
    program.control().signal(Signal::TERM).await?;
    let (_, exit_code) = rest(program).await?;
    println!("exit code {exit_code} by {}", Signal::TERM);
    Ok(())
}

/// What a program prints from now on, and its exit code.
async fn rest(mut program: ExecStream) -> Result<(String, i32), Box<dyn Error>> {
    let mut printed = String::new();
    loop {
        match program.next().await? {
            Some(StreamEvent::Stdout(data) | StreamEvent::Stderr(data)) => {
                printed.push_str(&String::from_utf8_lossy(&data));
            }
            Some(StreamEvent::Exit(exit)) => return Ok((printed, exit.exit_code)),
            None => return Err("it was asked for its exit twice".into()),
        }
    }
}
