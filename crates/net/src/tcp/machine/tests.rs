use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, IpProtocol, IpRepr, Ipv4Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::*;

const BUFFER_BYTES: usize = 131_072;
/// The sandbox's first number.
const FIRST: i32 = 1000;

fn ends() -> (SocketAddr, SocketAddr) {
    ("10.0.2.15:1000".parse().unwrap(), "93.184.215.14:7".parse().unwrap())
}

fn machine() -> Machine {
    Machine::new(ends().1, BUFFER_BYTES, 7)
}

/// A segment of the sandbox's.
fn segment(control: TcpControl, number: i32, answers: Option<TcpSeqNumber>) -> TcpRepr<'static> {
    TcpRepr {
        src_port: ends().0.port(),
        dst_port: ends().1.port(),
        control,
        seq_number: TcpSeqNumber(number),
        ack_number: answers,
        window_len: u16::MAX,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

fn packet(segment: &TcpRepr<'_>) -> Bytes {
    let (source, destination) = ends();
    let (from, to): (IpAddress, IpAddress) = (source.ip().into(), destination.ip().into());
    let ip = IpRepr::new(from, to, IpProtocol::Tcp, segment.buffer_len(), 64);
    let mut bytes = vec![0; ip.buffer_len()];
    ip.emit(&mut bytes[..], &ChecksumCapabilities::default());
    let room = &mut bytes[ip.header_len()..];
    segment.emit(&mut TcpPacket::new_unchecked(room), &from, &to, &ChecksumCapabilities::default());
    bytes.into()
}

/// What it sends now: of each segment its number, and how many bytes are in it.
fn outputs(machine: &mut Machine) -> Vec<(TcpSeqNumber, usize)> {
    machine.poll();
    let packets = std::mem::take(machine.outputs());
    let read = |packet: Bytes| {
        let ip = Ipv4Packet::new_checked(&packet).unwrap();
        let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
        (tcp.seq_number(), tcp.payload().len())
    };
    packets.into_iter().map(read).collect()
}

impl Machine {
    /// Says as much of `bytes` as there is room for, which is how much.
    fn say(&mut self, bytes: &[u8]) -> usize {
        let mut said = 0;
        while self.room() > 0 && said < bytes.len() {
            said += self
                .say_with(|room| {
                    let length = room.len().min(bytes.len() - said);
                    room[..length].copy_from_slice(&bytes[said..said + length]);
                    (length, length)
                })
                .unwrap();
        }
        said
    }
}

/// One whose connection is made, and the number that it begins with.
fn connected(mss_bytes: Option<u16>) -> (Machine, TcpSeqNumber) {
    let mut machine = machine();
    let mut begins = segment(TcpControl::Syn, FIRST, None);
    (begins.max_seg_size, begins.window_scale) = (mss_bytes, Some(7));
    machine.input(packet(&begins));
    let (number, _) = outputs(&mut machine)[0];
    machine.input(packet(&segment(TcpControl::None, FIRST + 1, Some(number + 1))));
    assert_eq!(outputs(&mut machine), []);
    (machine, number + 1)
}

#[test]
fn who_asks_for_small_packets_has_few_made_at_once() {
    let (mut machine, first) = connected(Some(1));
    assert_eq!(machine.say(&[7; BUFFER_BYTES]), BUFFER_BYTES);
    let mut next = first;
    while next - first < BUFFER_BYTES {
        let packets = outputs(&mut machine);
        assert!(!packets.is_empty() && packets.len() <= MAX_OUTPUTS, "{}", packets.len());
        for (number, length) in packets {
            assert_eq!((number, length <= 48), (next, true));
            next += length;
        }
    }
}

#[test]
fn what_was_said_outlasts_the_end_of_both() {
    for machine_ends_first in [true, false] {
        let (mut machine, first) = connected(None);
        let mut said = segment(TcpControl::Fin, FIRST + 1, Some(first));
        said.payload = b"hello";
        if machine_ends_first {
            machine.close();
            assert_eq!(outputs(&mut machine).len(), 1);
            said.ack_number = Some(first + 1);
        }
        machine.input(packet(&said));
        assert_eq!(outputs(&mut machine).len(), 1);
        if !machine_ends_first {
            machine.close();
            assert_eq!(outputs(&mut machine).len(), 1);
            machine.input(packet(&segment(TcpControl::None, FIRST + 7, Some(first + 1))));
        }
        assert_eq!(outputs(&mut machine), []);
        assert!(machine.is_over() && !machine.is_broken() && !machine.has_said_all());
        // Whoever forgot the connection breaks it off when he hears of it again.
        machine.input(packet(&segment(TcpControl::Rst, FIRST + 7, None)));
        outputs(&mut machine);
        assert!(machine.is_over() && !machine.is_broken());
        assert_eq!(machine.received(), b"hello");
        machine.consume(5);
        assert!(machine.has_said_all());
    }
}

#[test]
fn a_connection_that_is_broken_off_is_not_over() {
    let (mut machine, first) = connected(None);
    machine.input(packet(&segment(TcpControl::Fin, FIRST + 1, Some(first))));
    outputs(&mut machine);
    machine.input(packet(&segment(TcpControl::Rst, FIRST + 2, None)));
    outputs(&mut machine);
    assert!(machine.is_broken());
}

/// Something that the sandbox or the other end does.
#[derive(Debug, Clone)]
enum Deed {
    Segment { control: TcpControl, number: i32, answers: Option<i32>, window: u16, length: usize },
    Bytes(Vec<u8>),
    Say(usize),
    Consume(usize),
    Close,
}

fn deed() -> impl Strategy<Value = Deed> {
    let control = prop::sample::select(vec![
        TcpControl::None,
        TcpControl::Psh,
        TcpControl::Syn,
        TcpControl::Fin,
        TcpControl::Rst,
    ]);
    let near = || prop_oneof![-3..300_i32, any::<i32>()];
    let segment = (control, near(), prop::option::of(near()), any::<u16>(), 0..2000_usize);
    prop_oneof![
        8 => segment.prop_map(|(control, number, answers, window, length)| {
            Deed::Segment { control, number, answers, window, length }
        }),
        1 => prop::collection::vec(any::<u8>(), 20..100).prop_map(Deed::Bytes),
        2 => (0..200_000_usize).prop_map(Deed::Say),
        2 => (0..3000_usize).prop_map(Deed::Consume),
        1 => Just(Deed::Close),
    ]
}

proptest! {
    #[test]
    fn nothing_that_a_sandbox_sends_is_too_odd(mss_bytes: Option<u16>, deeds in prop::collection::vec(deed(), 0..60)) {
        let payload = vec![7; 2000];
        let (mut machine, first) = connected(mss_bytes);
        for deed in deeds {
            match deed {
                Deed::Segment { control, number, answers, window, length } => {
                    let answers = answers.map(|answers| TcpSeqNumber(first.0.wrapping_add(answers)));
                    let mut segment = segment(control, (FIRST + 1).wrapping_add(number), answers);
                    (segment.window_len, segment.payload) = (window, &payload[..length]);
                    machine.input(packet(&segment));
                }
                Deed::Bytes(bytes) => machine.input(bytes.into()),
                Deed::Say(length) => {
                    let room = machine.room();
                    prop_assert_eq!(machine.say(&vec![7; length.min(room)]), length.min(room));
                }
                Deed::Consume(length) => machine.consume(length),
                Deed::Close => machine.close(),
            }
            let was_over = machine.is_over() && !machine.is_broken();
            // With a packet for each that came, and what there is room for.
            machine.poll();
            prop_assert!(machine.outputs().len() <= MAX_OUTPUTS);
            machine.outputs().clear();
            machine.wake_in();
            prop_assert!(machine.received().len() <= BUFFER_BYTES);
            prop_assert!(!was_over || (machine.is_over() && !machine.is_broken()));
        }
    }
}
