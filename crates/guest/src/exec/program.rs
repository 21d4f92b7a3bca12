//! How each kind of program is started.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bouvet_wire::v1::Program;

/// What the kernel takes as one argument, less room to spare (`MAX_ARG_STRLEN`, execve(2)).
const MAX_ARGUMENT_BYTES: usize = 120 * 1024;

/// Script that Node.js loads before each program.
const NODE_RUNNER: &str = "node.js";

const RUNNERS: [(&str, &str); 14] = [
    ("python.py", include_str!("runners/python.py")),
    (NODE_RUNNER, include_str!("runners/node.js")),
    ("context.py", include_str!("runners/context.py")),
    ("context.js", include_str!("runners/context.js")),
    ("cell.js", include_str!("runners/cell.js")),
    ("context/cells.py", include_str!("runners/context/cells.py")),
    ("context/control.py", include_str!("runners/context/control.py")),
    ("context/errors.py", include_str!("runners/context/errors.py")),
    ("context/figures.py", include_str!("runners/context/figures.py")),
    ("context/hooks.py", include_str!("runners/context/hooks.py")),
    ("context/loop.py", include_str!("runners/context/loop.py")),
    ("context/serve.py", include_str!("runners/context/serve.py")),
    ("context/shell.py", include_str!("runners/context/shell.py")),
    ("context/show.py", include_str!("runners/context/show.py")),
];

/// Compiles and runs `$1/main.rs`. Unoptimised, and without debug information, that of the standard library too,
/// which is most of what a linker has to write; with a shared standard library, where there is one.
const RUST: &str = r#"cd_back=$PWD
libs=$(rustc --print sysroot)/lib
cd "$1" && rustc --edition 2021 --color never -C debuginfo=0 -C strip=debuginfo -C prefer-dynamic \
    -o main main.rs || exit
cd "$cd_back" && LD_LIBRARY_PATH=$libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$1/main""#;

/// Makes standard input descriptor 3: Node.js programs may look for something to read where the first was. The
/// parser that Node.js has within itself is what `context.js` reads `import` with.
const NODE_CONTEXT: &str = r#"exec 3<&0 </dev/null
exec node --expose-internals --experimental-import-meta-resolve --disable-warning=ExperimentalWarning "$1""#;

/// Stores the interpreters' runners in `run_dir`.
pub(super) fn install_runners(run_dir: &Path) -> io::Result<()> {
    fs::create_dir_all(run_dir.join("context"))?;
    RUNNERS.iter().try_for_each(|(name, text)| fs::write(run_dir.join(name), text))
}

/// A Python program that compiles the modules of contexts, so that no context has to. Without success they run all the
/// same.
const COMPILE_CONTEXTS: &str = r#"import os
directory = "DIRECTORY"
if not os.path.exists(os.path.join(directory, "__pycache__")):
    try:
        import compileall
        compileall.compile_dir(directory, quiet=2)
    except Exception:
        pass
"#;

/// See [`COMPILE_CONTEXTS`].
pub(super) fn compile_contexts(run_dir: &Path) -> String {
    COMPILE_CONTEXTS.replace("DIRECTORY", &run_dir.join("context").display().to_string())
}

/// What the image wants in every environment: `NAME=value` lines of `/etc/environment`, as pam_env(7) has
/// them.
pub(super) fn image_environment() -> Vec<(String, String)> {
    let text = fs::read_to_string("/etc/environment").unwrap_or_default();
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let variables = lines.filter_map(|line| line.split_once('='));
    variables.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect()
}

/// The file that runs Python programs.
pub(super) fn python_runner(run_dir: &Path) -> PathBuf {
    run_dir.join("python.py")
}

/// Permissions of sources and their directories: scripts may execute themselves (`exec "$0"`).
const SOURCE_MODE: u32 = 0o755;

/// The directory that holds the source of one run, by the name that the program has for itself, for as long as any of its
/// processes lives. Nothing is created until a file is stored.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    /// User and group of the program. `None`: root's.
    owner: Option<(u32, u32)>,
    is_stored: AtomicBool,
}

