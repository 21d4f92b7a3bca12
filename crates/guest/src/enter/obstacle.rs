//! Why a program could not be executed, in words. The kernel's errors say what failed and not of which file: a script
//! whose interpreter is missing is "not found", as the script itself would be.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::exec::entry::Obstacle;

/// The part of a script that the kernel looks for its first line in (`BINPRM_BUF_SIZE`, execve(2)).
const FIRST_LINE_BYTES: usize = 256;
/// Interpreters of interpreters that the kernel follows (`fs/exec.c`, `exec_binprm`).
const MAX_INTERPRETERS: usize = 5;
/// Entries of an ELF program header table, and bytes of a loader's name, that are read.
const MAX_SEGMENTS: u16 = 512;
const MAX_LOADER_BYTES: u64 = 4096;
/// Permissions to execute of anybody.
const EXECUTE_BITS: u32 = 0o111;

/// Why `program` was not executed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// There is no such file.
    Missing,
    /// The file that a script or a dynamic program names is missing.
    Interpreter {
        of: PathBuf,
        kind: &'static str,
        name: Vec<u8>,
    },
    Directory(PathBuf),
    NotExecutable {
        file: PathBuf,
        mode: u32,
    },
    /// The content of the file prevents its execution.
    Format {
        file: PathBuf,
        fact: String,
    },
    /// Nothing that is known of the file explains the error.
    Unknown,
}

impl Why {
    /// Why executing `program`, searched for in `path`, ended with `error`.
    pub(super) fn of(program: &OsStr, path: &OsStr, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::EACCES | libc::ENOEXEC | libc::EISDIR) => {}
            _ => return Self::Unknown,
        }
        let found = candidates(program, path).into_iter().find_map(|file| {
            let about = fs::metadata(&file).ok()?;
            Some((file, about))
        });
        let Some((file, about)) = found else {
            // Not to be seen is another thing than not to be there.
            let is_missing = error.raw_os_error() == Some(libc::ENOENT);
            return if is_missing { Self::Missing } else { Self::Unknown };
        };
        Self::of_file(file, &about, MAX_INTERPRETERS)
    }

    fn of_file(file: PathBuf, about: &Metadata, interpreters: usize) -> Self {
        if about.is_dir() {
            return Self::Directory(file);
        }
        if !about.is_file() || about.mode() & EXECUTE_BITS == 0 {
            return Self::NotExecutable { file, mode: about.mode() & 0o7777 };
        }
        let Ok(named) = Named::read(&file) else { return Self::Unknown };
        let (kind, name) = match named {
            Named::Nothing => return Self::Unknown,
            Named::Unfit(fact) => return Self::Format { file, fact },
            Named::Interpreter(name) => ("interpreter", name),
            Named::Loader(name) => ("loader", name),
        };
        let next = PathBuf::from(OsStr::from_bytes(&name));
        match fs::metadata(&next) {
            Err(_) => Self::Interpreter { of: file, kind, name },
            Ok(about) if interpreters > 0 => Self::of_file(next, &about, interpreters - 1),
            Ok(_) => Self::Unknown,
        }
    }

    /// The kind of obstacle, for the exit codes 127 and 126 of shells and Docker.
    pub(super) fn obstacle(&self) -> Obstacle {
        match self {
            Self::Missing | Self::Interpreter { .. } => Obstacle::Missing,
            _ => Obstacle::Unfit,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |file: &Path| file.to_string_lossy().escape_debug().to_string();
        match self {
            Self::Missing => write!(f, "it is not in the sandbox"),
            Self::Interpreter { of, kind, name } => {
                let lossy = String::from_utf8_lossy(name);
                write!(
                    f,
                    "its {kind} `{}`, named in `{}`, is not in the sandbox",
                    lossy.escape_debug(),
                    shown(of)
                )?;
                if lossy.ends_with('\r') {
                    write!(f, " (its lines end in CR LF instead of LF)")?;
                }
                Ok(())
            }
            Self::Directory(file) => write!(f, "`{}` is a directory", shown(file)),
            Self::NotExecutable { file, mode } => {
                write!(f, "`{}` is not executable: its mode is {mode:04o}", shown(file))
            }
            Self::Format { file, fact } => write!(f, "exec format error: `{}` {fact}", shown(file)),
            Self::Unknown => write!(f, "the kernel refused it"),
        }
    }
}

