//! What every engine must do, whatever its VMs are made of. Each function is one case; [`crate::conform`]
//! makes a test of each, on one engine.

#![expect(missing_docs, reason = "each case's name says what it shows")]

mod attest;
mod boxes;
mod cells;
mod clones;
mod contexts;
mod described;
mod isolation;
mod libraries;
mod memory;
mod node;
mod ports;
mod python;
mod volumes;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bouvet_host::{
    BoxConfig, CreateError, ExecError, ExecEvent, ExecRequest, FileError, Host, Program, Refusal, Sandbox,
    State,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

pub use self::attest::*;
pub use self::boxes::*;
pub use self::cells::*;
pub use self::clones::*;
pub use self::contexts::*;
pub use self::described::*;
pub use self::isolation::*;
pub use self::libraries::*;
pub use self::memory::*;
pub use self::node::*;
pub use self::ports::*;
pub use self::python::*;
pub use self::volumes::*;
use crate::drive::{eventually, patient, run, sh};
use crate::site::small;

/// Makes a test of every case, on the site that `$site` starts.
#[macro_export]
macro_rules! conform {
    ($site:path: $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                if let Some(site) = $site().await {
                    $crate::conformance::$case(&site.host).await;
                    site.end().await;
                }
            }
        )*
    };
    ($site:path) => {
        $crate::conform! { $site:
            a_program_s_output_and_exit_code_come_back
            python_and_bash_run_as_from_a_file
            a_python_program_finds_what_it_would_in_an_interpreter_of_its_own
            a_python_program_ends_as_an_interpreter_of_its_own_would
            python_programs_carry_nothing_over
            input_environment_and_directory_are_the_caller_s
            a_deadline_kills_the_whole_tree_and_keeps_the_output
            dropping_a_call_kills_the_whole_tree
            a_background_process_lives_on_and_holds_nobody_up
            long_output_keeps_its_head_and_tail
            a_command_may_be_a_megabyte_long
            many_programs_run_at_once
            there_is_a_most_of_programs
            programs_that_cannot_start_say_why
            programs_that_cannot_be_executed_say_why
            programs_start_themselves_again
            working_directories_are_where_all_starts
            real_time_signals_reach_programs
            files_are_written_read_and_listed
            files_appear_whole_or_not_at_all
            files_of_any_size_are_streamed
            file_errors_say_what_is_wrong
            a_dead_vm_is_noticed_and_says_so
            a_sandbox_past_its_time_says_so
            a_destroyed_sandbox_is_gone
            capacity_is_a_limit
            a_context_keeps_the_variables_of_python_and_node
            a_context_shows_the_last_value_and_what_is_displayed
            a_context_shows_tables_and_figures
            a_context_outlives_what_goes_wrong_in_it
            a_context_is_interrupted_at_the_deadline_and_keeps_its_variables
            a_context_whose_caller_goes_away_is_interrupted
            a_context_that_will_not_stop_is_killed_and_says_so
            a_context_that_dies_says_so
            runs_in_a_context_take_turns
            contexts_are_apart_and_end_with_all_that_they_started
            a_context_is_what_it_was_created_as
            there_is_a_most_of_contexts
            large_results_are_bounded
            node_redeclares_names_of_every_kind
            node_awaits_a_promise_as_last_value
            node_tells_objects_from_blocks
            node_cells_are_modules
            node_values_are_shown_without_running_them
            node_errors_name_the_cell_alone
            node_programs_show_no_frames_of_ours
            node_cells_hint_at_habits_from_elsewhere
            python_tasks_live_from_cell_to_cell
            output_between_runs_comes_with_the_next
            python_values_are_shown_whatever_they_answer
            large_forms_are_kept_in_files
            python_cells_follow_the_habits_of_notebooks
            libraries_show_each_value_once
            a_port_of_the_host_leads_to_a_server_in_the_sandbox
            bytes_pass_through_a_port_both_ways
            a_connection_that_breaks_breaks_at_the_other_end
            who_does_not_read_holds_nobody_else_up
            there_is_a_most_of_connections_through_ports
            connections_given_up_by_the_thousand_leave_a_sandbox_whole
            ports_are_added_and_closed_while_a_sandbox_runs
            a_server_may_listen_on_ipv6_alone_and_so_may_the_host
            server_on_its_own_address_is_reached
            datagrams_pass_through_a_port_and_answers_find_their_way_back
            datagrams_are_lost_until_somebody_receives_them
        }
    };
}

