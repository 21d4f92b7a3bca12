//! The two ends of a sandbox's network, joined by the link: the interface in its guest, and its [`Network`] here.

use std::time::Duration;

use bouvet_net::dns::ClientSettings;
use bouvet_net::{Addresses, Inbound, Network, Outbound};
use bouvet_wire::limits::{MAX_PACKETS_BYTES, NETWORK_MTU_BYTES};
use bouvet_wire::v1::{self, NetworkInput, network_input::Input, network_output::Output};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{debug, warn};

use crate::link::Client;
use crate::sandbox::SandboxId;

/// How long a guest may take to make its interface.
const DEADLINE: Duration = Duration::from_secs(60);
/// Messages that wait for the link.
const WAITING: usize = 2;
/// Packets of one message.
pub(crate) const MAX_PACKETS: usize = 4096;

/// A guest's interface that is joined to its network, for as long as this is held. The network outlives it.
#[derive(Debug)]
pub(crate) struct Attached(JoinHandle<()>);

impl Attached {
    /// Has the guest of `id` make its interface, with `settings` in its `resolv.conf`, and carries packets between it and
    /// `network`.
    pub(crate) async fn new(
        mut client: Client,
        id: SandboxId,
        network: &Network,
        settings: ClientSettings,
    ) -> Result<Self, String> {
        let (input, inputs) = mpsc::channel(WAITING);
        // There is room: nothing was sent yet.
        input.try_send(message(Input::Start(start(network, settings)))).ok();
        let begin = async {
            let outputs = client.network(ReceiverStream::new(inputs)).await;
            let mut outputs = outputs.map_err(|status| crate::link::said(&status))?.into_inner();
            match outputs.message().await.map_err(|status| crate::link::said(&status))?.and_then(|m| m.output)
            {
                Some(Output::Ready(_)) => Ok(outputs),
                _ => Err("it did not say that its interface is ready".to_owned()),
            }
        };
        let outputs = tokio::time::timeout(DEADLINE, begin).await;
        let outputs = outputs.map_err(|_| format!("no answer within {DEADLINE:?}"))??;
        let (inbound, outbound) = network.attach();
        Ok(Self(tokio::spawn(async move {
            let why = tokio::select! {
                why = receive(outputs, inbound) => why,
                () = send(outbound, input) => return,
            };
            match why {
                Lost::Network(why) => warn!(sandbox = %id, %why, "a sandbox lost its network"),
                Lost::Link(why) => debug!(sandbox = %id, %why, "a sandbox lost its network with its link"),
            }
        })))
    }

    /// Waits until nothing is carried any more.
    #[cfg(test)]
    pub(crate) async fn over(&mut self) {
        (&mut self.0).await.unwrap();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn start(network: &Network, settings: ClientSettings) -> v1::NetworkStart {
    let Addresses { ipv4, ipv6, gateway_ipv4, gateway_ipv6 } = network.addresses();
    v1::NetworkStart {
        addresses: vec![format!("{}/{}", ipv4.0, ipv4.1), format!("{}/{}", ipv6.0, ipv6.1)],
        gateways: vec![gateway_ipv4.to_string(), gateway_ipv6.to_string()],
        mtu_bytes: NETWORK_MTU_BYTES,
        authority: network.authority().unwrap_or_default().into(),
        search: settings.search,
        options: settings.options,
    }
}

fn message(input: Input) -> NetworkInput {
    NetworkInput { input: Some(input) }
}

/// Why a network carries nothing any more.
enum Lost {
    Network(String),
    /// The link broke: the sandbox has failed, and what ended it is reported with that.
    Link(String),
}

/// Takes what the guest sends, as fast as its network does. Returns why there will be no more.
async fn receive(mut outputs: Streaming<v1::NetworkOutput>, inbound: Inbound) -> Lost {
    let lost = |why: &str| Lost::Network(why.to_owned());
    loop {
        let batch = match outputs.message().await {
            Ok(Some(v1::NetworkOutput { output: Some(Output::Packets(batch)) })) => batch.packets,
            Ok(Some(_)) => return lost("its guest broke the rules of networks"),
            Ok(None) => return lost("its guest ended it"),
            Err(status) if crate::link::is_broken(&status) => return Lost::Link(crate::link::said(&status)),
            Err(status) => return Lost::Network(crate::link::said(&status)),
        };
        let bytes: usize = batch.iter().map(bytes::Bytes::len).sum();
        if batch.len() > MAX_PACKETS || bytes > MAX_PACKETS_BYTES {
            return lost(&format!("its guest sent {} packets of {bytes} bytes at once", batch.len()));
        }
        if inbound.send(batch).await.is_err() {
            return lost("it ended");
        }
    }
}

/// Sends what the network has for the guest, until either has no more.
async fn send(mut outbound: Outbound, input: mpsc::Sender<NetworkInput>) {
    while let Some(packets) = outbound.next().await {
        if input.send(message(Input::Packets(v1::Packets { packets }))).await.is_err() {
            return;
        }
    }
}