/// Becomes the first of `words`, searched for in `path`, with `env`. Returns only when that failed. Neither the standard
/// library nor execvp(3) will do: that of glibc runs what is not a program by `/bin/sh`, that of musl does not.
pub(super) fn execute(words: &[OsString], env: &HashMap<OsString, OsString>, path: &OsStr) -> io::Error {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let variable =
        |(name, value): (&OsString, &OsString)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat());
    let argv: io::Result<Vec<_>> = words.iter().map(|word| text(word.as_bytes())).collect();
    let env: io::Result<Vec<_>> = env.iter().map(variable).collect();
    let (argv, env) = match (argv, env) {
        (Ok(argv), Ok(env)) => (argv, env),
        (Err(error), _) | (_, Err(error)) => return error,
    };
    let mut last = io::Error::from_raw_os_error(libc::ENOENT);
    for file in candidates(&words[0], path) {
        let Ok(file) = text(file.as_os_str().as_bytes()) else { continue };
        let error = execve(&file, &argv, &env);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => last = error,
            _ => return error,
        }
    }
    last
}

fn execve(file: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    #[expect(unsafe_code, reason = "no safe wrapper exists that runs no shell in its place")]
    // SAFETY: all pointers are to texts that end in NUL and outlive the call; both lists end in a null pointer.
    unsafe {
        libc::execve(file.as_ptr(), argv.as_ptr(), env.as_ptr());
    }
    io::Error::last_os_error()
}

/// The files that `program` may mean, as execvp(3) tries them.
fn candidates(program: &OsStr, path: &OsStr) -> Vec<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return vec![program.into()];
    }
    std::env::split_paths(path).map(|dir| dir.join(program)).collect()
}

/// The interpreter or loader that a file names.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    Nothing,
    Interpreter(Vec<u8>),
    Loader(Vec<u8>),
    /// It cannot be executed: why.
    Unfit(String),
}

impl Named {
    fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut first = Vec::new();
        (&mut file).take(FIRST_LINE_BYTES as u64).read_to_end(&mut first)?;
        if let Some(line) = first.strip_prefix(b"#!") {
            return Ok(Self::of_first_line(line));
        }
        if first.starts_with(b"\x7fELF") {
            return Self::of_elf(&mut file, &first);
        }
        let fact = match first.is_empty() {
            true => "is empty",
            false if first.contains(&0) => "is not a program of Linux",
            false => "is text without a first line like `#!/bin/sh`",
        };
        Ok(Self::Unfit(fact.to_owned()))
    }

    /// The word after `#!`.
    fn of_first_line(line: &[u8]) -> Self {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut words = line.split(|byte| matches!(byte, b' ' | b'\t' | 0)).filter(|word| !word.is_empty());
        match words.next() {
            Some(word) => Self::Interpreter(word.to_vec()),
            None => Self::Unfit("names no interpreter after `#!`".to_owned()),
        }
    }

    /// The loader of a program, if it is for this machine (elf(5)).
    fn of_elf(file: &mut File, header: &[u8]) -> io::Result<Self> {
        let cut = || Self::Unfit("is cut off".to_owned());
        let Some(elf) = Elf::of(header) else { return Ok(cut()) };
        if elf.machine != Elf::OWN {
            let machine = Elf::machine_name(elf.machine);
            let own = std::env::consts::ARCH;
            return Ok(Self::Unfit(format!("is for {machine}, and the sandbox is {own}")));
        }
        for index in 0..u64::from(elf.segments.min(MAX_SEGMENTS)) {
            let Some((kind, at, bytes)) = elf.segment(file, index)? else { return Ok(cut()) };
            if kind != Elf::INTERPRETER {
                continue;
            }
            file.seek(SeekFrom::Start(at))?;
            let mut name = Vec::new();
            file.take(bytes.min(MAX_LOADER_BYTES)).read_to_end(&mut name)?;
            name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
            return Ok(Self::Loader(name));
        }
        Ok(Self::Nothing)
    }
}

/// The fields of an ELF header that decide whether a program runs, and by which loader.
struct Elf {
    machine: u16,
    is_64: bool,
    table: u64,
    segment_bytes: u16,
    segments: u16,
}

