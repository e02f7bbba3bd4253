//! See `viworks_gateway_agent::fuzz::catalogue`.
#![no_main]

use std::sync::LazyLock;

use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    folder
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| viworks_gateway_agent::fuzz::catalogue(
    FOLDER.path(),
    data
));
