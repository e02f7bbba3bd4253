//! See `viworks_gateway_agent::fuzz::configuration`.
#![no_main]

use std::sync::LazyLock;

use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    viworks_gateway_agent::fuzz::prepare(folder.path()).expect("a folder that can be written");
    folder
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| viworks_gateway_agent::fuzz::configuration(
    FOLDER.path(),
    data
));
