//! A config.json: what is read can be written and read again.
#![no_main]

use flm_checkpoint::{TeleFlmConfig};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(config) = TeleFlmConfig::from_json(text) else { return };
    let again = TeleFlmConfig::from_json(&config.to_json()).expect("what was written can be read");
    assert_eq!(again.parameter_count(), config.parameter_count());
    assert_eq!(again.logit_scale().to_bits(), config.logit_scale().to_bits());
});
