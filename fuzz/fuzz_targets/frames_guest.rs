//! Whatever a torn connection left behind, the guest finds the next HELLO and what follows it.

#![no_main]

use bouvet_wire::frame::{self, Decoder, Epoch, Event, Preamble};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|before: Vec<u8>| {
    let epoch = Epoch::new(0x5EED_CAFE);
    let hello = Preamble { generation: bouvet_wire::GENERATION, epoch };
    let mut buffer = BytesMut::from(&before[..]);
    buffer.extend_from_slice(&hello.hello());
    buffer.extend_from_slice(&frame::header(epoch, 5));
    buffer.extend_from_slice(b"fresh");

    let mut decoder = Decoder::guest();
    let mut fresh = Vec::new();
    let mut found = false;
    while let Some(event) = decoder.next(&mut buffer).expect("a guest never fails") {
        match event {
            Event::Preamble(preamble) => {
                found = preamble == hello;
                fresh.clear();
            }
            Event::Data(data) => fresh.extend_from_slice(&data),
            Event::Lost => found = false,
        }
    }
    assert!(found, "the HELLO was not found");
    assert_eq!(fresh, b"fresh");
});
