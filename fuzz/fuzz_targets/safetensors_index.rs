//! A safetensors header or an index.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    flm_checkpoint::fuzzing::safetensors(bytes);
    flm_checkpoint::fuzzing::index(bytes);
});
