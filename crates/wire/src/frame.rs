//! Frames under HTTP/2, and the preamble that starts a link.
//!
//! A link is one endless byte stream: it has no connections of its own, and the HTTP/2 state at its guest
//! end lives in guest memory. A VM cloned from a template therefore wakes in the middle of a connection
//! whose other end is gone. So:
//!
//! ```text
//! host → guest   padding (zeros) · HELLO(generation, epoch) · frame · frame · …
//! guest → host                     ACK(generation, epoch)   · frame · frame · …
//! frame          epoch: u32 LE · length: u32 LE · length bytes
//! ```
//!
//! Each (re)connection draws a new epoch. The guest passes on frames of the current epoch; anything else
//! makes it drop the connection and search for a HELLO. The padding is as long as a frame can be, so that
//! a frame torn by the snapshot swallows padding and never the HELLO. User data cannot pose as a HELLO,
//! because the payload of a whole frame is never searched.
//!
//! Everything here is pure: bytes in, events out. Hostile bytes meet only this code and h2.

use bytes::{Buf, Bytes, BytesMut};

use crate::limits::MAX_FRAME_BYTES;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 8;
/// The longest payload of a frame.
pub const MAX_PAYLOAD_BYTES: usize = MAX_FRAME_BYTES - HEADER_BYTES;
/// Zeros that precede a HELLO.
pub const PADDING_BYTES: usize = MAX_FRAME_BYTES;
/// Bytes that the host discards while it waits for the ACK: what the guest of a clone may still have had
/// under way for the connection that its template held.
pub const MAX_DISCARDED_BYTES: usize = 1024 * 1024;

const HELLO_MAGIC: [u8; 16] = *b"\xB0\x07bouvet-hello\r\n";
const ACK_MAGIC: [u8; 16] = *b"\xB0\x07bouvet-ackno\r\n";
const PREAMBLE_BYTES: usize = 16 + 4 + 4;

/// Tells one connection over a link from the one before it. Never zero, so that padding is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u32);

impl Epoch {
    /// The epoch for a random number; zero is mapped to one.
    pub fn new(random: u32) -> Self {
        Self(random.max(1))
    }
}

/// What the preamble of either side says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// [`crate::GENERATION`] of the sender.
    pub generation: u32,
    /// The connection that begins.
    pub epoch: Epoch,
}

impl Preamble {
    /// What the host sends: padding, then HELLO.
    pub fn hello(self) -> Vec<u8> {
        let mut bytes = vec![0; PADDING_BYTES];
        self.encode(HELLO_MAGIC, &mut bytes);
        bytes
    }

    /// What the guest answers.
    pub fn ack(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PREAMBLE_BYTES);
        self.encode(ACK_MAGIC, &mut bytes);
        bytes
    }

    fn encode(self, magic: [u8; 16], into: &mut Vec<u8>) {
        into.extend_from_slice(&magic);
        into.extend_from_slice(&self.generation.to_le_bytes());
        into.extend_from_slice(&self.epoch.0.to_le_bytes());
    }
}

/// The header of a frame of `payload_bytes`: 1 to [`MAX_PAYLOAD_BYTES`].
pub fn header(epoch: Epoch, payload_bytes: usize) -> [u8; HEADER_BYTES] {
    assert!((1..=MAX_PAYLOAD_BYTES).contains(&payload_bytes), "a frame of {payload_bytes} bytes");
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&epoch.0.to_le_bytes());
    #[expect(clippy::cast_possible_truncation, reason = "bounded by the assertion above")]
    header[4..].copy_from_slice(&(payload_bytes as u32).to_le_bytes());
    header
}

/// What a decoder found.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The other end began a connection. For the guest: drop what was, acknowledge, serve afresh.
    Preamble(Preamble),
    /// Bytes of the current connection.
    Data(Bytes),
    /// The guest lost its connection and searches for the next HELLO. Never seen by the host.
    Lost,
}

/// Why the host gives a link up. The guest never does: it searches for the next HELLO.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame of another connection, or no frame at all.
    #[error("the guest sent a frame of an unknown connection")]
    Epoch,
    /// A length of zero or over the limit.
    #[error("the guest announced a frame of {0} bytes; 1 to {MAX_PAYLOAD_BYTES} are allowed")]
    Length(u32),
    /// No acknowledgement among the first bytes.
    #[error("the guest sent {MAX_DISCARDED_BYTES} bytes without acknowledging the link")]
    NoAck,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Searching { discarded: usize },
    Frames { epoch: Epoch, left: usize },
}

