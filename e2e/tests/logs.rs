//! What a host's log has of a sandbox, by its description. Alone in its process, whose log it is.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io;
use std::sync::{Arc, Mutex};

use bouvet_e2e::drive::sh;
use bouvet_e2e::site::{Site, Vmm, small};
use bouvet_host::{BoxConfig, LogLevel};
use tracing_subscriber::fmt::MakeWriter;

/// Keeps what is logged.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Kept {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Kept {
    /// What was logged since this was called last.
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_is_logged_as_its_description_says() {
    let kept = Kept::default();
    tracing_subscriber::fmt().with_writer(kept.clone()).with_ansi(false).init();
    let Some(site) = Site::pooled(Vmm::Qemu, None).await else { return };
    let live = async |change: &dyn Fn(&mut BoxConfig)| {
        let mut config = small();
        change(&mut config);
        let sandbox = site.host.create(config).await.unwrap();
        sh(&sandbox, "echo a line for the console >/dev/hvc0; true").await;
        sandbox.destroy().await;
        kept.take()
    };
    let usual = live(&|_| ()).await;
    assert!(usual.contains("sandbox created") && usual.contains("sandbox destroyed"), "{usual}");
    assert!(!usual.contains("gRPC") && !usual.contains("a line for the console"), "{usual}");

    let quiet = live(&|config| config.log_level = LogLevel::Warn).await;
    assert!(!quiet.contains("sandbox"), "{quiet}");
    let loud = live(&|config| config.log_level = LogLevel::Debug).await;
    assert!(loud.contains("console=a line for the console"), "{loud}");

    let calls = live(&|config| (config.debug_grpc, config.privileged) = (true, false)).await;
    for call in ["Furnish", "Exec"] {
        let named = format!("call=/bouvet.guest.v1.Guest/{call} status=\"ok\"");
        assert!(calls.contains(&named), "{named} is not in {calls}");
    }
    site.end().await;
}
