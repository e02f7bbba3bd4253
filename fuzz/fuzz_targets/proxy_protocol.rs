//! See `viworks_common::fuzz::proxy_protocol`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| viworks_common::fuzz::proxy_protocol(data));
