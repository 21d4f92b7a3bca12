//! The page for people who open the server in a browser.

use axum::response::Html;

/// What this server is, and how to use it.
pub(super) fn index(engine: &str, acceleration: &str) -> Html<String> {
    let version = env!("CARGO_PKG_VERSION");
    Html(
        include_str!("index.html")
            .replace("{version}", version)
            .replace("{engine}", &format!("{engine} ({acceleration})")),
    )
}
