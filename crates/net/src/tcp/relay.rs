//! Bytes between a machine and whoever is at the other end, with what a connection says of itself judged before any of
//! it is passed on.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Way;
use super::machine::{self, Machine};
use crate::claim::{self, Claim};
use crate::flow::Flow;
use crate::judge::Judge;
use crate::name::Name;
use crate::packet::{self, Packet, Transport};
use crate::policy::Claimed;
use crate::refusal::Refusal;
use crate::shared::{Shared, Waiting};

/// How long a connection may take to say what it is for, once it has begun to.
const CLAIM_DEADLINE: Duration = Duration::from_secs(10);

/// How a connection went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Both sides have said all.
    Over,
    /// One side broke it off, or it was refused.
    Broken,
    /// It is HTTP, and each of its requests is to be judged.
    Requests,
    /// It is TLS for a server that a secret is for.
    Secrets,
}

/// What is known of what the sandbox's side is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// Nothing yet; nothing of it is passed on.
    Open,
    /// It may go on, having said this.
    Pass(Claim),
}

/// A connection, seen from the sandbox.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    pub(super) flow: Flow,
    pub(super) way: Way,
    machine: Machine,
    packets: mpsc::Receiver<Waiting>,
    judge: watch::Receiver<Arc<Judge>>,
    verdict: Verdict,
    claim_until: Option<Instant>,
    idle_since: Instant,
    /// Whether the other end has said all, and whether it was told that the sandbox has.
    peer_ended: bool,
    told_end: bool,
    hears_first: bool,
}

/// What happened.
enum Event {
    Packet(Option<Waiting>),
    Said(io::Result<usize>),
    Passed(io::Result<usize>),
    Ended(io::Result<()>),
    Judge,
    Time,
}

/// Has what `peer` says said to the sandbox.
fn hear<S: AsyncRead>(
    machine: &mut Machine,
    peer: Pin<&mut S>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let heard = machine.say_with(|room| {
        let mut room = ReadBuf::new(room);
        let heard = peer.poll_read(cx, &mut room);
        let length = room.filled().len();
        (length, heard.map_ok(|()| length))
    });
    heard.unwrap_or(Poll::Pending)
}