impl Files {
    pub(super) fn new(dir: PathBuf, owner: Option<(u32, u32)>) -> Self {
        Self { dir, owner, is_stored: AtomicBool::new(false) }
    }

    pub(super) fn store(&self, name: &str, source: &[u8]) -> io::Result<OsString> {
        fs::create_dir_all(&self.dir)?;
        self.is_stored.store(true, Ordering::Relaxed);
        let path = self.dir.join(name);
        fs::write(&path, source)?;
        for path in [&self.dir, &path] {
            fs::set_permissions(path, fs::Permissions::from_mode(SOURCE_MODE))?;
            if let Some((uid, gid)) = self.owner {
                std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
            }
        }
        Ok(path.into_os_string())
    }

    /// Stores a program as [`NODE_RUNNER`] expects it, which starts in `cwd`.
    fn store_for_node(&self, source: &[u8], cwd: &Path) -> io::Result<OsString> {
        let script = self.store("main.js", source)?;
        fs::hard_link(&script, self.dir.join("main.mjs"))?;
        std::os::unix::fs::symlink(cwd.join("node_modules"), self.dir.join("node_modules"))?;
        Ok(script)
    }

    /// Whether there is anything to keep.
    pub(super) fn is_stored(&self) -> bool {
        self.is_stored.load(Ordering::Relaxed)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // Most runs store nothing; what a program itself does to its directory is its own affair.
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// The command that runs `source` in `cwd`.
pub(super) fn argv(
    program: Program,
    source: &[u8],
    files: &Files,
    (run_dir, cwd): (&Path, &Path),
) -> io::Result<Vec<OsString>> {
    Ok(match program {
        Program::Command if source.len() <= MAX_ARGUMENT_BYTES => {
            vec![shell(), "-c".into(), os_string(source)?]
        }
        Program::Command => vec![shell(), files.store("command", source)?],
        Program::Bash => vec!["bash".into(), files.store("main.sh", source)?],
        Program::Python => {
            vec!["python3".into(), python_runner(run_dir).into(), files.store("main.py", source)?]
        }
        Program::Node => {
            let runner = run_dir.join(NODE_RUNNER).into();
            vec!["node".into(), "--require".into(), runner, files.store_for_node(source, cwd)?]
        }
        Program::Rust => {
            let source = PathBuf::from(files.store("main.rs", source)?);
            let dir = source.parent().unwrap_or(Path::new("/")).as_os_str();
            vec!["sh".into(), "-c".into(), RUST.into(), "rust".into(), dir.into()]
        }
        Program::Arguments => source.split(|byte| *byte == 0).map(os_string).collect::<io::Result<_>>()?,
        Program::Unspecified => return Err(io::Error::other("the program has no kind")),
    })
}

/// The command that starts a context; its control socket is standard input. `None`: there are none of this kind.
pub(super) fn context_argv(program: Program, run_dir: &Path) -> Option<Vec<OsString>> {
    match program {
        Program::Python => {
            Some(vec!["python3".into(), python_runner(run_dir).into(), run_dir.join("context.py").into()])
        }
        Program::Node => Some(vec![
            "sh".into(),
            "-c".into(),
            NODE_CONTEXT.into(),
            "node".into(),
            run_dir.join("context.js").into(),
        ]),
        _ => None,
    }
}

/// Bash where there is one: it is what the people and models that write commands have in mind.
fn shell() -> OsString {
    if Path::new("/bin/bash").exists() { "/bin/bash".into() } else { "/bin/sh".into() }
}

fn os_string(bytes: &[u8]) -> io::Result<OsString> {
    use std::os::unix::ffi::OsStrExt as _;
    if bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a command must not contain NUL"));
    }
    Ok(OsStr::from_bytes(bytes).to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test runs Node.js beside the guest")]
    fn cells_do_as_scripts_do() {
        let runners = concat!(env!("CARGO_MANIFEST_DIR"), "/src/exec/runners");
        let (test, cell) = (format!("{runners}/cell.test.js"), format!("{runners}/cell.js"));
        let output = Command::new("node").args(["--expose-internals", &test, &cell]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
