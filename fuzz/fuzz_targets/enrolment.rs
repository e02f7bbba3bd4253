//! See `viworks_common::fuzz::enrolment`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| viworks_common::fuzz::enrolment(data));
