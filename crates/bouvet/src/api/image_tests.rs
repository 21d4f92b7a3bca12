//! Images over the API: archives both ways, names, passwords.
#![expect(clippy::unwrap_used, reason = "these are tests")]

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use hyper::Method;
use serde_json::{Value, json};

use super::client::{CallError, path};
use super::shape::{FailureView, ImageView, LogoutView, PrunedView, PullLine};
use super::tests::Site;

/// An archive of `docker save` with one image of one empty layer.
fn archive(name: &str) -> Vec<u8> {
    let layer = [0_u8; 1024];
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "os": "linux",
        "architecture": architecture,
        "config": { "Cmd": ["/bin/app"], "Labels": { "name": name } },
        "rootfs": { "type": "layers", "diff_ids": [bouvet_image_digest(&layer)] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(Vec::new());
    let (config, manifest) = (config.to_string(), manifest.to_string());
    for (name, data) in
        [("config.json", config.as_bytes()), ("manifest.json", manifest.as_bytes()), ("layer.tar", &layer)]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, data).unwrap();
    }
    archive.into_inner().unwrap()
}

/// The digest of a layer of 1024 zeros.
fn bouvet_image_digest(layer: &[u8]) -> String {
    bouvet_host::Digest::of(layer).to_string()
}

async fn load(site: &Site, archive: Vec<u8>) -> Vec<PullLine> {
    let pieces: Vec<_> = archive.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let path = path(&["images", "load"], &[("name", "app.tar")]);
    let mut lines = site.client.upload_for_lines::<PullLine>(&path, stream::iter(pieces)).await.unwrap();
    let mut all = Vec::new();
    while let Some(line) = lines.next().await.unwrap() {
        all.push(line);
    }
    all
}

async fn refused(site: &Site, parts: &[&str], told: &Value) -> FailureView {
    match site.client.call::<Value>(Method::POST, &path(parts, &[]), Some(told)).await {
        Err(CallError::Refused(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

async fn names(site: &Site) -> Vec<String> {
    let images: Vec<ImageView> = site.client.get("/v1/images").await.unwrap();
    images.into_iter().flat_map(|image| image.references).collect()
}

#[tokio::test]
async fn images_are_loaded_named_saved_and_pruned() {
    let site = Site::start().await;
    assert_eq!(names(&site).await, ["base"]);
    let lines = load(&site, archive("app:1")).await;
    let name = "docker.io/library/app:1";
    let is_loaded =
        |line: &PullLine| matches!(line, PullLine::Loaded { references, .. } if references == &[name]);
    assert!(lines.iter().any(is_loaded) && lines.last() == Some(&PullLine::Finished), "{lines:?}");
    let tag = json!({ "source": "app:1", "target": "copy:2" });
    site.client.call::<Value>(Method::POST, "/v1/images/tag", Some(&tag)).await.unwrap();
    assert_eq!(names(&site).await, ["base", "docker.io/library/app:1", "docker.io/library/copy:2"]);

    let mut saved = site.client.fetch("/v1/images/save", &json!({ "names": ["copy:2"] })).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = saved.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    let other = Site::start().await;
    let lines = load(&other, bytes).await;
    assert_eq!(lines.last(), Some(&PullLine::Finished), "{lines:?}");
    let inspected: Value = other.client.get("/v1/image?name=copy:2").await.unwrap();
    assert_eq!(inspected["config"]["cmd"], json!(["/bin/app"]));

    let kept: PrunedView =
        site.client.call(Method::POST, "/v1/images/prune", super::client::NOTHING).await.unwrap();
    assert!(kept.removed.is_empty(), "it has names");
    let gone: PrunedView =
        site.client.call(Method::POST, "/v1/images/prune?all=true", super::client::NOTHING).await.unwrap();
    assert!(gone.removed.len() == 1 && gone.freed_bytes > 0);
    assert_eq!(names(&site).await, ["base"]);
    site.alone.end().await;
    other.alone.end().await;
}

#[tokio::test]
async fn base_images_are_not_images_of_the_cache() {
    let site = Site::start().await;
    load(&site, archive("app:1")).await;
    for (name, shown) in [("", "base"), ("base", "base"), ("devbox-full", "devbox-full")] {
        let cannot = |what: &str| format!("`{shown}` is the server's own image and cannot be {what}");
        let failure = site.refused(Method::DELETE, &format!("/v1/image?name={name}")).await;
        assert_eq!(failure.error, cannot("removed"));
        for (verb, told, what) in [
            ("tag", json!({ "source": name, "target": "b" }), "tagged"),
            ("tag", json!({ "source": "app:1", "target": name }), "the new name of another one"),
            ("save", json!({ "names": ["app:1", name] }), "saved"),
            ("pull", json!({ "reference": name }), "pulled"),
        ] {
            assert_eq!(refused(&site, &["images", verb], &told).await.error, cannot(what));
        }
    }
    let inspected: Value = site.client.get("/v1/image?name=").await.unwrap();
    assert_eq!((&inspected["reference"], &inspected["id"]), (&json!("base"), &json!("")));
    // The second one is known where its file is beside the first.
    assert_eq!(site.refused(Method::GET, "/v1/image?name=devbox-full").await.kind, "no_image");
    assert_eq!(names(&site).await, ["base", "docker.io/library/app:1"]);
    std::fs::write(site.dir.path().join("devbox-full.ext4"), [1; 4096]).unwrap();
    assert_eq!(names(&site).await, ["base", "devbox-full", "docker.io/library/app:1"]);
    let inspected: Value = site.client.get("/v1/image?name=devbox-full").await.unwrap();
    assert_eq!((&inspected["reference"], &inspected["size_bytes"]), (&json!("devbox-full"), &json!(4096)));
    site.alone.end().await;
}

#[tokio::test]
async fn load_and_save_errors_arrive_at_once() {
    let site = Site::start().await;
    let failure = refused(&site, &["images", "save"], &json!({ "names": ["none"] })).await;
    assert_eq!((failure.kind.as_str(), failure.hint.is_empty()), ("no_image", false));
    assert_eq!(refused(&site, &["images", "save"], &json!({ "names": [] })).await.kind, "invalid");
    let failure = refused(&site, &["images", "tag"], &json!({ "source": "none", "target": "b" })).await;
    assert_eq!(failure.kind, "no_image");
    assert_eq!(
        refused(&site, &["images", "tag"], &json!({ "source": "none", "target": "B" })).await.kind,
        "invalid"
    );
    let lines = load(&site, b"no archive".to_vec()).await;
    assert!(
        matches!(lines.last(), Some(PullLine::Failed(failure)) if failure.error.contains("`app.tar`")),
        "{lines:?}"
    );
    site.alone.end().await;
}

#[tokio::test]
async fn logins_name_a_registry_and_a_user() {
    let site = Site::start().await;
    let login = |registry: &str, username: &str| json!({ "registry": registry, "username": username, "password": "p" });
    assert_eq!(refused(&site, &["registries", "login"], &login("not a host", "a")).await.kind, "invalid");
    assert_eq!(refused(&site, &["registries", "login"], &login("127.0.0.1:1", "a:b")).await.kind, "invalid");
    let failure = refused(&site, &["registries", "login"], &login("127.0.0.1:1", "a")).await;
    assert!(failure.error.contains("`127.0.0.1:1`"), "{}", failure.error);
    let path = path(&["registries", "logout"], &[]);
    let told = json!({ "registry": "127.0.0.1:1" });
    let gone: LogoutView = site.client.call(Method::POST, &path, Some(&told)).await.unwrap();
    assert!(!gone.was_known);
    site.alone.end().await;
}
