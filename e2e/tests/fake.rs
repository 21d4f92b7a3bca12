//! The conformance list on the engine without VMs: the real host and the real guest, in milliseconds.

use bouvet_e2e::drive::patient;
use bouvet_e2e::site::{Site, small};
use bouvet_host::{Happening, Watched};

bouvet_e2e::conform!(bouvet_e2e::site::Site::fake);

/// Events went on for as long as anybody had a handle to the host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_a_host_sees_its_end() {
    let site = Site::fake().await.unwrap();
    let (host, mut events) = (site.host.clone(), site.host.events());
    let id = host.create(small()).await.unwrap().id();
    site.end().await;
    let mut seen = Vec::new();
    let watching = async {
        while let Some(watched) = events.next().await {
            seen.push(watched);
        }
    };
    let watched = tokio::time::timeout(patient(60), watching).await;
    assert!(watched.is_ok(), "its events never ended");
    let seen: Vec<_> = seen
        .into_iter()
        .map(|watched| match watched {
            Watched::Event(event) => (event.sandbox, event.happening),
            Watched::Missed(count) => panic!("{count} events were missed"),
        })
        .collect();
    assert_eq!(seen, [Happening::Create, Happening::Start, Happening::Destroy].map(|event| (id, event)));
    assert_eq!(host.events().next().await, None, "who comes later is at the end at once");
}
