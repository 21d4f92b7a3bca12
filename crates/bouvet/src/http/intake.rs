//! The body of a POST to `/mcp`, within the bounds of its method and the memory that all bodies share.
//!
//! The declared length is checked before anything is read, and again once the beginning names the method. The memory for
//! the body and for what is made of it is taken then. What is parsed holds its part of the budget until the call ends.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Json, Response};
use http_body_util::BodyExt as _;
use rmcp::model::ErrorCode;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::budget::{Budget, Charge};
use crate::mcp::Arguments;
use crate::mcp::intake::{self, Incoming, MAX_DECODED_BYTES, MAX_MESSAGE_BYTES};
use crate::mcp::message::{self, Malformed};

/// A body up to this size is read at once; the beginning of a larger one is looked at first.
const SMALL_BYTES: usize = 64 * 1024;
/// The longest wait for a body as a whole.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest wait for the rest of a body that was refused.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Refused bodies that are read at the same time: of more, small requests would wait for their turn.
static DRAINS: Semaphore = Semaphore::const_new(2);
/// When a client that found no room may come again, in seconds.
const RETRY_AFTER_SECS: &str = "1";

/// Why a body is not served.
#[derive(Debug)]
pub(super) enum Refused {
    Malformed(Malformed),
    /// Other bodies take the memory.
    Busy,
    /// The body did not come in time.
    Late,
}

impl From<Malformed> for Refused {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl Refused {
    pub(super) fn response(&self) -> Response {
        let answer = |status: StatusCode, malformed: &Malformed| (status, Json(malformed.answer()));
        match self {
            Self::Malformed(malformed) if malformed.is_too_large => {
                answer(StatusCode::PAYLOAD_TOO_LARGE, malformed).into_response()
            }
            Self::Malformed(malformed) => answer(StatusCode::BAD_REQUEST, malformed).into_response(),
            Self::Busy => {
                let text = "the server reads as many large requests as it has memory for; try again";
                let malformed = Malformed::new(ErrorCode::INTERNAL_ERROR, text);
                let retry = [(header::RETRY_AFTER, RETRY_AFTER_SECS)];
                (retry, answer(StatusCode::SERVICE_UNAVAILABLE, &malformed)).into_response()
            }
            Self::Late => {
                let text = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
                let malformed = Malformed::new(ErrorCode::INVALID_REQUEST, text);
                answer(StatusCode::REQUEST_TIMEOUT, &malformed).into_response()
            }
        }
    }
}

/// Reads the message in `body`. The arguments of a call are apart, with their part of the budget.
pub(super) async fn read(mut body: Body, budget: &Arc<Budget>) -> Result<(Incoming, Arguments), Refused> {
    let (bytes, mut charge) = match collect(&mut body, budget).await {
        Ok(collected) => collected,
        Err(refused) => {
            tokio::spawn(drain(body));
            return Err(refused);
        }
    };
    let parsed = match bytes.len() <= SMALL_BYTES {
        true => parse(&bytes),
        // It takes long enough to hold up others of this thread.
        false => tokio::task::spawn_blocking(move || parse(&bytes)).await.unwrap_or_else(|_| {
            Err(Malformed::new(ErrorCode::INTERNAL_ERROR, "the server failed at this request"))
        }),
    };
    let mut incoming = parsed?;
    charge.shrink(incoming.decoded_bytes());
    let arguments = incoming.arguments.take();
    Ok((incoming, Arguments::new(arguments, charge)))
}

fn parse(bytes: &[u8]) -> Result<Incoming, Malformed> {
    intake::read(message::without_mark(bytes))
}

async fn collect(body: &mut Body, budget: &Arc<Budget>) -> Result<(Vec<u8>, Charge), Refused> {
    let declared = body.size_hint().exact();
    let too_long = |bound: u64| Refused::Malformed(intake::too_long(bound));
    if declared.is_some_and(|declared| declared > MAX_MESSAGE_BYTES) {
        return Err(too_long(MAX_MESSAGE_BYTES));
    }
    let deadline = Instant::now() + BODY_TIMEOUT;
    let small = SMALL_BYTES as u64;
    let mut charge = budget.charge(2 * small, true).ok_or(Refused::Busy)?;
    let (mut bytes, mut bound) = (Vec::new(), None);
    while let Some(part) = next(body, deadline).await? {
        let length = bytes.len() as u64 + part.len() as u64;
        if length > small && bound.is_none() {
            let beginning = [&bytes[..], &part[..part.len().min(SMALL_BYTES)]].concat();
            let most = intake::bound(&beginning).min(budget.large_bytes() / 2);
            let expected = declared.unwrap_or(most);
            if expected > most {
                return Err(too_long(most));
            }
            // Both the text and what is made of it are there for a moment.
            let needed = expected + expected.min(MAX_DECODED_BYTES);
            charge = budget.charge(needed, false).ok_or(Refused::Busy)?;
            bytes.reserve_exact(
                usize::try_from(declared.unwrap_or(length)).unwrap_or(0).saturating_sub(bytes.len()),
            );
            bound = Some(most);
        }
        if length > bound.unwrap_or(small) {
            return Err(too_long(bound.unwrap_or(small)));
        }
        bytes.extend_from_slice(&part);
    }
    Ok((bytes, charge))
}

/// Drops what still comes of a body that was refused. Many clients send all of it before they read the answer, and would
/// find the connection reset instead.
async fn drain(mut body: Body) {
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    let Ok(Ok(_permit)) = timeout_at(deadline, DRAINS.acquire()).await else { return };
    let mut dropped_bytes = 0;
    while let Ok(Some(part)) = next(&mut body, deadline).await {
        dropped_bytes += part.len() as u64;
        if dropped_bytes > MAX_MESSAGE_BYTES {
            return;
        }
    }
}

/// The next part of a body; `None` at its end.
async fn next(body: &mut Body, deadline: Instant) -> Result<Option<Bytes>, Refused> {
    loop {
        let frame = timeout_at(deadline, body.frame()).await.map_err(|_| Refused::Late)?;
        match frame {
            // Trailers have no meaning here.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            // The client went away, or lied about the length.
            Some(Err(error)) => {
                return Err(Malformed::new(ErrorCode::PARSE_ERROR, error.to_string()).into());
            }
            None => return Ok(None),
        }
    }
}
