//! libFuzzer on [`diskferry_fuzz::parent_locator`]. Nothing else stands here.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diskferry_fuzz::parent_locator::run(data));