/// Makes a test of each of these cases, on VMs of `$vmm`.
#[macro_export]
macro_rules! conform_on {
    ($vmm:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::conformance::$case($vmm).await;
            }
        )*
    };
}

async fn create(host: &Host) -> Sandbox {
    host.create(small()).await.unwrap()
}

pub async fn a_program_s_output_and_exit_code_come_back(host: &Host) {
    let sandbox = create(host).await;
    let result = run(&sandbox, Program::Command, "echo out; echo err >&2; exit 7").await;
    assert_eq!((result.stdout.text(), result.stderr.text()), ("out\n".into(), "err\n".into()));
    assert_eq!((result.exit.exit_code, result.exit.timed_out, result.truncated()), (7, false, false));
    let result = run(&sandbox, Program::Command, "kill -TERM $$").await;
    assert_eq!(result.exit.exit_code, 128 + 15, "a signal, as a shell reports it");
}

pub async fn python_and_bash_run_as_from_a_file(host: &Host) {
    let sandbox = create(host).await;
    sandbox.write("helper.py", Bytes::from("answer = 42\n"), false).await.unwrap();
    let source = "import sys, helper\nprint(helper.answer, sys.argv == [__file__], __name__)\nsys.exit(3)";
    let result = run(&sandbox, Program::Python, source).await;
    assert_eq!(result.stdout.text(), "42 True __main__\n", "{}", result.stderr.text());
    assert_eq!(result.exit.exit_code, 3);
    let result = run(&sandbox, Program::Python, "def f():\n    return 1 / 0\nf()").await;
    let trace = result.stderr.text();
    assert!(
        trace.starts_with("Traceback (most recent call last):\n  File \"main.py\", line 3, in <module>"),
        "{trace}"
    );
    assert!(trace.contains("return 1 / 0") && !trace.contains("python.py"), "{trace}");
    assert_eq!(result.exit.exit_code, 1);
    let result = run(&sandbox, Program::Bash, "set -eu\nx=(a b)\necho ${#x[@]}\nfalse\necho never").await;
    assert_eq!((result.stdout.text().as_str(), result.exit.exit_code), ("2\n", 1));
}

pub async fn input_environment_and_directory_are_the_caller_s(host: &Host) {
    let sandbox = host
        .create(BoxConfig { extra_env: vec![("BOX".into(), "of the box".into())], ..small() })
        .await
        .unwrap();
    let mut request = ExecRequest::new(Program::Command, "cat; echo \"$BOX|$CALL|$PWD\"");
    request.stdin = Bytes::from("input\n");
    request.env = BTreeMap::from([("CALL".into(), "of the call".into())]);
    request.cwd = "/tmp".into();
    let result = sandbox.exec(request).await.unwrap().finish().await.unwrap();
    assert_eq!(result.stdout.text(), "input\nof the box|of the call|/tmp\n");
}

pub async fn a_deadline_kills_the_whole_tree_and_keeps_the_output(host: &Host) {
    let sandbox = create(host).await;
    let mut request =
        ExecRequest::new(Program::Python, "print('before')\nimport os\nos.system('sleep 3217 & sleep 3218')");
    request.timeout = patient(3);
    let result = sandbox.exec(request).await.unwrap().finish().await.unwrap();
    assert!(result.exit.timed_out);
    assert_eq!(result.stdout.text(), "before\n");
    eventually(&sandbox, "! pgrep -f 'sleep 321[78]'").await;
}

pub async fn dropping_a_call_kills_the_whole_tree(host: &Host) {
    let sandbox = create(host).await;
    let request = ExecRequest::new(Program::Command, "echo up; sleep 3219 & sleep 3220");
    let mut exec = sandbox.exec(request).await.unwrap();
    assert_eq!(exec.next().await.unwrap(), Some(ExecEvent::Stdout(Bytes::from("up\n"))));
    eventually(&sandbox, "pgrep -f 'sleep 32[12][90]'").await;
    drop(exec);
    eventually(&sandbox, "! pgrep -f 'sleep 32[12][90]'").await;
}

pub async fn a_background_process_lives_on_and_holds_nobody_up(host: &Host) {
    let sandbox = create(host).await;
    // It keeps the output open, and prints without end.
    let result = run(&sandbox, Program::Command, "(while :; do echo x; sleep 0.01; done) & echo $!").await;
    let text = result.stdout.text();
    let pid = text.lines().find(|line| *line != "x").unwrap().to_owned();
    assert_eq!(sh(&sandbox, &format!("kill -0 {pid} && echo alive")).await, "alive");
    sh(&sandbox, &format!("kill {pid}")).await;
}

