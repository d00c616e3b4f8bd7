//! libFuzzer on [`diskferry_fuzz::journal`]. Nothing else stands here.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diskferry_fuzz::journal::run(data));
