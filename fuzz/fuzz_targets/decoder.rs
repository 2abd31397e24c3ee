//! libFuzzer on the decoder.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sessionlog_fuzz::decoder(bytes));