pub async fn long_output_keeps_its_head_and_tail(host: &Host) {
    let sandbox = create(host).await;
    let result = run(
        &sandbox,
        Program::Command,
        "echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last",
    )
    .await;
    assert!(result.truncated());
    let text = result.stdout.text();
    assert!(text.starts_with("first\nxxx") && text.ends_with("xxx\nlast\n"));
    let kept = result.stdout.head.len() + result.stdout.tail.len();
    assert_eq!(kept as u64 + result.stdout.dropped_bytes, 3_000_000 + 12, "every byte is accounted for");
    assert_eq!(kept, 1024 * 1024);
}

pub async fn a_command_may_be_a_megabyte_long(host: &Host) {
    let sandbox = create(host).await;
    let tail = "; echo done";
    let padding = "#".repeat(1024 * 1024 - tail.len() - 2);
    let command = format!(":{}\n{}", tail, &padding);
    assert_eq!(command.len(), 1024 * 1024);
    assert_eq!(sh(&sandbox, &command).await, "done");
    let error = sandbox.exec(ExecRequest::new(Program::Command, command + "#")).await.unwrap_err();
    assert!(matches!(error, ExecError::Invalid(_)), "{error}");
}

pub async fn many_programs_run_at_once(host: &Host) {
    let sandbox = create(host).await;
    let programs = (0..16).map(|number| {
        let sandbox = sandbox.clone();
        async move { sh(&sandbox, &format!("sleep 0.2; echo {number}")).await }
    });
    let outputs = futures_util::future::join_all(programs).await;
    assert_eq!(outputs, (0..16).map(|number| number.to_string()).collect::<Vec<_>>());
}

pub async fn there_is_a_most_of_programs(host: &Host) {
    let sandbox = create(host).await;
    let mut running = Vec::new();
    for _ in 0..64 {
        running.push(sandbox.exec(ExecRequest::new(Program::Command, "sleep 3233")).await.unwrap());
    }
    let error = sandbox.exec(ExecRequest::new(Program::Command, "true")).await.unwrap_err();
    assert!(matches!(error, ExecError::TooMany(64)), "{error}");
    running.pop();
    assert_eq!(sh(&sandbox, "echo room again").await, "room again");
}

pub async fn programs_that_cannot_start_say_why(host: &Host) {
    let sandbox = create(host).await;
    let mut request = ExecRequest::new(Program::Command, "true");
    request.cwd = "/nowhere".into();
    let error = sandbox.exec(request).await.unwrap_err();
    assert!(matches!(&error, ExecError::NotStarted(text) if text.contains("/nowhere")), "{error}");
    let result = run(&sandbox, Program::Command, "no-such-program").await;
    assert_eq!(result.exit.exit_code, 127);
    assert!(result.stderr.text().contains("no-such-program: command not found"), "{}", result.stderr.text());
}

pub async fn files_are_written_read_and_listed(host: &Host) {
    let sandbox = create(host).await;
    let bytes: Bytes = (0..=255u8).cycle().take(3_000_000).collect();
    assert_eq!(sandbox.write("new/dir/file.bin", bytes.clone(), false).await.unwrap(), 3_000_000);
    let content = sandbox.read("new/dir/file.bin", 0, usize::MAX).await.unwrap();
    assert!(content.bytes == bytes && content.file_bytes == 3_000_000);
    let part = sandbox.read("new/dir/file.bin", 2_999_990, 100).await.unwrap();
    assert_eq!((part.bytes.len(), part.file_bytes), (10, 3_000_000));
    sandbox.write("new/dir/log", Bytes::from("one\n"), true).await.unwrap();
    sandbox.write("new/dir/log", Bytes::from("two\n"), true).await.unwrap();
    assert_eq!(sandbox.read("new/dir/log", 0, 100).await.unwrap().bytes, b"one\ntwo\n");
    assert_eq!(
        sh(&sandbox, "stat -c %s new/dir/file.bin; chmod 750 new/dir/log; ln -s log new/dir/link").await,
        "3000000"
    );
    sandbox.write("new/dir/link", Bytes::from("through the link"), false).await.unwrap();
    assert_eq!(sh(&sandbox, "cat new/dir/log; stat -c %a new/dir/log").await, "through the link750");
    let listing = sandbox.list("new/dir").await.unwrap();
    let entries: Vec<_> =
        listing.entries.iter().map(|e| (e.name.as_str(), e.kind, e.is_dir, e.size)).collect();
    assert_eq!(entries[0], ("file.bin", "file", false, 3_000_000));
    assert_eq!((entries[1].0, entries[1].1), ("link", "symlink"));
    assert_eq!(entries[2], ("log", "file", false, 16));
    assert!(sandbox.list("new").await.unwrap().entries[0].is_dir && !listing.truncated);
    sandbox.write("empty", Bytes::new(), false).await.unwrap();
    assert_eq!(sandbox.read("empty", 0, 10).await.unwrap().bytes, b"");
}

