//! Every message that the host decodes: garbage is refused, and what is taken survives a round trip.

#![no_main]

use bouvet_wire::v1;
use libfuzzer_sys::fuzz_target;
use prost::Message;

fn decode<M: Message + Default + PartialEq>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let again = M::decode(&message.encode_to_vec()[..]).expect("what was encoded is decoded");
        assert!(again == message);
    }
}

fuzz_target!(|bytes: &[u8]| {
    decode::<v1::PersonaliseReply>(bytes);
    decode::<v1::ExecOutput>(bytes);
    decode::<v1::ReadChunk>(bytes);
    decode::<v1::WriteReply>(bytes);
    decode::<v1::ListReply>(bytes);
});
