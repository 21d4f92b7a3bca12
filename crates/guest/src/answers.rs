//! What a handler with many answers returns.

use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// A stream of answers. Its drop is how a handler learns that the host has lost interest.
pub(crate) type Answers<T> = ReceiverStream<Result<T, Status>>;