pub async fn files_appear_whole_or_not_at_all(host: &Host) {
    let sandbox = create(host).await;
    sandbox.write("kept", Bytes::from("as it was"), false).await.unwrap();
    let big = Bytes::from(vec![b'x'; 10 * 1024 * 1024]);
    let write = sandbox.write("kept", big.clone(), false);
    // Dropped on its way: the link takes longer than this for 10 MiB.
    tokio::time::timeout(Duration::from_millis(1), write).await.unwrap_err();
    assert_eq!(sandbox.read("kept", 0, 100).await.unwrap().bytes, b"as it was");
    eventually(&sandbox, "! ls -A | grep bouvet-write").await;
    sandbox.write("kept", big, false).await.unwrap();
    assert_eq!(sandbox.read("kept", 0, 1).await.unwrap().file_bytes, 10 * 1024 * 1024);
    let over = Bytes::from(vec![b'x'; 10 * 1024 * 1024 + 1]);
    assert!(matches!(sandbox.write("kept", over, false).await, Err(FileError::Invalid(_))));
}

pub async fn files_of_any_size_are_streamed(host: &Host) {
    let sandbox = create(host).await;
    let part: Bytes = (0..=255u8).cycle().take(1_000_000).collect();
    let parts = |count| stream::iter(vec![part.clone(); count]).map(Ok);
    // More than one call of `write` takes.
    assert_eq!(sandbox.write_stream("large", parts(12), false).await.unwrap(), 12_000_000);
    let mut reader = sandbox.read_stream("large", 1_000_001).await.unwrap();
    assert_eq!(reader.file_bytes(), 12_000_000);
    let mut read = Vec::new();
    while let Some(bytes) = reader.next().await.unwrap() {
        read.extend_from_slice(&bytes);
    }
    assert!(read.len() == 10_999_999 && read.starts_with(&part[1..]) && read.ends_with(&part));
    assert_eq!(sandbox.write_stream("large", parts(1), true).await.unwrap(), 1_000_000);
    assert_eq!(sandbox.read("large", 0, 1).await.unwrap().file_bytes, 13_000_000);

    let torn = parts(2).chain(stream::iter([Err(std::io::Error::other("the caller is gone"))]));
    let error = sandbox.write_stream("large", torn, false).await.unwrap_err();
    assert!(matches!(error, FileError::Content(_)), "{error}");
    assert_eq!(sandbox.read("large", 0, 1).await.unwrap().file_bytes, 13_000_000);
    eventually(&sandbox, "! ls -A | grep bouvet-write").await;
    let error = sandbox.write_stream("/tmp", parts(100), false).await.unwrap_err();
    assert!(matches!(error, FileError::WrongKind(_)), "{error}");

    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(sandbox.read_stream("large", 0).await.unwrap());
    }
    let error = sandbox.read_stream("large", 0).await.unwrap_err();
    assert!(matches!(error, FileError::TooMany(8)), "{error}");
    // Files that nobody goes on to read keep nothing else from passing.
    assert_eq!(sh(&sandbox, "head -c 500000 /dev/zero | tr '\\0' x").await.len(), 500_000);
    open.pop();
    sandbox.read_stream("large", 0).await.unwrap();
}

