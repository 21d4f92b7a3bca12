//! The description of a sandbox reaches all that runs in it, by whichever way it was started.

use std::time::Duration;

use bouvet_host::{
    BoxConfig, ContextRequest, ExecError, ExecRequest, Host, Program, ResourceLimits, Sandbox, Signal, State,
    StreamEvent,
};
use bytes::Bytes;

use super::create;
use crate::drive::{eventually, patient, printed, run, sh};
use crate::site::{Site, Vmm, small};

/// Makes a test of every case about descriptions that needs a VM of `$vmm`.
#[macro_export]
macro_rules! conform_described {
    ($vmm:expr) => {
        $crate::conform_on! { $vmm;
            descriptions_reach_programs_contexts_and_files
        }
    };
}

async fn arguments(sandbox: &Sandbox, words: &[&str]) -> Result<(String, i32), ExecError> {
    let mut request = ExecRequest::arguments(words.iter().copied())?;
    request.timeout = patient(60);
    let result = sandbox.exec(request).await?.finish().await?;
    Ok((result.stdout.text(), result.exit.exit_code))
}

pub async fn working_directories_are_where_all_starts(host: &Host) {
    // On the engine without VMs it is a directory of this machine.
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("work").to_str().unwrap().to_owned();
    let sandbox = host.create(BoxConfig { working_dir: dir.clone(), ..small() }).await.unwrap();
    assert_eq!(sh(&sandbox, "pwd").await, dir);
    assert_eq!(arguments(&sandbox, &["pwd"]).await.unwrap(), (format!("{dir}\n"), 0));
    assert_eq!(printed(&sandbox, Program::Python, "import os; print(os.getcwd())").await, dir);
    sandbox.write("sub/notes", Bytes::from("here"), false).await.unwrap();
    assert_eq!(sh(&sandbox, &format!("cat {dir}/sub/notes")).await, "here");
    assert_eq!(sandbox.read("sub/notes", 0, 9).await.unwrap().bytes, b"here");
    assert_eq!(sandbox.list(".").await.unwrap().entries[0].name, "sub");
    let below = ExecRequest { cwd: "sub".into(), ..ExecRequest::new(Program::Command, "pwd") };
    let below = sandbox.exec(below).await.unwrap().finish().await.unwrap();
    assert_eq!(below.stdout.text(), format!("{dir}/sub\n"));
    let context = sandbox.create_context(ContextRequest::new(Program::Python)).await.unwrap().id;
    let cell = ExecRequest {
        context: Some(context),
        ..ExecRequest::new(Program::Python, "import os; print(os.getcwd())")
    };
    let cell = sandbox.exec(cell).await.unwrap().finish().await.unwrap();
    assert_eq!(cell.stdout.text(), format!("{dir}\n"), "{}", cell.stderr.text());
    sh(&sandbox, "rm -r sub").await;
}

