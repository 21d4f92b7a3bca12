//! The examples of the library, as its readers run them.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::process::Stdio;

use bouvet_e2e::drive::patient;
use bouvet_e2e::site::{images, templates};
use bouvet_e2e::system;

/// What `example` prints; `None`, and the test is skipped, where there are no VMs.
async fn printed(example: &str, arguments: &[&str]) -> Option<String> {
    let (kernel, rootfs) = images()?;
    let dir = tempfile::tempdir().unwrap();
    #[expect(clippy::disallowed_methods, reason = "an example is a program of its own")]
    let mut command = tokio::process::Command::new(example);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).env("TMPDIR", dir.path());
    command.env("BOUVET_KERNEL", kernel).env("BOUVET_ROOTFS", rootfs).env("BOUVET_TEMPLATES", templates());
    let ended = tokio::time::timeout(patient(600), command.output()).await.expect("it did not end");
    let output = ended.unwrap();
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {said}\n{printed}", output.status);
    let left = |name: &str| {
        std::fs::read_dir(dir.path().join("bouvet-example").join(name)).into_iter().flatten().count()
    };
    assert_eq!((left("host-0"), left("boxes")), (0, 0), "files of its host and of its sandboxes are left");
    Some(printed.into_owned())
}

/// Panics unless `expected` are in `printed`, in this order.
fn assert_in_order(printed: &str, expected: &[&str]) {
    let mut rest = printed;
    for part in expected {
        let at = rest.find(part);
        let at = at.unwrap_or_else(|| panic!("{part:?} is not where it should be in:\n{printed}"));
        rest = &rest[at + part.len()..];
    }
}

#[tokio::test]
async fn exec_runs_programs_in_every_way() {
    let Some(printed) = printed(env!("CARGO_BIN_EXE_example-exec"), &[]).await else { return };
    assert_in_order(
        &printed,
        &[
            "Python says 42, exit code 3\n",
            "Bash prints \"1",
            "Bash warns \"done\\n\"",
            "Bash ran for ",
            "sorted: 4 30 200 \n",
            "a terminal of 24 80\n",
            "and now of 50 132\n",
            "exit code 143 by SIGTERM\n",
        ],
    );
}

#[tokio::test]
async fn files_brings_files_in_and_out() {
    let Some(printed) = printed(env!("CARGO_BIN_EXE_example-files"), &[]).await else { return };
    assert_in_order(
        &printed,
        &[
            "\"second\" of 27 bytes\n",
            "file 644 notes.txt 27 bytes\n",
            "not found: ",
            "10616832 bytes written, 10616832 read\n",
            "hello from /srv/hello\n",
            "WHERE ARE YOU?\n",
        ],
    );
}

#[tokio::test]
async fn life_goes_from_creation_to_destruction() {
    let Some(printed) = printed(env!("CARGO_BIN_EXE_example-life"), &[]).await else { return };
    // Events are printed by a task of their own: their lines are in order among themselves.
    let (events, rest): (Vec<_>, Vec<_>) = printed.lines().partition(|line| line.contains("event"));
    let stop = "event: Stop(Stop { exit_code: 5, out_of_memory: false })";
    let (start, pause, resume) = ("event: Start", "event: Pause", "event: Resume");
    let expected = ["event: Create", start, pause, resume, stop, start, "event: Destroy", "no more events"];
    assert_eq!(events, expected);
    let expected = [
        "it is paused, and uses no CPU",
        "it ended with exit code 5",
        "log: \"bye\\n\"",
        "log: \"start 2\\n\"",
    ];
    assert_eq!(rest, expected);
}

#[tokio::test]
async fn box_runs_a_program_of_an_image() {
    let Some(layout) = system::layout() else { return };
    let words = [&layout.name(system::TAG), "python3", "-c", "print(6 * 7)"];
    let Some(printed) = printed(env!("CARGO_BIN_EXE_example-box"), &words).await else { return };
    let starts = ["first start, with a template: ", "42\nexit code 0\n", "warm start: ", "42\nexit code 0\n"];
    assert_in_order(&printed, &["1 layers, ", "pulled in ", " bytes on disk\n"]);
    assert_in_order(&printed, &starts);
}
