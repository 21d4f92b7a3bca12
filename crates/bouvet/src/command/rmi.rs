//! `bouvet rmi`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use clap::Args;
use hyper::Method;
use serde_json::Value;

use super::outcome::{Connection, Failed};
use super::run::image;
use super::usage;
use crate::api::client::{CallError, Client, path};
use crate::api::shape::SandboxView;
use crate::failure::Kind;

#[derive(Debug, Args)]
pub(crate) struct Line {
    #[command(flatten)]
    platform: usage::Platform,
    /// Also remove the names of images in use, and do not fail for images that do not exist
    #[arg(short, long)]
    force: bool,
    /// Images: names, or at least twelve digits of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Line {
    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        self.platform.check()
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let force = line.force.to_string();
    let remove = async |client: &Client, typed: &str| {
        let name = image(typed)?;
        let path = path(&["image"], &[("name", &name), ("force", &force)]);
        match client.act(Method::DELETE, &path).await {
            Err(CallError::Refused(failure)) if line.force && failure.kind == Kind::NoImage.name() => {
                Err(Failed::not_needed(failure.error))
            }
            Err(CallError::Refused(failure)) if failure.error.ends_with(" is in use") => {
                Err(in_use(typed, &name, client).await)
            }
            done => Ok(done?),
        }
    };
    connection.each(&line.images, remove).await
}

/// The refusal to remove an image: with its name as it was typed, and the sandboxes that use it.
async fn in_use(typed: &str, name: &str, client: &Client) -> Failed {
    let id = image_id(name, client).await;
    let all = path(&["sandboxes"], &[("all", "true")]);
    let (mut users, mut known) = (Vec::new(), BTreeMap::new());
    for view in client.get::<Vec<SandboxView>>(&all).await.unwrap_or_default() {
        if let Entry::Vacant(unknown) = known.entry(view.image.clone()) {
            unknown.insert(image_id(&view.image, client).await);
        }
        if id.is_some() && known.get(&view.image) == Some(&id) {
            users.push(format!("`{}`", if view.name.is_empty() { view.short_id() } else { &view.name }));
        }
    }
    let typed = typed.escape_debug();
    let by = if users.is_empty() { String::new() } else { format!(" by {}", users.join(", ")) };
    Failed::new(format!("the image `{typed}` is in use{by}"))
        .hint("remove the sandbox with `bouvet rm`, or only the name of the image with `bouvet rmi --force`")
}

/// The id of an image of the cache; base images have none.
async fn image_id(name: &str, client: &Client) -> Option<String> {
    if bouvet_host::is_base_image(name) {
        return None;
    }
    // Without an answer its users are not named.
    let image: Value = client.get(&path(&["image"], &[("name", name)])).await.ok()?;
    image["id"].as_str().filter(|id| !id.is_empty()).map(str::to_owned)
}
