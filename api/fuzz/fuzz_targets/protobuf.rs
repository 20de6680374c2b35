//! Whatever bytes can be read as protobuf can be written, and are then read as the same again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_api::decode::{Format, document};
use skiff_api::protobuf;

fuzz_target!(|bytes: &[u8]| {
    // The envelope of a pod, unless the input brings its own.
    let enveloped = protobuf::envelope("v1", "Pod", bytes);
    for bytes in [bytes, &enveloped] {
        let Ok(read) = document(bytes, Format::Protobuf, "v1", "Pod") else { continue };
        let written = protobuf::document(&read).expect("its type is known");
        let again = document(&written, Format::Protobuf, "", "").expect("what was written can be read");
        assert_eq!(protobuf::document(&again), Some(written));
    }
});