pub async fn file_errors_say_what_is_wrong(host: &Host) {
    let sandbox = create(host).await;
    assert!(matches!(sandbox.read("nothing", 0, 1).await, Err(FileError::NotFound(_))));
    assert!(matches!(sandbox.list("nothing").await, Err(FileError::NotFound(_))));
    assert!(matches!(sandbox.read("/tmp", 0, 1).await, Err(FileError::WrongKind(_))));
    assert!(matches!(sandbox.read("/dev/zero", 0, 1).await, Err(FileError::WrongKind(_))));
    assert!(matches!(sandbox.write("/tmp", Bytes::new(), false).await, Err(FileError::WrongKind(_))));
    assert!(matches!(sandbox.read("", 0, 1).await, Err(FileError::Invalid(_))));
    sh(&sandbox, "mkfifo pipe; echo > file").await;
    assert!(matches!(sandbox.read("pipe", 0, 1).await, Err(FileError::WrongKind(_))));
    assert!(matches!(sandbox.list("file").await, Err(FileError::WrongKind(_))));
}

pub async fn a_dead_vm_is_noticed_and_says_so(host: &Host) {
    let sandbox = create(host).await;
    let running = sandbox.exec(ExecRequest::new(Program::Command, "sleep 3221")).await.unwrap();
    // The parent of every program is the guest's service, and no VM is of use without it.
    let exec = sandbox.exec(ExecRequest::new(Program::Command, "kill -KILL $PPID; sleep 60")).await;
    let died = Instant::now();
    let error = match exec {
        Ok(exec) => exec.finish().await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, ExecError::Refused(Refusal::Failed(_))), "{error}");
    let error = running.finish().await.unwrap_err();
    assert!(matches!(error, ExecError::Refused(Refusal::Failed(_))), "{error}");
    assert!(died.elapsed() < patient(30), "it took {:?}", died.elapsed());
    assert!(matches!(sandbox.state(), State::Failed(_)));
    assert!(matches!(sandbox.read("x", 0, 1).await, Err(FileError::Refused(Refusal::Failed(_)))));
    assert_eq!(host.list().len(), 1, "it stays known until it is destroyed");
    sandbox.destroy().await;
    assert!(host.list().is_empty());
}

pub async fn a_sandbox_past_its_time_says_so(host: &Host) {
    let mut config = small();
    // Its time counts from when it was asked for, and a real VM takes a part of it to boot.
    let seconds = if host.engine() == "fake" { 1 } else { 20 };
    config.resources.timeout = Duration::from_secs(seconds);
    let sandbox = host.create(config).await.unwrap();
    let error = match sandbox.exec(ExecRequest::new(Program::Command, "sleep 3222")).await {
        Ok(exec) => exec.finish().await.unwrap_err(),
        // On a busy machine its time was over before the program could start.
        Err(error) => error,
    };
    assert!(error.to_string().contains(&format!("its time of {seconds} s is over")), "{error}");
}

pub async fn a_destroyed_sandbox_is_gone(host: &Host) {
    let sandbox = create(host).await;
    assert!(host.get(sandbox.id()).is_some());
    sandbox.destroy().await;
    sandbox.destroy().await;
    assert!(host.get(sandbox.id()).is_none() && host.list().is_empty());
    let error = sandbox.exec(ExecRequest::new(Program::Command, "true")).await.unwrap_err();
    assert!(matches!(error, ExecError::Refused(Refusal::Destroyed)), "{error}");
    // One that nobody waits for any more is destroyed too.
    tokio::time::timeout(Duration::ZERO, host.create(small())).await.unwrap_err();
    let deadline = Instant::now() + patient(60);
    while !host.list().is_empty() {
        assert!(Instant::now() < deadline, "the unwanted sandbox was never destroyed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn capacity_is_a_limit(host: &Host) {
    let mut config = small();
    config.resources.memory_mb = 1;
    assert!(matches!(host.create(config).await, Err(CreateError::Invalid(_))));
    // Allowed somewhere, but more than this machine has.
    let mut config = small();
    config.resources.memory_mb = 1024 * 1024;
    assert!(matches!(host.create(config).await, Err(CreateError::Invalid(_))));
    let hardware = BoxConfig { require_hardware: true, ..small() };
    if host.acceleration().name() != "kvm" {
        assert!(matches!(host.create(hardware).await, Err(CreateError::NoHardware(_))));
    }
    let most = crate::site::MAX_SANDBOXES;
    let all = futures_util::future::join_all((0..most).map(|_| host.create(small()))).await;
    let held: Vec<Sandbox> = all.into_iter().map(Result::unwrap).collect();
    let one_more = host.create(small()).await;
    assert!(matches!(one_more, Err(CreateError::AtCapacity(limit)) if limit == most));
    held[0].destroy().await;
    create(host).await;
}
