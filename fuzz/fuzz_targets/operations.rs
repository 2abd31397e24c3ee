//! libFuzzer on the log compared with its model.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sessionlog_fuzz::operations(bytes));
