//! A hostile guest's bytes: the host's decoder ends, and hands on no more than came in.

#![no_main]

use bouvet_wire::frame::{Decoder, Epoch, Event, Preamble};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, u8, Vec<u8>)| {
    let (acknowledged, piece, bytes) = input;
    let epoch = Epoch::new(7);
    let mut decoder = Decoder::host(epoch);
    let mut buffer = BytesMut::new();
    if acknowledged {
        buffer.extend_from_slice(&Preamble { generation: bouvet_wire::GENERATION, epoch }.ack());
    }
    let mut handed_on = 0;
    for piece in bytes.chunks(usize::from(piece.max(1))) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(Event::Data(data))) => handed_on += data.len(),
                Ok(Some(Event::Preamble(preamble))) => assert_eq!(preamble.epoch, epoch),
                Ok(Some(Event::Lost)) => panic!("a host is never lost"),
                Ok(None) => break,
                Err(_violation) => return,
            }
        }
        assert!(buffer.len() < 64, "{} bytes are held back", buffer.len());
    }
    assert!(handed_on <= bytes.len());
});
