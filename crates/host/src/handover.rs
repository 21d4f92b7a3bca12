//! Things are made for callers that may go away meanwhile. What nobody takes is discarded: nobody would know of it.

use tokio::sync::oneshot;

/// The work that makes a thing, to be run in a task of its own, and its result, for the caller. If the caller drops the
/// latter before the result is there, or before it has seen it, the thing goes to `discard`.
pub(crate) fn hand_over<T, E, D>(
    make: impl Future<Output = Result<T, E>> + Send,
    discard: impl FnOnce(T) -> D + Send,
) -> (impl Future<Output = ()> + Send, impl Future<Output = Option<Result<T, E>>> + Send)
where
    T: Clone + Send,
    E: Send,
    D: Future<Output = ()> + Send,
{
    let (done, made) = oneshot::channel();
    let (take, taken) = oneshot::channel::<()>();
    let work = async move {
        let result = make.await;
        let thing = result.as_ref().ok().cloned();
        // If the caller has gone, so has the end from which it would be taken.
        drop(done.send(result));
        if let Some(thing) = thing
            && taken.await.is_err()
        {
            discard(thing).await;
        }
    };
    let result = async move {
        let result = made.await.ok()?;
        take.send(()).ok();
        Some(result)
    };
    (work, result)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    type Made = Result<u32, &'static str>;
    /// All that was discarded.
    type Discarded = Arc<Mutex<Vec<u32>>>;

    /// Makes what is sent, and collects what is discarded.
    fn handed_over()
    -> (oneshot::Sender<Made>, Discarded, tokio::task::JoinHandle<()>, impl Future<Output = Option<Made>>)
    {
        let (ready, made) = oneshot::channel();
        let discarded = Arc::new(Mutex::new(Vec::new()));
        let known = discarded.clone();
        let discard = |thing| async move { known.lock().unwrap().push(thing) };
        let (work, result) = hand_over(async { made.await.unwrap() }, discard);
        (ready, discarded, tokio::spawn(work), result)
    }

    #[tokio::test]
    async fn taken_things_are_not_discarded() {
        let (ready, discarded, work, result) = handed_over();
        ready.send(Ok(7)).unwrap();
        assert_eq!(result.await, Some(Ok(7)));
        work.await.unwrap();
        assert!(discarded.lock().unwrap().is_empty());
        let (ready, discarded, work, result) = handed_over();
        ready.send(Err("no")).unwrap();
        assert_eq!(result.await, Some(Err("no")));
        work.await.unwrap();
        assert!(discarded.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn abandoned_things_are_discarded() {
        let (ready, discarded, work, result) = handed_over();
        drop(result);
        ready.send(Ok(7)).unwrap();
        work.await.unwrap();
        assert_eq!(*discarded.lock().unwrap(), [7], "the caller went before it was made");

        let (ready, discarded, work, result) = handed_over();
        ready.send(Ok(7)).unwrap();
        // It is on its way, and nobody reads it.
        tokio::task::yield_now().await;
        drop(result);
        work.await.unwrap();
        assert_eq!(*discarded.lock().unwrap(), [7], "the caller went before it saw it");
    }
}