/// Turns the bytes of a link into [`Event`]s.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// The host's decoder: the only epoch it takes an ACK for.
    awaited: Option<Epoch>,
}

impl Decoder {
    /// For the guest: searches for a HELLO whenever it is lost.
    pub fn guest() -> Self {
        Self { state: State::Searching { discarded: 0 }, awaited: None }
    }

    /// For the host: takes the ACK of `epoch`, then frames of it, and fails at anything else.
    pub fn host(epoch: Epoch) -> Self {
        Self { state: State::Searching { discarded: 0 }, awaited: Some(epoch) }
    }

    /// The next event in `input`, which it consumes; `None` when more bytes are needed.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        match self.state {
            State::Searching { discarded } => self.search(discarded, input),
            State::Frames { epoch, left: 0 } => self.next_header(epoch, input),
            State::Frames { .. } if input.is_empty() => Ok(None),
            State::Frames { epoch, left } => {
                let data = input.split_to(left.min(input.len())).freeze();
                self.state = State::Frames { epoch, left: left - data.len() };
                Ok(Some(Event::Data(data)))
            }
        }
    }

    fn search(&mut self, mut discarded: usize, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        let magic = if self.awaited.is_some() { ACK_MAGIC } else { HELLO_MAGIC };
        loop {
            let found = input.windows(magic.len()).position(|window| window == magic);
            let skip = found.unwrap_or(input.len().saturating_sub(magic.len() - 1));
            input.advance(skip);
            discarded += skip;
            if self.awaited.is_some() && discarded > MAX_DISCARDED_BYTES {
                return Err(Violation::NoAck);
            }
            self.state = State::Searching { discarded };
            if found.is_none() || input.len() < PREAMBLE_BYTES {
                return Ok(None);
            }
            let preamble = parse_preamble(&input[magic.len()..PREAMBLE_BYTES]);
            match preamble {
                Some(preamble) if self.awaited.is_none_or(|epoch| epoch == preamble.epoch) => {
                    input.advance(PREAMBLE_BYTES);
                    self.state = State::Frames { epoch: preamble.epoch, left: 0 };
                    return Ok(Some(Event::Preamble(preamble)));
                }
                // An ACK that a template sent for a connection long gone, or a zero epoch.
                _ => {
                    input.advance(1);
                    discarded += 1;
                }
            }
        }
    }

    fn next_header(&mut self, epoch: Epoch, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        let Some((header, _)) = input.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [e0, e1, e2, e3, l0, l1, l2, l3] = *header;
        let (sent, length) = (u32::from_le_bytes([e0, e1, e2, e3]), u32::from_le_bytes([l0, l1, l2, l3]));
        let violation = if sent != epoch.0 {
            Violation::Epoch
        } else if length == 0 || length as usize > MAX_PAYLOAD_BYTES {
            // Empty frames carry nothing, and a flood of them would cost the receiver much.
            Violation::Length(length)
        } else {
            input.advance(HEADER_BYTES);
            self.state = State::Frames { epoch, left: length as usize };
            return self.next(input);
        };
        if self.awaited.is_some() {
            return Err(violation);
        }
        self.state = State::Searching { discarded: 0 };
        Ok(Some(Event::Lost))
    }
}

