//! Panics. One in a request fails that request alone; each is counted, and logged by its place.
//!
//! The text of a panic can hold what a client sent (`str` indices print the string), so it is never logged.

use std::any::Any;
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;

use crate::failure::{Answer, Failure, Kind};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Panics since the process started.
pub(crate) fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Counts and logs the panics of this process from now on, instead of printing their text.
pub(crate) fn watch() {
    std::panic::set_hook(Box::new(note));
}

fn note(info: &PanicHookInfo<'_>) {
    let number = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(place, number, "panic: this is a fault of Bouvet; please report its place");
}

/// The result of `work`, or the answer to a request whose work panicked.
pub(crate) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    // What the work held is dropped; locks that it held are usable, as none of ours stays poisoned.
    AssertUnwindSafe(work).catch_unwind().await.map_err(|_: Box<dyn Any + Send>| {
        let fact = "the server failed at this request, because of a fault of its own";
        Failure::api(StatusCode::INTERNAL_SERVER_ERROR, Kind::Failed, fact)
    })
}

/// Answers 500 where a handler panics. Without this the connection ends, with all other requests on it.
pub(crate) async fn answered(request: Request, next: Next) -> Response {
    caught(next.run(request)).await.unwrap_or_else(|failure| Answer::from(failure).into_response())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn panic_fails_its_request_alone() {
        // The usual hook stays: other tests run at the same time.
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            note(info);
            usual(info);
        }));
        let before = count();
        async fn broken() -> &'static str {
            panic!("marked-text")
        }
        let app = Router::new()
            .route("/broken", get(broken))
            .route("/sound", get(|| async { "fine" }))
            .layer(axum::middleware::from_fn(answered));
        let ask = |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            app.clone().oneshot(request)
        };
        let response = ask("/broken").await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
        assert!(!String::from_utf8_lossy(&body).contains("marked-text"), "{body:?}");
        assert_eq!(ask("/sound").await.unwrap().status(), StatusCode::OK);
        assert!(count() > before);
    }
}