/// Passes some of what was `said` on to `peer`, or that it was all.
fn pass<S: AsyncWrite>(said: &[u8], is_all: bool, peer: Pin<&mut S>, cx: &mut Context<'_>) -> Poll<Event> {
    match said {
        [] if is_all => peer.poll_shutdown(cx).map(Event::Ended),
        [] => Poll::Pending,
        said => peer.poll_write(cx, said).map(Event::Passed),
    }
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, flow: Flow, way: Way, packets: mpsc::Receiver<Waiting>) -> Self {
        let buffer_bytes = shared.limits.buffer_bytes as usize;
        let machine = Machine::new(flow.destination, buffer_bytes, rand::random());
        let verdict = match way {
            Way::Out(_) => Verdict::Open,
            Way::Host | Way::Names => Verdict::Pass(Claim::Nothing),
        };
        Self {
            judge: shared.judge.subscribe(),
            shared,
            flow,
            way,
            machine,
            packets,
            verdict,
            claim_until: None,
            idle_since: Instant::now(),
            peer_ended: false,
            told_end: false,
            hears_first: false,
        }
    }

    /// Takes the packet with which it begins.
    pub(super) fn accept(&mut self, syn: Bytes) {
        self.machine.input(syn);
    }

    /// While it is being made, waits until it is to be no more: until the sandbox has given up, or a new policy does not
    /// allow it. The sandbox asks for it again and again, which changes nothing.
    pub(super) async fn called_off(&mut self) -> Option<Refusal> {
        loop {
            tokio::select! {
                packet = self.packets.recv() => {
                    let packet = packet?;
                    if let Ok(Packet { transport: Transport::Tcp { rst: true, .. }, .. }) =
                        packet::parse(packet.bytes())
                    {
                        return None;
                    }
                }
                changed = self.judge.changed() => {
                    changed.ok()?;
                    if let Err(refusal) = self.judge_again() {
                        return Some(refusal);
                    }
                }
            }
        }
    }

    fn judge_again(&mut self) -> Result<(), Refusal> {
        self.way = self.way.again(&self.shared, self.flow)?;
        let Way::Out(permit) = &self.way else { return Ok(()) };
        let claimed = match &self.verdict {
            Verdict::Pass(Claim::Tls(name)) => Claimed::Tls(name.as_ref()),
            Verdict::Pass(Claim::Nothing) => Claimed::Nothing,
            // Of HTTP each request is judged, and of the others nothing was passed on.
            Verdict::Pass(Claim::Http | Claim::More | Claim::Broken) | Verdict::Open => return Ok(()),
        };
        self.shared.judge().claim(permit, self.flow.destination, claimed)
    }

    /// The name that it said, if it did.
    pub(super) fn name(&self) -> Option<&Name> {
        match &self.verdict {
            Verdict::Pass(Claim::Tls(name)) => name.as_ref(),
            _ => None,
        }
    }

    /// Passes bytes between the sandbox and `peer` until it has come to an end.
    pub(super) async fn run<S: AsyncRead + AsyncWrite>(&mut self, peer: S) -> Ending {
        let mut peer = pin!(peer);
        loop {
            if let Some(ending) = self.settle().await {
                return ending;
            }
            let event = self.event(peer.as_mut()).await;
            if !matches!(event, Event::Time | Event::Judge) {
                self.idle_since = Instant::now();
            }
            if !self.happen(event) {
                return self.abort().await;
            }
        }
    }

    /// Waits until something happens. Bytes are where they belong then, without having been anywhere else.
    async fn event<S: AsyncRead + AsyncWrite>(&mut self, mut peer: Pin<&mut S>) -> Event {
        let wake = self.wake_at();
        let passes = matches!(self.verdict, Verdict::Pass(_));
        let says_end = passes && !self.told_end && self.machine.has_said_all();
        let hears = !self.peer_ended && self.machine.room() > 0;
        // Each side goes first in turn: neither keeps the other waiting.
        self.hears_first = !self.hears_first;
        let order = [self.hears_first, !self.hears_first];
        let Self { machine, packets, judge, .. } = self;
        let exchange = std::future::poll_fn(|cx| {
            if let Poll::Ready(packet) = packets.poll_recv(cx) {
                return Poll::Ready(Event::Packet(packet));
            }
            for hears_now in order {
                let event = match hears_now {
                    true if hears => hear(machine, peer.as_mut(), cx).map(Event::Said),
                    false if passes => pass(machine.received(), says_end, peer.as_mut(), cx),
                    _ => Poll::Pending,
                };
                if event.is_ready() {
                    return event;
                }
            }
            Poll::Pending
        });
        tokio::select! {
            event = exchange => event,
            // Without a network there is no judge.
            changed = judge.changed() => changed.map_or(Event::Packet(None), |()| Event::Judge),
            () = tokio::time::sleep_until(wake) => Event::Time,
        }
    }

    /// Takes what happened. Says whether the connection goes on.
    fn happen(&mut self, event: Event) -> bool {
        match event {
            Event::Packet(None) => return false,
            Event::Packet(Some(packet)) => {
                self.machine.input(packet.take());
                while let Ok(packet) = self.packets.try_recv() {
                    self.machine.input(packet.take());
                }
            }
            Event::Said(Ok(0)) => {
                self.peer_ended = true;
                self.machine.close();
            }
            Event::Said(Ok(_)) => {}
            Event::Passed(Ok(length)) => self.machine.consume(length),
            Event::Ended(Ok(())) => self.told_end = true,
            Event::Said(Err(_)) | Event::Passed(Err(_)) | Event::Ended(Err(_)) => return false,
            Event::Judge => {
                if let Err(refusal) = self.judge_again() {
                    self.shared.refuse(refusal, self.flow);
                    return false;
                }
            }
            Event::Time => return self.idle_since.elapsed() < self.idle(),
        }
        true
    }

    /// Sends what is to be sent, and looks where the connection is. Says how it ended, if it has.
    async fn settle(&mut self) -> Option<Ending> {
        loop {
            self.machine.poll();
            let are_more = self.machine.outputs().len() >= machine::MAX_OUTPUTS;
            self.flush().await;
            if !are_more {
                break;
            }
        }
        if self.machine.is_broken() {
            return Some(Ending::Broken);
        }
        if self.machine.is_over() && self.told_end {
            return Some(Ending::Over);
        }
        if self.verdict == Verdict::Open {
            match self.judge_claim() {
                Ok(None) => {}
                Ok(Some(ending)) => return Some(ending),
                Err((refusal, name)) => {
                    self.shared.counters.refuse(refusal, Some(self.flow), name.as_ref());
                    return Some(self.abort().await);
                }
            }
        }
        None
    }

    /// Judges what the sandbox has said so far.
    fn judge_claim(&mut self) -> Result<Option<Ending>, (Refusal, Option<Name>)> {
        let Way::Out(permit) = self.way.clone() else { return Ok(None) };
        let judge = self.shared.judge();
        let ended = self.machine.has_said_all();
        let said = self.machine.received();
        if said.is_empty() && !ended {
            return Ok(None);
        }
        let is_full = said.len() >= self.shared.limits.buffer_bytes as usize;
        let judges_requests = judge.judges_requests(&permit);
        // Where only what TLS says can matter, what is none need not be waited for.
        let claim = match said.first() {
            Some(first) if !judges_requests && !claim::may_be_tls(*first) => Claim::Nothing,
            _ if ended => claim::read_whole(said),
            _ => claim::read(said),
        };
        let (claimed, name) = match &claim {
            Claim::More if is_full => return Err((Refusal::Malformed, None)),
            Claim::More => {
                let until = *self.claim_until.get_or_insert_with(|| Instant::now() + CLAIM_DEADLINE);
                let is_late = until <= Instant::now();
                return if is_late { Err((Refusal::Nameless, None)) } else { Ok(None) };
            }
            Claim::Broken => return Err((Refusal::Malformed, None)),
            Claim::Http => {
                self.verdict = Verdict::Pass(Claim::Http);
                return Ok(Some(Ending::Requests));
            }
            Claim::Tls(name) => (Claimed::Tls(name.as_ref()), name.clone()),
            Claim::Nothing => (Claimed::Nothing, None),
        };
        let judged = judge.claim(&permit, self.flow.destination, claimed);
        judged.map_err(|refusal| (refusal, name.clone()))?;
        let is_for = |name: &Name| self.shared.interceptor.as_ref().is_some_and(|one| one.is_for(name));
        let has_secrets = name.as_ref().is_some_and(is_for);
        self.verdict = Verdict::Pass(claim);
        Ok(has_secrets.then_some(Ending::Secrets))
    }

    fn idle(&self) -> Duration {
        Duration::from_secs(self.shared.limits.idle_connection_s.into())
    }

    fn wake_at(&mut self) -> Instant {
        let idle = self.idle_since + self.idle();
        let machine = self.machine.wake_in().map(|wait| Instant::now() + wait);
        let claim = self.claim_until.filter(|_| self.verdict == Verdict::Open);
        [machine, claim].into_iter().flatten().fold(idle, Instant::min)
    }

    async fn flush(&mut self) {
        let outbound = self.shared.outbound.clone();
        while let Some(packet) = self.machine.outputs().pop_front() {
            // Closed: there is no sandbox any more.
            outbound.send(packet).await.ok();
        }
    }

    async fn abort(&mut self) -> Ending {
        self.machine.abort();
        self.machine.poll();
        self.flush().await;
        Ending::Broken
    }
}
