//! Servers at the far end of the cable, by `web.py`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Stdio};

use bouvet_e2e::internet::Internet;
use bouvet_e2e::registry::command;
use tempfile::TempDir;

/// They, for as long as this is held.
pub(crate) struct Web {
    process: Child,
    _dir: TempDir,
}

impl Web {
    /// Serves on `address`, with this certificate and its key.
    pub(crate) fn start(internet: &Internet, address: &str, certificate: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(certificate.as_bytes()).unwrap();
        let mut python = command("python3");
        python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/web.py"));
        python.arg(dir.path()).arg(address).arg(file.path());
        python.stdout(Stdio::piped()).stderr(Stdio::null());
        // A process is where the thread is that starts it.
        let mut process = internet.there(async move { python.spawn() }).unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "serving\n", "web.py does not serve");
        Self { process, _dir: dir }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