fn parse_preamble(bytes: &[u8]) -> Option<Preamble> {
    let (generation, rest) = bytes.split_first_chunk::<4>()?;
    let epoch = u32::from_le_bytes(*rest.first_chunk::<4>()?);
    let generation = u32::from_le_bytes(*generation);
    (epoch != 0).then_some(Preamble { generation, epoch: Epoch(epoch) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn preamble(epoch: u32) -> Preamble {
        Preamble { generation: crate::GENERATION, epoch: Epoch::new(epoch) }
    }

    fn frame(epoch: u32, payload: &[u8]) -> Vec<u8> {
        [&header(Epoch::new(epoch), payload.len())[..], payload].concat()
    }

    /// Feeds `stream` in pieces that end at `cuts`, and returns the data of each connection in order.
    fn sessions(stream: &[u8], piece: usize) -> Vec<(u32, Vec<u8>)> {
        let mut decoder = Decoder::guest();
        let mut input = BytesMut::new();
        let mut sessions: Vec<(u32, Vec<u8>)> = Vec::new();
        for bytes in stream.chunks(piece) {
            input.extend_from_slice(bytes);
            while let Some(event) = decoder.next(&mut input).expect("a guest never fails") {
                match event {
                    Event::Preamble(p) => sessions.push((p.epoch.0, Vec::new())),
                    Event::Data(data) => {
                        sessions.last_mut().expect("data only in a session").1.extend_from_slice(&data);
                    }
                    Event::Lost => {}
                }
            }
        }
        sessions
    }

    proptest! {
        #[test]
        fn whole_frames_arrive_as_sent(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..2000), 0..8),
            piece in 1usize..5000,
        ) {
            let mut stream = preamble(7).hello();
            for payload in &payloads {
                stream.extend(frame(7, payload));
            }
            prop_assert_eq!(sessions(&stream, piece), vec![(7, payloads.concat())]);
        }

        /// A snapshot may cut the old connection anywhere; the new one must come through whole.
        #[test]
        fn a_connection_torn_anywhere_gives_way_to_the_next(
            old in prop::collection::vec(any::<u8>(), 1..MAX_PAYLOAD_BYTES),
            cut in any::<prop::sample::Index>(),
            new in prop::collection::vec(any::<u8>(), 1..3000),
            piece in 1usize..9000,
        ) {
            let mut stream = preamble(1).hello();
            let whole = frame(1, &old);
            stream.extend_from_slice(&whole[..cut.index(whole.len() + 1)]);
            stream.extend(preamble(2).hello());
            stream.extend(frame(2, &new));
            let seen = sessions(&stream, piece);
            prop_assert_eq!(seen.last(), Some(&(2, new)));
        }

        /// The payload of a frame cannot start a connection, whatever a client makes of it.
        #[test]
        fn a_hello_inside_a_payload_is_data(before in 0usize..100, epoch in 1u32..) {
            let mut payload = vec![b'x'; before];
            preamble(epoch).encode(HELLO_MAGIC, &mut payload);
            let mut stream = preamble(9).hello();
            stream.extend(frame(9, &payload));
            prop_assert_eq!(sessions(&stream, 4096), vec![(9, payload)]);
        }

        /// Whatever a guest sends, the host's decoder ends, hands on no more than it was given and holds
        /// on to no more than one preamble.
        #[test]
        fn garbage_is_bounded_at_the_host(
            acked in any::<bool>(),
            garbage in prop::collection::vec(any::<u8>(), 0..4000),
        ) {
            let mut input = BytesMut::new();
            if acked {
                input.extend_from_slice(&preamble(3).ack());
            }
            input.extend_from_slice(&garbage);
            let mut decoder = Decoder::host(Epoch::new(3));
            let mut handed_on = 0;
            while let Ok(Some(event)) = decoder.next(&mut input) {
                if let Event::Data(data) = event {
                    handed_on += data.len();
                }
            }
            prop_assert!(handed_on <= garbage.len());
        }
    }

    #[test]
    fn the_host_takes_only_the_ack_it_waits_for() {
        let mut input = BytesMut::new();
        input.extend_from_slice(&preamble(5).ack());
        input.extend_from_slice(&frame(5, b"stale"));
        input.extend_from_slice(&preamble(6).ack());
        input.extend_from_slice(&frame(6, b"fresh"));
        let mut decoder = Decoder::host(Epoch::new(6));
        assert_eq!(decoder.next(&mut input), Ok(Some(Event::Preamble(preamble(6)))));
        assert_eq!(decoder.next(&mut input), Ok(Some(Event::Data(Bytes::from_static(b"fresh")))));
    }

    #[test]
    fn a_frame_at_the_limits_passes_and_one_past_them_does_not() {
        for (length, ok) in [(0, false), (1, true), (MAX_PAYLOAD_BYTES, true), (MAX_PAYLOAD_BYTES + 1, false)]
        {
            let mut input = BytesMut::from(&preamble(1).ack()[..]);
            let length = u32::try_from(length).expect("small");
            input.extend_from_slice(&1u32.to_le_bytes());
            input.extend_from_slice(&length.to_le_bytes());
            input.extend_from_slice(b"data");
            let mut decoder = Decoder::host(Epoch::new(1));
            assert_eq!(decoder.next(&mut input), Ok(Some(Event::Preamble(preamble(1)))));
            let next = decoder.next(&mut input);
            assert_eq!(next == Err(Violation::Length(length)), !ok, "{next:?}");
        }
    }

    #[test]
    fn the_search_for_an_ack_ends() {
        let mut decoder = Decoder::host(Epoch::new(1));
        let mut input = BytesMut::new();
        let mut sent = 0;
        loop {
            input.extend_from_slice(&[0xB0; 4096]);
            sent += 4096;
            match decoder.next(&mut input) {
                Ok(None) => assert!(sent <= MAX_DISCARDED_BYTES + 8192, "it never gave up"),
                other => break assert_eq!(other, Err(Violation::NoAck)),
            }
        }
    }
}
