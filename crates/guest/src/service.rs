//! The gRPC service: one thin method per verb.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bouvet_wire::v1;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use bouvet_wire::v1::guest_server::GuestServer;

use crate::answers::Answers;
use crate::archive;
use crate::connect::{self, Connections};
use crate::datagrams::{self, Peers};
use crate::exec::{self, Executor};
use crate::files;
use crate::furnish;
use crate::names::{Names, Own};
use crate::network::Network;
use crate::personalise;

/// What one guest offers its host.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    executor: Arc<Executor>,
    owns_kernel: bool,
    personal: Arc<AtomicBool>,
    names: Arc<Mutex<Names>>,
    own: Own,
    connections: Connections,
    peers: Peers,
    network: Network,
}

impl Service {
    pub(crate) fn new(executor: Arc<Executor>, owns_kernel: bool) -> Self {
        let (personal, names, own, connections, peers, network) = Default::default();
        Self { executor, owns_kernel, personal, names, own, connections, peers, network }
    }

    /// A VM that is nobody's yet may have a twin with the same entropy and names: it must not work.
    fn require_personal(&self) -> Result<(), Status> {
        if self.personal.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Status::failed_precondition("this VM was not personalised yet"))
    }

    /// Where paths start. What they lead to may be in a volume.
    async fn place(&self) -> Result<files::Place, Status> {
        let executor = self.executor.clone();
        let find = move || files::Place { start: executor.description().start_dir(), home: executor.home() };
        self.executor.mounts().aside(find).await.map_err(|error| Status::internal(error.to_string()))
    }
}

#[tonic::async_trait]
impl v1::guest_server::Guest for Service {
    async fn personalise(
        &self,
        request: Request<v1::PersonaliseRequest>,
    ) -> Result<Response<v1::PersonaliseReply>, Status> {
        let request = request.into_inner();
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = personalise::personalise(&request, &mut names, self.owns_kernel)
            .map_err(|error| Status::internal(crate::chain(&error)))?;
        if self.owns_kernel {
            // Elsewhere they would be somebody else's.
            self.own.set(&request).map_err(|error| Status::internal(crate::chain(&error)))?;
        }
        self.executor.set_env(request.env);
        self.personal.store(true, Ordering::Release);
        Ok(Response::new(reply))
    }

    async fn warm(&self, request: Request<v1::WarmRequest>) -> Result<Response<v1::WarmReply>, Status> {
        exec::warm(&self.executor, request.into_inner().programs()).await?;
        Ok(Response::new(v1::WarmReply {}))
    }

    type ExecStream = Answers<v1::ExecOutput>;

    async fn exec(
        &self,
        request: Request<Streaming<v1::ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        self.require_personal()?;
        let outputs = exec::run(self.executor.clone(), request.into_inner()).await?;
        Ok(Response::new(outputs))
    }

    async fn furnish(
        &self,
        request: Request<v1::FurnishRequest>,
    ) -> Result<Response<v1::FurnishReply>, Status> {
        self.require_personal()?;
        let request = request.into_inner();
        let only_start =
            v1::FurnishRequest { working_dir: request.working_dir.clone(), ..v1::FurnishRequest::default() };
        if !self.owns_kernel && request != only_start {
            return Err(Status::unimplemented("without a VM there is nothing to furnish"));
        }
        let own = request.clone();
        // Its working directory may be in a volume.
        let furnished = self.executor.mounts().aside(move || furnish::furnish(&own)).await;
        let furnished = furnished.map_err(|error| Status::internal(error.to_string()))?;
        furnished.map_err(|error| Status::failed_precondition(crate::chain(&error)))?;
        self.executor.furnish(request).await?;
        Ok(Response::new(v1::FurnishReply {}))
    }

    async fn signal(&self, request: Request<v1::SignalRequest>) -> Result<Response<v1::SignalReply>, Status> {
        self.require_personal()?;
        self.executor.signal(request.into_inner()).map(Response::new)
    }

    async fn resize(&self, request: Request<v1::ResizeRequest>) -> Result<Response<v1::ResizeReply>, Status> {
        self.require_personal()?;
        self.executor.resize(request.into_inner()).map(Response::new)
    }

    async fn sync(&self, _: Request<v1::SyncRequest>) -> Result<Response<v1::SyncReply>, Status> {
        exec::sync().await?;
        Ok(Response::new(v1::SyncReply {}))
    }

