//! Real systems for images in tests: Debian's essential packages with some more, made by `mmdebstrap` once.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::registry::{Layout, REQUIRE, command, missing_tool, run};
use crate::skip::skipped;

/// What nothing here needs; of PostgreSQL, what it compiles queries with.
const LEFT_OUT: [&str; 5] = [
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/lib/*/libLLVM*",
    "/usr/lib/postgresql/*/lib/bitcode/*",
];

/// The tag of the image that is the system and nothing else.
pub const TAG: &str = "system";

/// A system.
#[derive(Debug, Clone, Copy)]
struct System {
    /// Of its archive.
    name: &'static str,
    packages: &'static str,
}

/// A layout with an image of a system with nginx and Python, to be added to; `None`, and the test is skipped, where it
/// cannot be made.
pub fn layout() -> Option<Layout> {
    System { name: "system", packages: "nginx-light,python3-minimal" }.layout()
}

/// The same with nginx and PostgreSQL 15, whose cluster is the one that its package makes.
pub fn servers() -> Option<Layout> {
    System { name: "servers", packages: "nginx-light,postgresql-15" }.layout()
}

impl System {
    fn layout(self) -> Option<Layout> {
        let missing = missing_tool().or_else(|| {
            let there = Path::new("/usr/bin/mmdebstrap").exists();
            (!there).then_some("mmdebstrap")
        });
        if let Some(missing) = missing {
            skipped(REQUIRE, &format!("there is no `{missing}`"));
            return None;
        }
        let layout = Layout::default();
        layout.image(TAG, &[fs::read(self.archive()).unwrap()]);
        Some(layout)
    }

    /// It as an archive. Tests that need it at the same time make it once.
    fn archive(self) -> PathBuf {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/oci");
        fs::create_dir_all(&dir).unwrap();
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock")).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        let (made, new) = (dir.join(format!("{}.tar", self.name)), dir.join("new.tar"));
        if !made.exists() {
            let mut mmdebstrap = command("mmdebstrap");
            mmdebstrap.args(["--quiet", "--variant=essential"]);
            mmdebstrap.arg(format!("--include={}", self.packages));
            mmdebstrap.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
            run(mmdebstrap.arg("bookworm").arg(&new));
            fs::rename(new, &made).unwrap();
        }
        made
    }
}
