//! libFuzzer on [`diskferry_fuzz::log_replay`]. Nothing else stands here.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diskferry_fuzz::log_replay::run(data));