    async fn stats(&self, _: Request<v1::StatsRequest>) -> Result<Response<v1::StatsReply>, Status> {
        self.require_personal()?;
        self.executor.stats().map(Response::new)
    }

    async fn create_context(
        &self,
        request: Request<v1::CreateContextRequest>,
    ) -> Result<Response<v1::CreateContextReply>, Status> {
        self.require_personal()?;
        exec::create_context(&self.executor, request.into_inner()).await.map(Response::new)
    }

    async fn list_contexts(
        &self,
        _: Request<v1::ListContextsRequest>,
    ) -> Result<Response<v1::ListContextsReply>, Status> {
        self.require_personal()?;
        Ok(Response::new(exec::list_contexts(&self.executor)))
    }

    async fn destroy_context(
        &self,
        request: Request<v1::DestroyContextRequest>,
    ) -> Result<Response<v1::DestroyContextReply>, Status> {
        self.require_personal()?;
        exec::destroy_context(&self.executor, &request.into_inner().id).await.map(Response::new)
    }

    type ReadStream = Answers<v1::ReadChunk>;

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        self.require_personal()?;
        let chunks = files::read(&self.place().await?, request.into_inner()).await?;
        Ok(Response::new(chunks))
    }

    async fn write(
        &self,
        request: Request<Streaming<v1::WriteInput>>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        self.require_personal()?;
        let scene = files::Scene {
            place: self.place().await?,
            description: self.executor.description(),
            spare_dir: self.executor.run_dir().to_owned(),
        };
        files::write(scene, request.into_inner()).await.map(Response::new)
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListReply>, Status> {
        self.require_personal()?;
        let place = self.place().await?;
        let list = tokio::task::spawn_blocking(move || files::list(&place, &request.into_inner()));
        list.await.map_err(|error| Status::internal(error.to_string()))?.map(Response::new)
    }

    async fn stat(&self, request: Request<v1::StatRequest>) -> Result<Response<v1::StatReply>, Status> {
        self.require_personal()?;
        let place = self.place().await?;
        let stat = tokio::task::spawn_blocking(move || archive::stat(&place, &request.into_inner()));
        stat.await.map_err(|error| Status::internal(error.to_string()))?.map(Response::new)
    }

    type PackStream = Answers<v1::PackOutput>;

    async fn pack(&self, request: Request<v1::PackRequest>) -> Result<Response<Self::PackStream>, Status> {
        self.require_personal()?;
        archive::pack(&self.place().await?, request.into_inner()).map(Response::new)
    }

    async fn unpack(
        &self,
        request: Request<Streaming<v1::UnpackInput>>,
    ) -> Result<Response<v1::UnpackReply>, Status> {
        self.require_personal()?;
        archive::unpack(&self.place().await?, request.into_inner()).await.map(Response::new)
    }

    type MountStream = Answers<v1::MountOutput>;

    async fn mount(
        &self,
        request: Request<Streaming<v1::MountInput>>,
    ) -> Result<Response<Self::MountStream>, Status> {
        self.require_personal()?;
        if !self.owns_kernel {
            return Err(Status::failed_precondition("volumes need a VM, and this guest runs without one"));
        }
        self.executor.mounts().mount(request.into_inner()).await.map(Response::new)
    }

    type ConnectStream = Answers<v1::ConnectOutput>;

    async fn connect(
        &self,
        request: Request<Streaming<v1::ConnectInput>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        self.require_personal()?;
        connect::connect(&self.connections, self.own.all(), request.into_inner()).await.map(Response::new)
    }

    type NetworkStream = Answers<v1::NetworkOutput>;

    async fn network(
        &self,
        request: Request<Streaming<v1::NetworkInput>>,
    ) -> Result<Response<Self::NetworkStream>, Status> {
        self.require_personal()?;
        if !self.owns_kernel {
            return Err(Status::failed_precondition("a network needs a VM, and this guest runs without one"));
        }
        self.network.attach(request.into_inner()).await.map(Response::new)
    }

    type DatagramsStream = Answers<v1::DatagramsOutput>;

    async fn datagrams(
        &self,
        request: Request<Streaming<v1::DatagramsInput>>,
    ) -> Result<Response<Self::DatagramsStream>, Status> {
        self.require_personal()?;
        datagrams::pass(&self.peers, self.own.all(), request.into_inner()).await.map(Response::new)
    }
}
