//! Main programs, terminals and attached programs of sandboxes.

use std::time::Duration;

use bouvet_host::{
    BoxConfig, ControlError, ExecError, ExecRequest, LogOptions, LogStream, Program, Refusal, Signal, State,
    Stop, StreamEvent, WindowSize,
};
use bytes::Bytes;

use super::{confined, create, log, printed, running, text, words};
use crate::drive::{patient, sh};
use crate::site::{Site, Vmm, small};

pub async fn a_main_program_is_logged_and_ends_its_sandbox(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let script = "echo out $A; echo err >&2; echo $$ $PWD; exec >&-; exit 7";
    let config = BoxConfig {
        extra_env: vec![("A".into(), "of the box".into())],
        working_dir: "/srv/work".into(),
        ..running(script)
    };
    let sandbox = create(&site.host, config).await;
    assert_eq!(sandbox.wait().await, Ok(Stop { exit_code: 7, out_of_memory: false }));
    assert_eq!(log(&sandbox).await, "out of the box\n1 /srv/work\n", "it is the first process");
    assert_eq!(text(sandbox.logs(LogOptions::default()), LogStream::Stderr).await, "err\n");
    let error = sandbox.exec(ExecRequest::new(Program::Command, "true")).await.unwrap_err();
    assert!(matches!(error, ExecError::Refused(Refusal::Stopped(_))), "{error}");

    // Again, it begins where it began.
    sandbox.start().await.unwrap();
    assert_eq!(sandbox.wait().await.unwrap().exit_code, 7);
    assert_eq!(log(&sandbox).await.matches("out of the box").count(), 2, "the log goes on");

    let missing = BoxConfig { cmd: words(&["/nowhere/program"]), ..confined() };
    let error = site.host.create(missing).await.unwrap_err();
    let said = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(said.contains("there is no program `/nowhere/program`"), "{said}");
    sandbox.destroy().await;
    assert_eq!(sandbox.state(), State::Destroyed);
    site.end().await;
}

pub async fn a_main_program_is_asked_to_end_and_then_killed(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let polite = running("trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done");
    let polite = create(&site.host, polite).await;
    printed(&polite, "up").await;
    polite.stop(patient(30)).await.unwrap();
    assert_eq!(polite.state(), State::Stopped(Stop { exit_code: 5, out_of_memory: false }));
    assert_eq!(log(&polite).await, "up\nbye\n");

    let deaf = create(&site.host, running("trap '' TERM; echo up; while :; do sleep 1; done")).await;
    printed(&deaf, "up").await;
    deaf.stop(Duration::from_millis(300)).await.unwrap();
    assert_eq!(deaf.wait().await.unwrap().exit_code, 128 + 9);
    let error = deaf.stop(Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, ControlError::Refused(Refusal::Stopped(_))), "{error}");

    let signalled =
        create(&site.host, running("trap 'echo hup' HUP; echo up; while :; do sleep 0.1; done")).await;
    printed(&signalled, "up").await;
    signalled.signal("HUP".parse().unwrap()).await.unwrap();
    printed(&signalled, "hup").await;
    site.end().await;
}

/// Reads what a program prints until `what` has come.
async fn until(stream: &mut bouvet_host::ExecStream, what: &str) -> String {
    let mut seen = String::new();
    let found = async {
        while !seen.contains(what) {
            match stream.next().await.unwrap() {
                Some(StreamEvent::Stdout(data)) => seen.push_str(&String::from_utf8_lossy(&data)),
                other => panic!("{other:?} after {seen:?}"),
            }
        }
    };
    let waited = tokio::time::timeout(patient(60), found).await;
    assert!(waited.is_ok(), "it never printed {what:?}, but {seen:?}");
    seen
}

async fn exit_code(stream: &mut bouvet_host::ExecStream) -> i32 {
    loop {
        match stream.next().await.unwrap() {
            Some(StreamEvent::Exit(exit)) => return exit.exit_code,
            Some(_) => {}
            None => panic!("it has no exit"),
        }
    }
}

pub async fn a_terminal_is_a_real_one(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    for config in [confined(), small()] {
        let sandbox = create(&site.host, config).await;
        let terminal = Some(WindowSize { rows: 40, columns: 132 });
        let request = ExecRequest {
            terminal,
            timeout: Duration::ZERO,
            ..ExecRequest::arguments(["bash", "--norc", "-i"]).unwrap()
        };
        let mut stream = sandbox.exec_stream(request).await.unwrap();
        let control = stream.control();
        control.write(Bytes::from("tty; stty size; echo do\"\"ne\n")).await.unwrap();
        let seen = until(&mut stream, "done").await;
        assert!(seen.contains("/dev/pts/") && seen.contains("40 132"), "{seen}");
        control.resize(WindowSize { rows: 50, columns: 80 }).await.unwrap();
        control.write(Bytes::from("stty size; echo da\"\"nach\n")).await.unwrap();
        assert!(until(&mut stream, "danach").await.contains("50 80"));
        // Ctrl-C ends what runs in the foreground, and not the shell.
        control.write(Bytes::from("echo be\"\"gun; sleep 1000\n")).await.unwrap();
        until(&mut stream, "begun").await;
        // Before there is a process in the foreground it would reach the shell.
        crate::drive::eventually(&sandbox, "pgrep -x sleep").await;
        control.write(Bytes::from("\x03")).await.unwrap();
        control.write(Bytes::from("echo status $?; exit 3\n")).await.unwrap();
        until(&mut stream, "status 130").await;
        assert_eq!(exit_code(&mut stream).await, 3);
        assert!(matches!(control.signal(Signal::TERM).await, Err(ExecError::Ended)));
    }
    site.end().await;
}

