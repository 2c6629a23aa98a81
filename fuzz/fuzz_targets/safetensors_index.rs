//! A safetensors header or an index.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    flm_candle::checkpoint::fuzzing::safetensors(bytes);
    flm_candle::checkpoint::fuzzing::index(bytes);
});
