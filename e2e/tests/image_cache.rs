//! A cache of images that processes share, and one of them dies.

#![expect(clippy::unwrap_used, reason = "test code: a panic is how it reports")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};

use bouvet_e2e::registry::{self, Layout, command};
use bouvet_e2e::skip::skipped;
use bouvet_image::cache::CacheError;
use bouvet_image::{CacheOptions, Images, ImagesOptions, PullEvent, Reference};

/// What the other process is to do: the cache's directory, a reference, and `hold` or `convert`.
const TASK: &str = "BOUVET_TEST_IMAGE_TASK";

fn images(dir: &Path) -> Images {
    Images::open(CacheOptions::new(dir), ImagesOptions::default()).unwrap()
}

/// The other process, which says when it is where it should be. It is killed when this is dropped.
struct Other(Child);

impl Other {
    /// Runs [`the_other_process`], and waits until it has said `ready`.
    fn start(cache: &Path, reference: &Reference, task: &str) -> Self {
        let mut other = command(std::env::current_exe().unwrap().to_str().unwrap());
        other.args(["--exact", "the_other_process", "--nocapture"]);
        other.env(TASK, format!("{} {reference} {task}", cache.display())).stdout(Stdio::piped());
        let mut child = other.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let other = Self(child);
        assert!(said.into_iter().any(|line| line.ends_with("ready")), "it ended before it was there");
        other
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn ready() {
    let mut out = std::io::stdout();
    out.write_all(b"ready\n").and_then(|()| out.flush()).unwrap();
}

/// No test of its own: what the others run as another process.
#[tokio::test]
async fn the_other_process() {
    let Some(task) = std::env::var_os(TASK) else { return };
    let task = task.into_string().unwrap();
    let [dir, reference, task] = task.split(' ').collect::<Vec<_>>()[..] else { panic!("three words") };
    let (images, reference) = (images(Path::new(dir)), reference.parse().unwrap());
    let stops = task == "convert";
    let progress = move |event| {
        if stops && matches!(event, PullEvent::Converting { .. }) {
            ready();
            loop {
                std::thread::park();
            }
        }
    };
    let held = images.pull(&reference, progress).await.unwrap();
    ready();
    std::future::pending::<()>().await;
    drop(held);
}

fn image() -> Option<Layout> {
    if let Some(tool) = registry::missing_tool() {
        skipped(registry::REQUIRE, &format!("there is no `{tool}`"));
        return None;
    }
    let layout = Layout::default();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(4);
    archive.append_data(&mut header, "file", &b"text"[..]).unwrap();
    layout.image("v1", &[archive.into_inner().unwrap()]);
    Some(layout)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_process_uses_stays_until_it_dies() {
    let Some(layout) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("images");
    let reference: Reference = layout.name("v1").parse().unwrap();
    let other = Other::start(&cache, &reference, "hold");
    let images = images(&cache);
    let refused = images.remove(&reference.to_string(), false).await;
    assert!(matches!(refused, Err(CacheError::InUse(_))), "{refused:?}");
    assert!(images.list().await.unwrap()[0].in_use);
    drop(other);
    assert!(!images.list().await.unwrap()[0].in_use);
    images.remove(&reference.to_string(), false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_process_that_dies_left_half_made_another_makes() {
    let Some(layout) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("images");
    let reference: Reference = layout.name("v1").parse().unwrap();
    let other = Other::start(&cache, &reference, "convert");
    let images = images(&cache);
    let (says, mut said) = tokio::sync::mpsc::unbounded_channel();
    let pull = images.pull(&reference, move |event| says.send(event).unwrap_or_default());
    let kill = async move {
        while let Some(event) = said.recv().await {
            if event == PullEvent::Waiting {
                break;
            }
        }
        drop(other);
    };
    let (image, ()) = tokio::join!(pull, kill);
    let image = image.unwrap();
    assert!(image.rootfs.exists());
    let left: Vec<_> =
        std::fs::read_dir(cache.join("images")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(
        !left.iter().any(|path| path.extension().is_some_and(|extension| extension == "new")),
        "{left:?}"
    );
}
