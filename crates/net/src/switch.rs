//! A network of several sandboxes: the packets that go from one to another, and the names that they know each other by.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::address::Class;
use crate::name::Name;
use crate::shared::Addresses;

/// Sandboxes that may be on one network.
const MAX_MEMBERS: usize = 1024;
/// The gateway's number. Those of sandboxes come after it.
const GATEWAY: u32 = 1;
const IPV6_PREFIX: u8 = 64;

/// The addresses of a network: a block of private IPv4, which says too what they are in IPv6.
///
/// ```
/// let subnet: bouvet_net::Subnet = "10.1.2.0/24".parse().unwrap();
/// assert_eq!((subnet.to_string(), subnet.ipv6()), ("10.1.2.0/24".into(), "fd00:b0e7:a01:200::/64".into()));
/// assert!("8.8.8.0/24".parse::<bouvet_net::Subnet>().is_err(), "somebody has them");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Subnet(Ipv4Net);

/// A text that is no block of addresses that a network can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("private blocks like `10.1.2.0/24` are allowed, of 8 to 29 bits")]
pub struct SubnetError;

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let net: Ipv4Net = text.parse().map_err(|_| SubnetError)?;
        let is_private =
            |address: Ipv4Addr| address.is_private() && Class::of(address.into()) == Class::Private;
        let sound = (8..=29).contains(&net.prefix_len())
            && net.network() == net.addr()
            // Others would read `010` as 8.
            && net.to_string() == text
            && is_private(net.network())
            && is_private(net.broadcast());
        if sound { Ok(Self(net)) } else { Err(SubnetError) }
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;

    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Subnet {
    /// The block of IPv6 (unique local: RFC 4193), as text.
    pub fn ipv6(&self) -> String {
        format!("{}/{IPV6_PREFIX}", self.ipv6_of(0))
    }

    /// Whether an address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.contains(&other.0) || other.0.contains(&self.0)
    }

    fn ipv4_of(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.0.network().to_bits() | number)
    }

    fn ipv6_of(&self, number: u32) -> Ipv6Addr {
        let block = u128::from(self.0.network().to_bits());
        Ipv6Addr::from_bits(0xfd00_b0e7 << 96 | block << 64 | u128::from(number))
    }

    fn addresses_of(&self, number: u32) -> Addresses {
        Addresses {
            ipv4: (self.ipv4_of(number), self.0.prefix_len()),
            ipv6: (self.ipv6_of(number), IPV6_PREFIX),
            gateway_ipv4: self.ipv4_of(GATEWAY),
            gateway_ipv6: self.ipv6_of(GATEWAY),
        }
    }

    fn last_number(&self) -> u32 {
        self.0.broadcast().to_bits() - self.0.network().to_bits() - 1
    }
}

/// A network that sandboxes can be on. Each clone is the same.
///
/// ```
/// use bouvet_net::Switch;
///
/// let switch = Switch::new("10.1.2.0/29".parse().unwrap());
/// let (web, db) = (switch.join().unwrap(), switch.join().unwrap());
/// db.set_names(vec!["db".parse().unwrap()]);
/// assert_eq!(web.addresses().ipv4, ("10.1.2.2".parse().unwrap(), 29));
/// assert_eq!(db.addresses().gateway_ipv4, web.addresses().gateway_ipv4);
/// ```
#[derive(Debug, Clone)]
pub struct Switch(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    subnet: Subnet,
    members: RwLock<Members>,
}

#[derive(Debug, Default)]
struct Members {
    by_address: HashMap<IpAddr, Option<mpsc::WeakSender<Bytes>>>,
    numbers: HashSet<u32>,
    by_name: HashMap<Name, u32>,
    /// The number that was given last: who had one is not at once followed by another.
    last: u32,
}

/// There is no address for another sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all addresses of `{0}` are taken")]
pub struct Crowded(pub Subnet);

impl Switch {
    /// One that nobody is on.
    pub fn new(subnet: Subnet) -> Self {
        let members = RwLock::new(Members { last: GATEWAY, ..Members::default() });
        Self(Arc::new(Inner { subnet, members }))
    }

    /// Whether nobody is on it.
    pub fn is_empty(&self) -> bool {
        self.read().numbers.is_empty()
    }

