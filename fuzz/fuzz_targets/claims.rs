//! What a hostile guest says first in a connection: it is the same in whatever pieces it comes, and what is a request to
//! anybody is one here.

#![no_main]

use bouvet_net::claim::{self, Claim, MAX_CLAIM_BYTES};
use libfuzzer_sys::fuzz_target;

// The first byte is the length of records that the rest is put in; without it, the rest is what is said.
fuzz_target!(|input: &[u8]| {
    let Some((record, rest)) = input.split_first() else { return };
    match record {
        0 => drop(in_pieces(rest)),
        record => {
            // What else would be in the last record is not of the greeting, and not allowed there.
            let length = match rest {
                [_, a, b, c, ..] => 4 + u32::from_be_bytes([0, *a, *b, *c]) as usize,
                _ => rest.len(),
            };
            let message = &rest[..rest.len().min(length)];
            let [whole, split] = [16 * 1024, (*record).into()].map(|bytes| in_records(message, bytes));
            if split.len() <= MAX_CLAIM_BYTES {
                assert_eq!(in_pieces(&whole), in_pieces(&split), "the records change what is said");
            }
        }
    }
});

fn in_records(message: &[u8], bytes: usize) -> Vec<u8> {
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).expect("a record is small");
        [&[22, 3, 1], &length.to_be_bytes()[..], part].concat()
    };
    message.chunks(bytes).flat_map(record).collect()
}

/// Reads what is said as it comes.
fn in_pieces(bytes: &[u8]) -> Claim {
    let step = 1 + bytes.len() / 16;
    let mut said = Claim::More;
    for end in (0..bytes.len()).step_by(step).chain([bytes.len()]) {
        let now = claim::read(&bytes[..end]);
        assert!(said == Claim::More || said == now, "{said:?} became {now:?} at {end}");
        said = now;
    }
    if bytes.starts_with(b"GET /") || bytes.starts_with(b"\r\nPOST /") {
        assert_eq!(said, Claim::Http);
    }
    if let Claim::Tls(Some(name)) = &said {
        assert_eq!(name.as_str().parse().as_ref(), Ok(name), "a name is read as it is shown");
    }
    said
}
