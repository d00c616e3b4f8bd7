//! libFuzzer on [`diskferry_fuzz::volumes`]. Nothing else stands here.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diskferry_fuzz::volumes::run(data));
