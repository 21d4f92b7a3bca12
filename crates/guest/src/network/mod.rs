//! The sandbox's network interface: a TUN device whose packets the host has. Nothing here understands them.

mod device;
mod ipv6;
mod trust;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use bouvet_wire::limits::MAX_PACKETS_BYTES;
use bouvet_wire::v1::{self, network_input::Input, network_output::Output};
use bytes::Bytes;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use self::device::Device;
use crate::answers::Answers;
use crate::names;
use crate::netlink::Netlink;

/// As programs and scripts expect it.
const INTERFACE: &str = "eth0";
/// Messages that wait for the link, beside those that it holds. The kernel keeps the packets after them.
const WAITING: usize = 2;

/// Why the sandbox has no network.
#[derive(Debug, thiserror::Error)]
enum NetworkError {
    #[error("`{0}` is not an address as it was to be")]
    Address(String),
    #[error("could not open /dev/net/tun: the kernel may have been built without TUN")]
    Device(#[source] io::Error),
    #[error("could not {0}")]
    Step(&'static str, #[source] io::Error),
}

/// The interface, once there is one, and the call that has it now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Network(Arc<Mutex<Option<Interface>>>);

#[derive(Debug)]
struct Interface {
    device: Arc<Device>,
    /// The number of the last call.
    calls: watch::Sender<u64>,
}

impl Network {
    /// Makes the interface that the first message describes, unless there is one, and carries its packets until either
    /// side ends or another call begins.
    pub(crate) async fn attach(
        &self,
        mut input: Streaming<v1::NetworkInput>,
    ) -> Result<Answers<v1::NetworkOutput>, Status> {
        let Some(Input::Start(start)) = input.message().await?.and_then(|message| message.input) else {
            return Err(Status::invalid_argument("the first message must be `start`"));
        };
        let mut interface = self.0.lock().await;
        if interface.is_none() {
            let device =
                make(&start).await.map_err(|error| Status::failed_precondition(crate::chain(&error)))?;
            *interface = Some(Interface { device: Arc::new(device), calls: watch::Sender::new(0) });
        }
        let Some(Interface { device, calls }) = &*interface else {
            return Err(Status::internal("the interface is missing"));
        };
        calls.send_modify(|call| *call += 1);
        let mut later = calls.subscribe();
        let device = device.clone();
        let (outputs, answers) = mpsc::channel(WAITING);
        // There is room: nothing was sent yet.
        outputs.try_send(Ok(output(Output::Ready(v1::NetworkReady {})))).ok();
        tokio::spawn(async move {
            tokio::select! {
                () = send(&device, &outputs) => {}
                () = receive(&device, input) => {}
                // Nobody reads them any more.
                () = outputs.closed() => {}
                _ = later.changed() => {}
            }
        });
        Ok(ReceiverStream::new(answers))
    }
}

fn output(output: Output) -> v1::NetworkOutput {
    v1::NetworkOutput { output: Some(output) }
}

/// Carries what programs send to the host, as many packets in a message as wait.
async fn send(device: &Device, outputs: &mpsc::Sender<Result<v1::NetworkOutput, Status>>) {
    let mut buffer = device::Buffer::default();
    loop {
        // First a place, then packets: until there is one they wait where the kernel slows their senders down.
        let Ok(place) = outputs.reserve().await else { return };
        let mut packets: Vec<Bytes> = Vec::new();
        let mut bytes = 0;
        match device.read(&mut buffer).await {
            Ok(packet) => {
                bytes += packet.len();
                packets.push(packet);
            }
            Err(_) => return,
        }
        while bytes <= MAX_PACKETS_BYTES / 2
            && let Some(packet) = device.try_read(&mut buffer)
        {
            bytes += packet.len();
            packets.push(packet);
        }
        place.send(Ok(output(Output::Packets(v1::Packets { packets }))));
    }
}

/// Hands what the host sends to the kernel.
async fn receive(device: &Device, mut input: Streaming<v1::NetworkInput>) {
    while let Ok(Some(message)) = input.message().await {
        let Some(Input::Packets(batch)) = message.input else { return };
        for packet in batch.packets {
            device.write(&packet).await;
        }
    }
}

async fn make(start: &v1::NetworkStart) -> Result<Device, NetworkError> {
    let mut addresses = start.addresses.iter().map(|text| address(text)).collect::<Result<Vec<_>, _>>()?;
    let mut gateways = start.gateways.iter().map(|text| gateway(text)).collect::<Result<Vec<_>, _>>()?;
    let device = Device::open(INTERFACE).map_err(NetworkError::Device)?;
    let step = |what| move |error| NetworkError::Step(what, error);
    let settings = Path::new("/proc/sys/net/ipv6/conf").join(INTERFACE);
    if ipv6::is_there(&settings) {
        quieten(&settings).map_err(step("set the interface up"))?;
    } else {
        addresses.retain(|(address, _)| address.is_ipv4());
        gateways.retain(IpAddr::is_ipv4);
    }
    let netlink = Netlink::open().map_err(step("ask the kernel for interfaces"))?;
    let index = netlink.index(INTERFACE).map_err(step("find the interface"))?;
    netlink.bring_up(index, Some(start.mtu_bytes)).map_err(step("bring the interface up"))?;
    for (address, prefix) in &addresses {
        netlink.add_address(index, *address, *prefix).map_err(step("give the interface its address"))?;
    }
    for gateway in &gateways {
        netlink.add_default_route(index, *gateway).map_err(step("set the default route"))?;
    }
    for (address, _) in addresses {
        if let IpAddr::V6(address) = address {
            ipv6::await_local(address).await;
        }
    }
    // A sidecar has a root of its own, and shares the interface.
    for root in ["/", crate::SIDECAR_ROOT].map(Path::new) {
        if !has_settings(root) {
            continue;
        }
        let failed = step("write /etc/resolv.conf");
        names::put(&root.join("etc/resolv.conf"), &resolv_conf(start, &gateways)).map_err(failed)?;
        if !start.authority.is_empty() {
            let failed = step("have programs trust the sandbox's authority");
            trust::install(root, &start.authority).map_err(failed)?;
        }
    }
    Ok(device)
}

/// Whether there is a root with a place for settings. A link of the sidecar's image would lead out of its root.
fn has_settings(root: &Path) -> bool {
    let etc = root.join("etc");
    etc.is_dir() && (root == Path::new("/") || !etc.is_symlink())
}

fn address(text: &str) -> Result<(IpAddr, u8), NetworkError> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
    });
    parsed.ok_or_else(|| NetworkError::Address(text.to_owned()))
}