pub async fn programs_start_themselves_again(host: &Host) {
    let sandbox = create(host).await;
    sandbox.write("helper.js", Bytes::from("module.exports = 'helped';"), false).await.unwrap();
    let worker = "const { Worker, isMainThread } = require('worker_threads');\nconst word = require('./helper');\n\
        if (isMainThread) new Worker(__filename); else console.log('again', word);";
    let fork = "const { fork } = require('child_process');\nconst word = require('./helper');\n\
        if (process.argv[2]) console.log('again', word); else fork(__filename, ['child']);";
    let cluster = "const cluster = require('cluster');\n\
        if (cluster.isPrimary) cluster.fork();\nelse { console.log('again', require('./helper')); process.exit(); }";
    let module = "import { Worker, isMainThread } from 'worker_threads';\nimport word from './helper.js';\n\
        if (isMainThread) new Worker(new URL(import.meta.url)); else console.log('again', word);";
    let beside = "import { Worker, isMainThread } from 'worker_threads';\nimport { dirname, join } from 'node:path';\n\
        import { fileURLToPath } from 'url';\nimport { createRequire } from 'module';\n\
        const own = fileURLToPath(import.meta.url);\nconst word = createRequire(import.meta.url)(join(dirname(own), 'helper'));\n\
        if (isMainThread) new Worker(own); else console.log('again', word);";
    for program in [worker, fork, cluster, module, beside] {
        assert_eq!(printed(&sandbox, Program::Node, program).await, "again helped", "{program}");
    }
    let places = "const path = require('path');\n\
        console.log(__dirname === path.dirname(__filename), require.main === module, path.basename(process.argv[1]));\n\
        console.log(require('fs').readFileSync(__filename, 'utf8').includes('readFileSync'));";
    assert_eq!(printed(&sandbox, Program::Node, places).await, "true true main.js\ntrue");

    let spawn = "import multiprocessing, sys\ndef work():\n    print('again')\n\
        if __name__ == '__main__':\n    child = multiprocessing.get_context('spawn').Process(target=work)\n\
        \x20   child.start(); child.join()";
    let own = "import subprocess, sys\nif len(sys.argv) > 1: print('again')\n\
        else: subprocess.run([sys.executable, __file__, 'child'], check=True)";
    let argv = "import os, sys\nif len(sys.argv) > 1: print('again')\n\
        else: os.execv(sys.executable, [sys.executable, *sys.argv, 'child'])";
    for program in [spawn, own, argv] {
        assert_eq!(printed(&sandbox, Program::Python, program).await, "again", "{program}");
    }
    let exec = "if [ -z \"$1\" ]; then exec \"$0\" child; fi; cmp \"$0\" \"${BASH_SOURCE[0]}\" && echo again";
    assert_eq!(printed(&sandbox, Program::Bash, exec).await, "again");

    // Processes that a program leaves running keep its file.
    let late = "if [ -n \"$1\" ]; then echo late > done; exit; fi\n\
        (while [ ! -e go ]; do sleep 0.1; done; bash \"$0\" late) > /dev/null 2>&1 &\necho \"$0\"";
    let file = printed(&sandbox, Program::Bash, late).await;
    sh(&sandbox, "touch go").await;
    eventually(&sandbox, "test -e done").await;
    eventually(&sandbox, &format!("test ! -e {file}")).await;
}

pub async fn real_time_signals_reach_programs(host: &Host) {
    let sandbox = create(host).await;
    let script = "trap 'echo caught; exit 5' RTMIN+3; echo up; while :; do sleep 0.1; done";
    let request =
        ExecRequest { timeout: Duration::ZERO, ..ExecRequest::arguments(["bash", "-c", script]).unwrap() };
    let mut stream = sandbox.exec_stream(request).await.unwrap();
    let mut seen = String::new();
    let exit = tokio::time::timeout(patient(60), async {
        loop {
            match stream.next().await.unwrap() {
                Some(StreamEvent::Stdout(data)) => {
                    seen.push_str(&String::from_utf8_lossy(&data));
                    if seen == "up\n" {
                        stream.control().signal("SIGRTMIN+3".parse::<Signal>().unwrap()).await.unwrap();
                    }
                }
                Some(StreamEvent::Exit(exit)) => return exit,
                other => panic!("{other:?} after {seen:?}"),
            }
        }
    });
    assert_eq!(exit.await.unwrap().exit_code, 5);
    assert_eq!(seen, "up\ncaught\n");
}

pub async fn programs_that_cannot_be_executed_say_why(host: &Host) {
    let sandbox = create(host).await;
    let dir = sh(&sandbox, "printf '#!/bin/sh\\r\\necho hi\\r\\n' > crlf; echo hi > text; chmod 755 crlf text; echo > plain; pwd").await;
    let why = async |name: &str| arguments(&sandbox, &[&format!("{dir}/{name}")]).await.unwrap_err();
    let error = why("crlf").await;
    assert!(
        matches!(&error, ExecError::NoProgram(why) if why.contains("interpreter `/bin/sh\\r`")),
        "{error}"
    );
    let error = why("text").await;
    assert!(matches!(&error, ExecError::NotExecutable(why) if why.contains("exec format error")), "{error}");
    let error = why("plain").await;
    assert!(matches!(&error, ExecError::NotExecutable(why) if why.contains("not executable")), "{error}");
    let error = why("").await;
    assert!(matches!(&error, ExecError::NotExecutable(why) if why.contains("directory")), "{error}");
    let error = why("none").await;
    assert!(matches!(&error, ExecError::NoProgram(why) if why.contains("no program")), "{error}");
}