    /// An address for another sandbox.
    pub fn join(&self) -> Result<Member, Crowded> {
        let subnet = self.0.subnet;
        let mut members = self.write();
        let last = subnet.last_number();
        let numbers = (members.last + 1..=last).chain(GATEWAY + 1..=members.last.min(last));
        let free = numbers.into_iter().find(|number| !members.numbers.contains(number));
        let number = free.filter(|_| members.numbers.len() < MAX_MEMBERS).ok_or(Crowded(subnet))?;
        members.last = number;
        members.numbers.insert(number);
        members.reach(subnet.addresses_of(number), None);
        Ok(Member { switch: self.clone(), number })
    }

    fn read(&self) -> RwLockReadGuard<'_, Members> {
        self.0.members.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Members> {
        self.0.members.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    fn reach(&mut self, Addresses { ipv4, ipv6, .. }: Addresses, outbound: Option<&mpsc::WeakSender<Bytes>>) {
        for address in [IpAddr::from(ipv4.0), ipv6.0.into()] {
            self.by_address.insert(address, outbound.cloned());
        }
    }

    fn reached(&self, address: IpAddr) -> Option<mpsc::Sender<Bytes>> {
        let outbound = self.by_address.get(&address)?.as_ref()?.upgrade()?;
        (!outbound.is_closed()).then_some(outbound)
    }

    fn forget_names(&mut self, number: u32) {
        self.by_name.retain(|_, named| *named != number);
    }
}

/// A sandbox's place on a network, which is free again when it has left or this is dropped.
#[derive(Debug)]
pub struct Member {
    switch: Switch,
    number: u32,
}

impl Member {
    /// Its addresses, and the gateway's.
    pub fn addresses(&self) -> Addresses {
        self.switch.0.subnet.addresses_of(self.number)
    }

    /// What the others may call it. Where two have the same name it is that of the later.
    pub fn set_names(&self, names: Vec<Name>) {
        let mut members = self.switch.write();
        if !members.numbers.contains(&self.number) {
            return;
        }
        members.forget_names(self.number);
        members.by_name.extend(names.into_iter().map(|name| (name, self.number)));
    }

    /// Gives its address and its names back.
    pub(crate) fn leave(&self) {
        let mut members = self.switch.write();
        if !members.numbers.remove(&self.number) {
            return;
        }
        members.forget_names(self.number);
        let Addresses { ipv4, ipv6, .. } = self.addresses();
        for address in [IpAddr::from(ipv4.0), ipv6.0.into()] {
            members.by_address.remove(&address);
        }
    }

    /// From now on it is reached by `outbound`.
    pub(crate) fn attach(&self, outbound: &mpsc::Sender<Bytes>) {
        let mut members = self.switch.write();
        if members.numbers.contains(&self.number) {
            members.reach(self.addresses(), Some(&outbound.downgrade()));
        }
    }

    /// The addresses of the member called `name`, if it can be reached.
    pub(crate) fn find(&self, name: &Name) -> Option<Addresses> {
        let members = self.switch.read();
        let addresses = self.switch.0.subnet.addresses_of(*members.by_name.get(name)?);
        members.reached(addresses.ipv4.0.into()).map(|_| addresses)
    }

