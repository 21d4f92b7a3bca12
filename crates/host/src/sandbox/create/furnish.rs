//! A guest becomes what its sandbox's description says, and its programs start.

use std::time::Duration;

use bouvet_net::dns::ClientSettings;
use bouvet_wire::v1;

use super::{BringUpError, Live, Wanted};
use crate::blueprint::{Blueprint, Main, Sidecar};
use crate::exec::{ExecError, ExecRequest, ExecStream, Role, WindowSize};
use crate::link::Client;
use crate::network::attach::Attached;
use crate::network::client_settings;
use crate::sandbox::owner::Followed;
use crate::volume::Volumes;

/// Its file systems, limits and namespaces.
const FURNISH_DEADLINE: Duration = Duration::from_secs(90);

impl Live {
    /// Makes it what `blueprint` says, and starts its main program.
    pub(super) async fn furnish(&mut self, wanted: Wanted<'_>) -> Result<(), BringUpError> {
        let Wanted { id, blueprint, journals, network } = wanted;
        if blueprint.config.debug_grpc {
            self.link.log_calls(&self.person.hostname);
        }
        let client = self.link.client();
        let [before, after] = blueprint.furnishing();
        furnish(client.clone(), before).await?;
        if !blueprint.plan.volumes.is_empty() {
            let volumes = Volumes::attach(client.clone(), &blueprint.plan.volumes).await;
            self.volumes = Some(volumes.map_err(BringUpError::Volume)?);
        }
        if let Some(network) = network {
            // Before its files may be written no more.
            let settings = match &blueprint.plan.network {
                Some(plan) => client_settings(plan).await,
                None => ClientSettings::default(),
            };
            let attached = Attached::new(client.clone(), id, network, settings).await;
            self.network = Some(attached.map_err(BringUpError::Network)?);
        }
        furnish(client.clone(), after).await?;
        if let Some(sidecar) = &blueprint.sidecar {
            let stream = start_sidecar(client.clone(), sidecar).await.map_err(BringUpError::Sidecar)?;
            self.sidecar = Some(Followed::follow(stream, sidecar.stop_signal, journals.sidecar));
        }
        let Some(Main { argv, stop_signal }) = &blueprint.main else { return Ok(()) };
        let stream = start_main(client, argv, blueprint).await.map_err(BringUpError::Main)?;
        self.main = Some(Followed::follow(stream, *stop_signal, journals.main));
        Ok(())
    }
}

async fn furnish(mut client: Client, request: Option<v1::FurnishRequest>) -> Result<(), BringUpError> {
    let Some(request) = request else { return Ok(()) };
    let furnished = match tokio::time::timeout(FURNISH_DEADLINE, client.furnish(request)).await {
        Ok(answer) => answer.map(drop).map_err(|status| crate::link::said(&status)),
        Err(_) => Err(format!("no answer within {FURNISH_DEADLINE:?}")),
    };
    furnished.map_err(BringUpError::Furnish)
}

async fn start_main(client: Client, argv: &[String], blueprint: &Blueprint) -> Result<ExecStream, ExecError> {
    let config = &blueprint.config;
    let request = ExecRequest {
        cwd: blueprint.working_dir.clone(),
        timeout: Duration::ZERO,
        terminal: config.tty.then(WindowSize::default),
        ..ExecRequest::arguments(argv)?
    };
    let stream = ExecStream::start(client, request, Role::Main).await?;
    if !config.stdin_open {
        end_input(&stream).await?;
    }
    Ok(stream)
}

async fn start_sidecar(client: Client, sidecar: &Sidecar) -> Result<ExecStream, ExecError> {
    let request = ExecRequest {
        env: sidecar.env.clone(),
        cwd: sidecar.working_dir.clone(),
        user: sidecar.user.clone(),
        timeout: Duration::ZERO,
        ..ExecRequest::arguments(&sidecar.argv)?
    };
    let role = Role::Sidecar(sidecar.confinement.clone());
    let stream = ExecStream::start(client, request, role).await?;
    end_input(&stream).await?;
    Ok(stream)
}

async fn end_input(stream: &ExecStream) -> Result<(), ExecError> {
    match stream.control().close_stdin().await {
        // What has ended already reads nothing.
        Err(ExecError::Ended) => Ok(()),
        closed => closed,
    }
}
