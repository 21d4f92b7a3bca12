//! What programs can use up, and what is left to others in the same sandbox then.

use std::time::{Duration, Instant};

use bouvet_e2e::drive::{assert_usable, eventually, printed, run, run_at_most, sh};
use bouvet_e2e::site::{Site, small};
use bouvet_host::{ContextRequest, Death, ExecRequest, FileError, Program};
use bytes::Bytes;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_bomb_ends_with_its_deadline() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let result = run_at_most(&sandbox, 5, Program::Bash, ":(){ :|:& };:\nsleep 3223").await;
    assert!(result.exit.timed_out, "{:?}", result.exit);
    assert_usable(&sandbox).await;
    eventually(&sandbox, "! pgrep -f 'main[.]sh'").await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_bomb_in_the_background_leaves_room_for_others() {
    let Some(site) = Site::qemu().await else { return };
    // Bash waits longer and longer before it tries again. The other does not.
    let tireless = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass";
    for bomb in [":(){ :|:& };:", "python3 tireless.py >tireless.log 2>&1 &"] {
        let sandbox = site.host.create(small()).await.unwrap();
        sandbox.write("tireless.py", Bytes::from(tireless), false).await.unwrap();
        sh(&sandbox, bomb).await;
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            assert_usable(&sandbox).await;
        }
        sandbox.destroy().await;
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_hog_kills_itself_alone() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    sh(&sandbox, "sleep 3224 &").await;
    let creeping = "hoard = []\nwhile True:\n    hoard.append(bytearray(1 << 20))";
    let result = run(&sandbox, Program::Python, creeping).await;
    assert_eq!((result.exit.exit_code, result.exit.out_of_memory), (128 + 9, true), "{result:?}");
    assert_usable(&sandbox).await;
    assert_eq!(sh(&sandbox, "pgrep -xc sleep").await, "1", "the other program lives on");
    let result = run(&sandbox, Program::Python, "bytearray(1 << 40)").await;
    assert_eq!((result.exit.exit_code, result.exit.out_of_memory), (1, false), "{result:?}");
    assert!(result.stderr.text().ends_with("MemoryError\n"), "{}", result.stderr.text());
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_context_that_takes_all_the_memory_says_so() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let context = sandbox.create_context(ContextRequest::new(Program::Python)).await.unwrap();
    let creeping = "hoard = []\nwhile True:\n    hoard.append(bytearray(1 << 20))";
    let request = ExecRequest { context: Some(context.id), ..ExecRequest::new(Program::Python, creeping) };
    let result = sandbox.exec(request).await.unwrap().finish().await.unwrap();
    assert_eq!((result.exit.exit_code, result.exit.out_of_memory), (128 + 9, true), "{result:?}");
    assert_eq!(result.exit.context_death, Some(Death::OutOfMemory));
    assert_usable(&sandbox).await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_background_program_that_takes_all_the_memory_it_may_leaves_room_for_others() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let greedy = "
import time
cgroup = '/sys/fs/cgroup' + open('/proc/self/cgroup').read().strip().removeprefix('0::')
read = lambda name: open(f'{cgroup}/{name}').read()
hoard = []
while 'max' in read('memory.max'):
    time.sleep(0.1)
while int(read('memory.current')) < int(read('memory.max')) - (4 << 20):
    hoard.append(b'x' * (1 << 20))
open('has-all', 'w').close()
time.sleep(3225)
";
    sandbox.write("greedy.py", Bytes::from(greedy), false).await.unwrap();
    sh(&sandbox, "python3 greedy.py >greedy.log 2>&1 &").await;
    eventually(&sandbox, "[ -e has-all ]").await;
    assert_usable(&sandbox).await;
    sh(&sandbox, "pkill -f 'greedy[.]py'").await;
    site.end().await;
}

/// Memory that is written to a file system in memory stays taken when its writer is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_systems_in_memory_cannot_take_all_of_it() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    // What is the service's own can be spoiled, like the service; nobody does that by mistake.
    let places = sh(&sandbox, "findmnt -rno TARGET -t tmpfs,devtmpfs,ramfs | grep -v bouvet").await;
    for expected in ["/dev", "/dev/shm"] {
        assert!(places.lines().any(|place| place == expected), "{places}");
    }
    for place in places.lines() {
        let result = run(&sandbox, Program::Command, &format!("cat /dev/zero >{place}/hog")).await;
        assert_eq!(result.exit.exit_code, 1, "{place}: {:?}", result.exit);
        assert!(result.stderr.text().contains("No space left on device"), "{}", result.stderr.text());
    }
    assert_usable(&sandbox).await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_says_so_and_is_usable_again() {
    let Some(site) = Site::qemu().await else { return };
    let mut config = small();
    config.resources.disk_mb = 128;
    let sandbox = site.host.create(config).await.unwrap();
    sandbox.write("kept", Bytes::from("as it was"), false).await.unwrap();
    let result = run(&sandbox, Program::Command, "cat /dev/zero >big").await;
    assert_eq!(result.exit.exit_code, 1);
    assert!(result.stderr.text().contains("No space left on device"), "{}", result.stderr.text());

    assert_eq!(sh(&sandbox, "echo still here").await, "still here");
    assert_eq!(printed(&sandbox, Program::Python, "print(6 * 7)").await, "42");
    for path in ["kept", "new"] {
        let error = sandbox.write(path, Bytes::from(vec![b'x'; 1 << 20]), false).await.unwrap_err();
        assert!(matches!(error, FileError::DiskFull(_)), "{error:?}");
    }
    assert_eq!(sandbox.read("kept", 0, 100).await.unwrap().bytes, b"as it was");
    assert!(matches!(sandbox.read("new", 0, 1).await, Err(FileError::NotFound(_))));
    assert_eq!(sh(&sandbox, "ls -A | grep bouvet || true").await, "", "half a file was left");

    sh(&sandbox, "rm big").await;
    sandbox.write("kept", Bytes::from(vec![b'x'; 1 << 20]), false).await.unwrap();
    assert_usable(&sandbox).await;
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_are_reaped() {
    let Some(site) = Site::qemu().await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let double_fork = "
import os
for number in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open(f'orphan-{number}', 'w').close()
        os._exit(0)
";
    // No shell waits for them: the program itself ends before they are reaped by anybody.
    printed(&sandbox, Program::Python, double_fork).await;
    eventually(&sandbox, "[ $(ls orphan-* | wc -l) = 20 ]").await;
    eventually(&sandbox, "! ps -eo stat,pid,ppid,args | grep '^Z'").await;
    site.end().await;
}