fn gateway(text: &str) -> Result<IpAddr, NetworkError> {
    text.parse().map_err(|_| NetworkError::Address(text.to_owned()))
}

/// Has the kernel send nothing of its own accord: there is one neighbour, and all is known of it
/// (`Documentation/networking/ip-sysctl.rst`).
fn quieten(settings: &Path) -> io::Result<()> {
    for (setting, value) in [("accept_ra", "0"), ("addr_gen_mode", "1"), ("accept_dad", "0")] {
        fs::write(settings.join(setting), value)?;
    }
    Ok(())
}

/// The text of resolv.conf(5). The gateway answers for names.
fn resolv_conf(start: &v1::NetworkStart, gateways: &[IpAddr]) -> String {
    let mut text: String = gateways.iter().map(|gateway| format!("nameserver {gateway}\n")).collect();
    for (word, values) in [("search", &start.search), ("options", &start.options)] {
        if !values.is_empty() {
            text.push_str(&format!("{word} {}\n", values.join(" ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_whole() {
        assert_eq!(address("10.0.2.15/24").unwrap(), ("10.0.2.15".parse().unwrap(), 24));
        assert_eq!(address("fd00::15/64").unwrap(), ("fd00::15".parse().unwrap(), 64));
        for wrong in ["", "10.0.2.15", "10.0.2.15/33", "fd00::/129", "10.0.2/24", "10.0.2.15/-1"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn resolv_conf_has_search_domains_and_options() {
        let gateways = ["10.0.2.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let mut start = v1::NetworkStart::default();
        assert_eq!(resolv_conf(&start, &gateways), "nameserver 10.0.2.2\nnameserver fd00::2\n");
        (start.search, start.options) =
            (vec!["a.example".into(), "b.example".into()], vec!["ndots:2".into()]);
        let text = resolv_conf(&start, &gateways[..1]);
        assert_eq!(text, "nameserver 10.0.2.2\nsearch a.example b.example\noptions ndots:2\n");
    }
}
