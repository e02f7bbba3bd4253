//! See `viworks_common::fuzz::arguments`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| viworks_common::fuzz::arguments(data));