impl Elf {
    /// `PT_INTERP`.
    const INTERPRETER: u32 = 3;
    /// This machine: `EM_X86_64` or `EM_AARCH64`.
    const OWN: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };

    fn of(header: &[u8]) -> Option<Self> {
        // Both machines that guests run on are little-endian; others are told by their number.
        let is_little = *header.get(5)? != 2;
        let short = |at: usize| {
            let bytes: [u8; 2] = header.get(at..at + 2)?.try_into().ok()?;
            Some(if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
        };
        let long = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_le_bytes(header.get(at..at + 4)?.try_into().ok()?));
        let is_64 = *header.get(4)? == 2;
        let table = if is_64 { long(32)? } else { u64::from(word(28)?) };
        let [size_at, count_at] = if is_64 { [54, 56] } else { [42, 44] };
        Some(Self {
            machine: short(18)?,
            is_64,
            table,
            segment_bytes: short(size_at)?,
            segments: short(count_at)?,
        })
    }

    /// The kind, place and length of a segment; `None`: the file ends before it.
    fn segment(&self, file: &mut File, index: u64) -> io::Result<Option<(u32, u64, u64)>> {
        let mut entry = [0; 56];
        let bytes = if self.is_64 { 56 } else { 32 };
        let at =
            index.checked_mul(self.segment_bytes.into()).and_then(|offset| self.table.checked_add(offset));
        let Some(at) = at else { return Ok(None) };
        file.seek(SeekFrom::Start(at))?;
        match file.read_exact(&mut entry[..bytes]) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Ok(Some(match self.is_64 {
            true => (word(0), long(8), long(32)),
            false => (word(0), word(4).into(), word(16).into()),
        }))
    }

    fn machine_name(machine: u16) -> String {
        let name = match machine {
            3 => "x86",
            8 => "mips",
            20 => "powerpc",
            21 => "powerpc64",
            22 => "s390x",
            40 => "arm",
            62 => "x86_64",
            183 => "aarch64",
            243 => "riscv",
            258 => "loongarch",
            other => return format!("the machine {other} of ELF"),
        };
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn put(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    fn dir() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    /// The words for the kernel's error when it executes `program`.
    fn why(program: &Path) -> String {
        let error = execute(&[program.into()], &HashMap::new(), OsStr::new("/bin"));
        Why::of(program.as_os_str(), OsStr::new("/bin"), &error).to_string()
    }

    #[test]
    fn missing_interpreters_are_named() {
        let dir = dir();
        let script = dir.put("start.sh", b"#!/bin/sh\r\necho hi\r\n", 0o755);
        assert_eq!(
            why(&script),
            format!(
                "its interpreter `/bin/sh\\r`, named in `{}`, is not in the sandbox (its lines end in CR LF instead of LF)",
                script.display()
            )
        );
        let spaced = dir.put("spaced", b"#! \t/no/where -x\n", 0o755);
        assert!(why(&spaced).starts_with("its interpreter `/no/where`"), "{}", why(&spaced));
        let through = dir.put("through", format!("#!{}\n", spaced.display()).as_bytes(), 0o755);
        assert!(why(&through).contains(&format!("`/no/where`, named in `{}`", spaced.display())));
        assert_eq!(why(&dir.0.path().join("none")), "it is not in the sandbox");
    }

    #[test]
    fn files_that_are_not_programs_are_told_apart() {
        let dir = dir();
        let format = |name: &str, content: &[u8]| why(&dir.put(name, content, 0o755));
        assert!(format("text", b"echo hi\n").ends_with("is text without a first line like `#!/bin/sh`"));
        assert!(format("empty", b"").ends_with("is empty"));
        assert!(format("data", &[1, 0, 2]).ends_with("is not a program of Linux"));
        assert!(format("bare", b"#!\n").ends_with("names no interpreter after `#!`"));
        let mut elf = fs::read("/proc/self/exe").unwrap();
        elf.truncate(4096);
        elf[18..20].copy_from_slice(&243_u16.to_le_bytes());
        let own = std::env::consts::ARCH;
        assert!(format("riscv", &elf).ends_with(&format!("is for riscv, and the sandbox is {own}")));
        assert!(format("short", b"\x7fELF\x02\x01").ends_with("is cut off"));
        assert!(why(dir.0.path()).ends_with("is a directory"));
        assert!(
            why(&dir.put("plain", b"#!/bin/sh\n", 0o644)).ends_with("is not executable: its mode is 0644")
        );
    }

    #[test]
    fn missing_loaders_are_named() {
        let dir = dir();
        let mut elf = fs::read("/bin/true").unwrap();
        let Named::Loader(loader) = Named::read(Path::new("/bin/true")).unwrap() else { return };
        let at = elf.windows(loader.len()).position(|window| window == loader).unwrap();
        elf[at + 1] = b'X';
        let program = dir.put("foreign", &elf, 0o755);
        assert!(why(&program).starts_with("its loader `/X"), "{}", why(&program));
        assert_eq!(
            Why::of(program.as_os_str(), OsStr::new(""), &io::ErrorKind::NotFound.into()),
            Why::Unknown
        );
    }
}
