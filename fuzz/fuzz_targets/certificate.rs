//! See `viworks_common::fuzz::certificate`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| viworks_common::fuzz::certificate(data));
