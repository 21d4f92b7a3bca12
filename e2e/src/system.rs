//! A real system for images in tests: Debian's essential packages with nginx and Python, made by `mmdebstrap` once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::registry::{Layout, REQUIRE, command, missing_tool, run};
use crate::skip::skipped;

const PACKAGES: &str = "--include=nginx-light,python3-minimal";
const LEFT_OUT: [&str; 3] = ["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*"];

/// The tag of the image that is the system and nothing else.
pub const TAG: &str = "system";

/// A layout with an image of the system, to be added to; `None`, and the test is skipped, where it cannot be made.
pub fn layout() -> Option<Layout> {
    let missing = missing_tool().or_else(|| {
        let there = Path::new("/usr/bin/mmdebstrap").exists();
        (!there).then_some("mmdebstrap")
    });
    if let Some(missing) = missing {
        skipped(REQUIRE, &format!("there is no `{missing}`"));
        return None;
    }
    let layout = Layout::default();
    layout.image(TAG, &[fs::read(archive()).unwrap()]);
    Some(layout)
}

/// The system as an archive. Tests that need it at the same time make it once.
fn archive() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/oci");
    fs::create_dir_all(&dir).unwrap();
    let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    let (made, new) = (dir.join("system.tar"), dir.join("new.tar"));
    if !made.exists() {
        let mut mmdebstrap = command("mmdebstrap");
        mmdebstrap.args(["--quiet", "--variant=essential", PACKAGES]);
        mmdebstrap.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
        run(mmdebstrap.arg("bookworm").arg(&new));
        fs::rename(new, &made).unwrap();
    }
    made
}
