//! libFuzzer on [`diskferry_fuzz::boot_from_disk`]. Nothing else stands here.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| diskferry_fuzz::boot_from_disk::run(data));
