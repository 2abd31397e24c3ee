//! libFuzzer on the reader of JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sessionlog_fuzz::json(bytes));