    /// Hands `packet` to the member at `address`; false if there is none that could take it.
    ///
    /// Half of a member's queue is for what comes to it from elsewhere: beyond it a packet is lost, as on any network.
    pub(crate) fn deliver(&self, address: IpAddr, packet: &[u8]) -> bool {
        let Some(outbound) = self.switch.read().reached(address) else { return false };
        if outbound.capacity() > outbound.max_capacity() / 2 {
            // What the packet came in is longer, and must not wait with it.
            outbound.try_send(Bytes::copy_from_slice(packet)).ok();
        }
        true
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switch(subnet: &str) -> Switch {
        Switch::new(subnet.parse().unwrap())
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_is_private_and_whole() {
        for sound in ["10.0.0.0/8", "172.16.0.0/12", "192.168.255.248/29", "10.213.255.0/24"] {
            let subnet: Subnet = sound.parse().unwrap();
            assert_eq!(subnet.to_string(), sound);
        }
        for wrong in [
            "",
            "10.0.0.0",
            "10.0.0.0/7",
            "10.0.0.0/30",
            "10.0.0.1/24",
            "172.0.0.0/8",
            "100.64.0.0/16",
            "8.8.8.0/24",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "192.168.0.0/15",
            "fd00::/64",
            "010.0.0.0/8",
        ] {
            assert_eq!(wrong.parse::<Subnet>(), Err(SubnetError), "{wrong}");
        }
        let [wide, narrow, other]: [Subnet; 3] =
            ["10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16"].map(|t| t.parse().unwrap());
        assert!(wide.overlaps(&narrow) && narrow.overlaps(&wide) && !wide.overlaps(&other));
    }

    #[test]
    fn each_member_has_addresses_of_its_own() {
        let switch = switch("10.1.2.0/29");
        let members: Vec<_> = (0..5).map(|_| switch.join().unwrap()).collect();
        let addresses: Vec<_> = members.iter().map(|member| member.addresses().ipv4.0.to_string()).collect();
        assert_eq!(addresses, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        assert_eq!(members[4].addresses().ipv6.0.to_string(), "fd00:b0e7:a01:200::6");
        assert_eq!(members[4].addresses().gateway_ipv6.to_string(), "fd00:b0e7:a01:200::1");
        assert_eq!(switch.join().unwrap_err(), Crowded("10.1.2.0/29".parse().unwrap()));
        let [second, ..] = &members[..] else { unreachable!() };
        second.leave();
        assert_eq!(switch.join().unwrap().addresses().ipv4.0.to_string(), "10.1.2.2");
        drop(members);
        assert!(switch.is_empty());
        assert_eq!(
            switch.join().unwrap().addresses().ipv4.0.to_string(),
            "10.1.2.3",
            "not the one of before"
        );
    }

    #[test]
    fn as_many_are_on_it_as_may_be() {
        let switch = switch("10.0.0.0/8");
        let members: Vec<_> = (0..MAX_MEMBERS).map(|_| switch.join().unwrap()).collect();
        assert!(switch.join().is_err());
        drop(members);
        assert!(switch.join().is_ok());
    }

    #[test]
    fn members_are_found_by_name_while_they_can_be_reached() {
        let switch = switch("10.1.2.0/24");
        let (web, db) = (switch.join().unwrap(), switch.join().unwrap());
        db.set_names(vec![name("db"), name("4f3e")]);
        assert_eq!(web.find(&name("db")), None, "it is not up");
        let (outbound, received) = mpsc::channel(1);
        db.attach(&outbound);
        assert_eq!(web.find(&name("db")), Some(db.addresses()));
        assert_eq!(web.find(&name("4f3e")), Some(db.addresses()));
        db.set_names(vec![name("store")]);
        assert_eq!((web.find(&name("db")), web.find(&name("store"))), (None, Some(db.addresses())));
        drop(received);
        assert_eq!(web.find(&name("store")), None);
        db.leave();
        db.set_names(vec![name("db")]);
        db.attach(&outbound);
        assert_eq!(web.find(&name("db")), None, "who has left is not known again");
    }

    #[test]
    fn a_packet_goes_to_whom_it_is_for_and_waits_in_half_of_its_queue() {
        let [one, other] = [switch("10.1.2.0/24"), switch("10.1.2.0/24")];
        let (a, b, c) = (one.join().unwrap(), one.join().unwrap(), other.join().unwrap());
        let to_b = b.addresses().ipv4.0.into();
        assert!(!a.deliver(to_b, b"packet"), "it is not up");
        let (outbound, mut received) = mpsc::channel(8);
        b.attach(&outbound);
        assert!(!c.deliver(to_b, b"packet"), "it is on another network");
        assert!(a.deliver(b.addresses().ipv6.0.into(), b"0"));
        (1..8_u8).for_each(|number| assert!(a.deliver(to_b, &[number])));
        let mut packets = 0;
        while received.try_recv().is_ok() {
            packets += 1;
        }
        assert_eq!(packets, 4, "the rest was lost");
        b.leave();
        assert!(!a.deliver(to_b, b"packet"));
    }
}
