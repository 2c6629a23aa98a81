//! A PyTorch file, or the pickle inside one.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    flm_checkpoint::fuzzing::pytorch(bytes);
    flm_checkpoint::fuzzing::pickle(bytes);
});
