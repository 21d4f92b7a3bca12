//! What the streams that go both ways are made of: `[kind u8][length u32 BE][payload]`. Pure.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Bytes of a program's input or output in one frame.
pub(crate) const MAX_DATA_BYTES: usize = 64 * 1024;
/// A description: its arguments alone may have a megabyte, and each byte of them six as JSON.
const MAX_START_BYTES: usize = 8 * 1024 * 1024;
/// What says how something went.
const MAX_WORD_BYTES: usize = 64 * 1024;
const HEADER_BYTES: usize = 5;

/// One of them. What has JSON in it is described in `docs/API.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// To the server, first: what is wanted, as JSON.
    Start(Bytes),
    /// To the server: input of the program.
    Stdin(Bytes),
    /// To the server: the program's input ends.
    CloseStdin,
    /// To the server: a signal's name or number.
    Signal(String),
    /// To the server: the terminal has this size.
    Resize { rows: u16, columns: u16 },
    /// To the client: output.
    Stdout(Bytes),
    /// To the client: output.
    Stderr(Bytes),
    /// To the client, last: how the program ended, as JSON.
    Exit(Bytes),
    /// To the client, last: why that is not known, as JSON.
    Error(Bytes),
    /// To the client, first: which sandbox it is, as JSON.
    Sandbox(Bytes),
    /// To the client: so much of the window is free again, since the program has taken input.
    Taken(u32),
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("there is no frame of kind {0}")]
    Kind(u8),
    #[error("a frame of kind {kind} is {length} bytes long; {limit} bytes are allowed")]
    Length { kind: u8, length: usize, limit: usize },
    #[error("the payload of a frame of kind {0} is not what it must be")]
    Payload(u8),
    #[error("the stream ended within a frame")]
    Cut,
}

impl Frame {
    /// As it is sent.
    pub(crate) fn encode(&self) -> Bytes {
        let (kind, payload): (u8, Bytes) = match self {
            Self::Start(json) => (0, json.clone()),
            Self::Stdin(data) => (1, data.clone()),
            Self::CloseStdin => (2, Bytes::new()),
            Self::Signal(name) => (3, name.clone().into()),
            Self::Resize { rows, columns } => {
                (4, Bytes::from([rows.to_be_bytes(), columns.to_be_bytes()].concat()))
            }
            Self::Stdout(data) => (16, data.clone()),
            Self::Stderr(data) => (17, data.clone()),
            Self::Exit(json) => (18, json.clone()),
            Self::Error(json) => (19, json.clone()),
            Self::Sandbox(json) => (20, json.clone()),
            Self::Taken(bytes) => (21, Bytes::copy_from_slice(&bytes.to_be_bytes())),
        };
        let mut encoded = BytesMut::with_capacity(HEADER_BYTES + payload.len());
        encoded.put_u8(kind);
        // Whoever makes one keeps to the limits, which are far below this.
        encoded.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        encoded.put(payload);
        encoded.freeze()
    }

    fn decode(kind: u8, mut payload: Bytes) -> Result<Self, FrameError> {
        let wrong = || FrameError::Payload(kind);
        let exactly = |length| if payload.len() == length { Ok(()) } else { Err(wrong()) };
        Ok(match kind {
            0 => Self::Start(payload),
            1 => Self::Stdin(payload),
            2 => exactly(0).map(|()| Self::CloseStdin)?,
            3 => Self::Signal(String::from_utf8(payload.into()).map_err(|_| wrong())?),
            4 => exactly(4).map(|()| Self::Resize { rows: payload.get_u16(), columns: payload.get_u16() })?,
            16 => Self::Stdout(payload),
            17 => Self::Stderr(payload),
            18 => Self::Exit(payload),
            19 => Self::Error(payload),
            20 => Self::Sandbox(payload),
            21 => exactly(4).map(|()| Self::Taken(payload.get_u32()))?,
            _ => return Err(FrameError::Kind(kind)),
        })
    }
}

fn limit(kind: u8) -> Result<usize, FrameError> {
    match kind {
        0 => Ok(MAX_START_BYTES),
        1 | 16 | 17 => Ok(MAX_DATA_BYTES),
        2 => Ok(0),
        3 => Ok(64),
        4 | 21 => Ok(4),
        18..=20 => Ok(MAX_WORD_BYTES),
        _ => Err(FrameError::Kind(kind)),
    }
}

/// Makes frames of the bytes that come. Holds no more than one frame and what came with its end.
#[derive(Debug, Default)]
pub(crate) struct Decoder(BytesMut);

impl Decoder {
    /// Takes what has come.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next frame, if it is there whole.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.0.get(..HEADER_BYTES) else { return Ok(None) };
        let mut header = header;
        let (kind, length) = (header.get_u8(), header.get_u32() as usize);
        let limit = limit(kind)?;
        if length > limit {
            return Err(FrameError::Length { kind, length, limit });
        }
        if self.0.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        self.0.advance(HEADER_BYTES);
        Frame::decode(kind, self.0.split_to(length).freeze()).map(Some)
    }

    /// Whether the stream may end here.
    pub(crate) fn end(&self) -> Result<(), FrameError> {
        if self.0.is_empty() { Ok(()) } else { Err(FrameError::Cut) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames() -> Vec<Frame> {
        let data = || Bytes::from_static(b"data");
        vec![
            Frame::Start(data()),
            Frame::Stdin(Bytes::new()),
            Frame::CloseStdin,
            Frame::Signal("TERM".into()),
            Frame::Resize { rows: 40, columns: 132 },
            Frame::Stdout(data()),
            Frame::Stderr(vec![7; MAX_DATA_BYTES].into()),
            Frame::Exit(data()),
            Frame::Error(data()),
            Frame::Sandbox(data()),
            Frame::Taken(70_000),
        ]
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(step in 1..100_000usize) {
            let sent: Vec<u8> = frames().iter().flat_map(|frame| frame.encode().to_vec()).collect();
            let (mut decoder, mut received) = (Decoder::default(), Vec::new());
            for part in sent.chunks(step) {
                decoder.push(part);
                while let Some(frame) = decoder.next().unwrap() {
                    received.push(frame);
                }
            }
            prop_assert_eq!(received, frames());
            prop_assert_eq!(decoder.end(), Ok(()));
        }

        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next() {}
        }
    }

    #[test]
    fn limits_hold_at_the_edge_and_not_past_it() {
        let of = |kind: u8, length: usize| {
            let mut decoder = Decoder::default();
            decoder.push(
                &[&[kind][..], &u32::try_from(length).unwrap().to_be_bytes(), &vec![b'0'; length]].concat(),
            );
            decoder.next()
        };
        for (kind, most) in [(0, MAX_START_BYTES), (1, MAX_DATA_BYTES), (2, 0), (3, 64), (18, MAX_WORD_BYTES)]
        {
            assert!(of(kind, most).is_ok_and(|frame| frame.is_some()), "{kind}");
            assert!(matches!(of(kind, most + 1), Err(FrameError::Length { .. })), "{kind}");
        }
        assert_eq!(of(4, 3), Err(FrameError::Payload(4)));
        assert_eq!(of(9, 0), Err(FrameError::Kind(9)));
        let mut decoder = Decoder::default();
        decoder.push(&[16, 0]);
        assert_eq!((decoder.next(), decoder.end()), (Ok(None), Err(FrameError::Cut)));
    }
}
