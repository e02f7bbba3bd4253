//! A bundle that was written, and what is in it.

use std::path::Path;

use serde::Serialize;
use viworks_runtime::bundle::Bundle;

use super::document::{Document, Kind};
use crate::failure::Failure;
use crate::output::{self, Format};

#[derive(Serialize)]
struct Written<'b> {
    file: &'b Path,
    contents: &'b [String],
}

/// Prints it; where somebody was asked the list was there before.
pub fn written(
    bundle: &Bundle,
    file: &Path,
    is_listed: bool,
    format: Format,
) -> Result<(), Failure> {
    match format {
        Format::Json => {
            let contents = bundle.list();
            Document::new(Kind::DiagBundle, Written { file, contents }).print()
        }
        Format::Table if is_listed => output::line(&format!("{} is written", file.display())),
        Format::Table => output::line(bundle.told(file).trim_end()),
    }
}
