//! The contexts of a sandbox.

use tracing::debug;

use super::state::Refusal;
use super::{Sandbox, post_mortem};
use crate::context::{self, Context, ContextError, ContextId, ContextRequest};
use crate::handover::hand_over;

impl Sandbox {
    /// Starts a context: an interpreter that keeps its variables from one program to the next. When the returned future is
    /// dropped early, the context is destroyed.
    ///
    /// ```no_run
    /// use bouvet_host::{ContextRequest, ExecRequest, Program};
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let context = sandbox.create_context(ContextRequest::new(Program::Python)).await?;
    /// for source in ["x = 6", "print(x * 7)"] {
    ///     let mut request = ExecRequest::new(Program::Python, source);
    ///     request.context = Some(context.id);
    ///     print!("{}", sandbox.exec(request).await?.finish().await?.stdout.text());
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn create_context(&self, request: ContextRequest) -> Result<Context, ContextError> {
        let client = self.client()?;
        let creating = context::create(client.clone(), request);
        let discard = |unwanted: Context| async move {
            if let Err(error) = context::destroy(client, unwanted.id).await {
                debug!(%error, "could not destroy a context whose caller had gone");
            }
        };
        let (creating, created) = hand_over(creating, discard);
        tokio::spawn(creating);
        let created = created.await.unwrap_or(Err(ContextError::Refused(Refusal::Destroyed)));
        self.context_explained(created).await
    }

    /// Its contexts, oldest first, those that died too.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// for context in sandbox.contexts().await? {
    ///     println!("{} of {:?} is {:?}", context.id, context.program, context.state);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn contexts(&self) -> Result<Vec<Context>, ContextError> {
        let contexts = context::list(self.client()?).await;
        self.context_explained(contexts).await
    }

    /// Kills a context with all that it started, and forgets it.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// for context in sandbox.contexts().await? {
    ///     sandbox.destroy_context(context.id).await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn destroy_context(&self, id: ContextId) -> Result<(), ContextError> {
        let destroyed = context::destroy(self.client()?, id).await;
        self.context_explained(destroyed).await
    }

    async fn context_explained<T>(&self, result: Result<T, ContextError>) -> Result<T, ContextError> {
        match result {
            Err(ContextError::Link(fact)) => {
                let reason = post_mortem::reason(self.watch()).await;
                Err(reason.map_or(ContextError::Link(fact), ContextError::Refused))
            }
            result => result,
        }
    }
}
