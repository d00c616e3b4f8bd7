//! libFuzzer on [`diskferry_fuzz::machine_state`]. Nothing else stands here.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diskferry_fuzz::machine_state::run(data));