pub async fn an_attached_program_is_spoken_to(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let sandbox =
        create(&site.host, BoxConfig { stdin_open: true, ..running("cat; echo end; exit 4") }).await;
    let attachment = sandbox.attach().unwrap();
    attachment.control.write(Bytes::from("typed\n")).await.unwrap();
    printed(&sandbox, "typed").await;
    attachment.control.close_stdin().await.unwrap();
    assert_eq!(text(attachment.output, LogStream::Stdout).await, "typed\nend\n");
    assert_eq!(sandbox.wait().await.unwrap().exit_code, 4);

    let other = create(&site.host, confined()).await;
    let request = ExecRequest { timeout: Duration::ZERO, ..ExecRequest::arguments(["cat"]).unwrap() };
    let mut stream = other.exec_stream(request.clone()).await.unwrap();
    let control = stream.control();
    // More than fits anywhere between: it comes whole, and in order.
    let sent: Vec<u8> = (0..3_000_000u32).flat_map(|n| (n % 251).to_le_bytes()).collect();
    let writing = {
        let (control, sent) = (control.clone(), Bytes::from(sent.clone()));
        tokio::spawn(async move {
            control.write(sent).await.unwrap();
            control.close_stdin().await.unwrap();
        })
    };
    let mut received = Vec::new();
    while let Some(event) = stream.next().await.unwrap() {
        if let StreamEvent::Stdout(data) = event {
            received.extend_from_slice(&data);
        }
    }
    writing.await.unwrap();
    assert!(received == sent, "{} bytes of {}", received.len(), sent.len());

    // A signal reaches a program that does not read, and dropping the call kills it.
    let request =
        ExecRequest { timeout: Duration::ZERO, ..ExecRequest::arguments(["sleep", "1000"]).unwrap() };
    let mut stream = other.exec_stream(request.clone()).await.unwrap();
    stream.control().signal(Signal::TERM).await.unwrap();
    assert_eq!(exit_code(&mut stream).await, 128 + 15);
    drop(other.exec_stream(request).await.unwrap());
    crate::drive::eventually(&other, "! pgrep -x sleep").await;
    let missing = ExecRequest::arguments(["no-such-program"]).unwrap();
    let error = other.exec_stream(missing).await.unwrap_err();
    assert!(matches!(&error, ExecError::NoProgram(why) if why.contains("no-such-program")), "{error}");
    let unfit = ExecRequest::arguments(["/etc/passwd"]).unwrap();
    assert!(matches!(other.exec_stream(unfit).await.unwrap_err(), ExecError::NotExecutable(_)));
    site.end().await;
}

pub async fn a_paused_sandbox_stands_still(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let sandbox = create(&site.host, running("while :; do echo tick; sleep 0.05; done")).await;
    printed(&sandbox, "tick\ntick").await;
    let before = sandbox.stats().await.unwrap();
    assert!(before.cpu_us > 0 && before.memory_bytes > 0 && before.pids > 0, "{before:?}");
    sandbox.pause().await.unwrap();
    assert_eq!(sandbox.state(), State::Paused);
    // What was on its way has come by now.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let still = log(&sandbox).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(log(&sandbox).await, still);
    let error = sandbox.exec(ExecRequest::new(Program::Command, "true")).await.unwrap_err();
    assert!(matches!(error, ExecError::Refused(Refusal::Paused)), "{error}");
    assert!(matches!(sandbox.pause().await, Err(ControlError::Refused(Refusal::Paused))));

    sandbox.resume().await.unwrap();
    let clock: u64 = sh(&sandbox, "date +%s").await.parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(clock) < 5, "its clock is {clock} at {now}");
    let ticks = log(&sandbox).await.len();
    crate::drive::eventually(&sandbox, "sleep 0.3").await;
    assert!(log(&sandbox).await.len() > ticks, "it goes on");
    sandbox.pause().await.unwrap();
    sandbox.stop(patient(5)).await.unwrap();
    assert_eq!(sandbox.state().name(), "stopped");
    site.end().await;
}