/// Programs that print facts about themselves, one for each language.
const SELF: &str = "import os, resource\n\
    print(os.getcwd(), os.getuid(), sorted(os.getgroups()), os.environ['HOME'], os.environ['A'], end=' ')\n\
    mask = os.umask(0); print(oct(mask), resource.getrlimit(resource.RLIMIT_NOFILE))";

pub async fn descriptions_reach_programs_contexts_and_files(vmm: Vmm) {
    let boxes = tempfile::tempdir().unwrap();
    let Some(site) = Site::with_boxes(vmm, boxes.path()).await else { return };
    let shared = tempfile::tempdir().unwrap();
    std::fs::write(shared.path().join("settings"), "old").unwrap();
    let cmd = ["bash", "-c", "trap 'exit 9' RTMIN+3; pwd; id -G; while :; do sleep 0.1; done"];
    let config = BoxConfig {
        privileged: false,
        persistent: true,
        cmd: cmd.map(Into::into).to_vec(),
        user: "www-data:".into(),
        group_add: vec!["audio".into(), "1234".into()],
        working_dir: "/srv/work".into(),
        extra_env: vec![("A".into(), "of the box".into())],
        volumes: vec![format!("{}:/etc/settings", shared.path().join("settings").display())],
        tmpfs: vec!["/own:uid=33,gid=1234,mode=700".into()],
        resource_limits: ResourceLimits { ulimits: vec!["nofile=100:200".into()], ..Default::default() },
        stop_signal: "SIGRTMIN+3".into(),
        stop_timeout_secs: Some(patient(60).as_secs()),
        ..small()
    };
    let sandbox = site.host.create(config).await.unwrap();
    let said = "/srv/work 33 [29, 1234] /var/www of the box 0o22 (100, 200)";
    for round in ["first", "after a restart"] {
        assert_eq!(printed(&sandbox, Program::Python, SELF).await, said, "{round}");
        let (exec, _) = arguments(&sandbox, &["python3", "-c", SELF]).await.unwrap();
        assert_eq!(exec.trim_end(), said, "{round}");
        let context = sandbox.create_context(ContextRequest::new(Program::Python)).await.unwrap().id;
        let cell = ExecRequest { context: Some(context), ..ExecRequest::new(Program::Python, SELF) };
        let cell = sandbox.exec(cell).await.unwrap().finish().await.unwrap();
        assert_eq!(cell.stdout.text().trim_end(), said, "{round}: {}", cell.stderr.text());
        if round == "first" {
            owners(&sandbox).await;
            assert_eq!(std::fs::read_to_string(shared.path().join("settings")).unwrap(), "new");
            sandbox.stop(sandbox.stop_grace()).await.unwrap();
            let State::Stopped(stop) = sandbox.state() else { panic!("{:?}", sandbox.state()) };
            assert_eq!(stop.exit_code, 9, "it was asked by its own signal");
            sandbox.start().await.unwrap();
        }
    }
    sandbox.destroy().await;
    site.end().await;
}

/// Files that are written belong to the user, and keep what they are.
async fn owners(sandbox: &Sandbox) {
    sandbox.write("new/notes", Bytes::from("x"), false).await.unwrap();
    assert_eq!(sh(sandbox, "stat -c '%u:%g %a' . new new/notes").await, "33:33 755\n33:33 755\n33:33 644");
    sh(sandbox, "touch /own/mine; echo mine > new/private; chmod 600 new/private; ln new/private new/second")
        .await;
    sandbox.write("new/private", Bytes::from("edited\n"), false).await.unwrap();
    assert_eq!(
        sh(sandbox, "stat -c '%u:%g %a %h' new/private; cat new/second; ls -A new").await,
        "33:33 600 2\nedited\nnotes\nprivate\nsecond"
    );
    sandbox.write("/etc/settings", Bytes::from("new"), false).await.unwrap();
    sandbox.write("~/relative", Bytes::from("x"), false).await.unwrap();
    assert_eq!(
        sh(sandbox, "stat -c '%u' /var/www/relative; ls -A /etc | grep -c bouvet-write || true").await,
        "33\n0"
    );
    let denied = run(sandbox, Program::Command, "echo x > /etc/hostname").await;
    assert_ne!(denied.exit.exit_code, 0, "programs are not root");
}
