//! The wire is frozen: every method and field, with its number and type, is on record.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fmt::Write as _;

use protox::prost_reflect::{DescriptorPool, MessageDescriptor};

fn record(message: &MessageDescriptor, into: &mut String) {
    for field in message.fields() {
        let (name, number, kind) = (field.name(), field.number(), field.kind());
        let cardinality = if field.is_list() || field.is_map() { "repeated " } else { "" };
        writeln!(into, "{}.{name} = {number}: {cardinality}{kind:?}", message.name()).unwrap();
    }
}

#[test]
fn the_wire_is_as_recorded() {
    let descriptors = protox::compile(["bouvet/guest/v1/guest.proto"], ["proto"]).unwrap();
    let pool = DescriptorPool::from_file_descriptor_set(descriptors).unwrap();
    let mut seen = format!("generation {}\n", bouvet_wire::GENERATION);
    for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let (input, output) = (method.input(), method.output());
        writeln!(seen, "rpc {}({}) -> {}", method.name(), input.name(), output.name()).unwrap();
    }
    pool.all_messages().for_each(|message| record(&message, &mut seen));
    for value in pool.all_enums().flat_map(|e| e.values().collect::<Vec<_>>()) {
        writeln!(seen, "{} = {}", value.name(), value.number()).unwrap();
    }
    if std::env::var_os("BOUVET_RECORD_WIRE").is_some() {
        std::fs::write("tests/wire.txt", &seen).unwrap();
    }
    let recorded = std::fs::read_to_string("tests/wire.txt").unwrap();
    assert!(
        seen == recorded,
        "the wire differs from tests/wire.txt. If an old guest cannot serve the change, raise GENERATION; \
         then record it with BOUVET_RECORD_WIRE=1.\n--- now\n{seen}"
    );
}
