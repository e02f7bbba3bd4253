//! The stored inputs of the fuzz targets, for replaying them as ordinary tests.

use std::fs;
use std::path::{Path, PathBuf};

/// Where they are: a folder for each target.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

/// Gives every stored input of `target` to `body`, and the empty one that every fuzzer begins with.
///
/// # Panics
///
/// When `body` does, or when there are too few inputs to say anything.
pub fn replay(target: &str, body: impl Fn(&[u8])) {
    let folder = folder().join(target);
    let inputs = fs::read_dir(&folder).expect("every target has a folder of inputs");
    let mut replayed = 0;
    for input in inputs {
        let path = input.expect("the folder can be listed").path();
        body(&fs::read(path).expect("an input can be read"));
        replayed += 1;
    }
    assert!(replayed > 3, "{target} has {replayed} stored inputs");
    body(&[]);
}
