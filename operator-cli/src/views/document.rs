//! The envelope of a document that only the command line makes: the version and the kind, as on every answer of the
//! API.

use serde::Serialize;
use viworks_api::ApiVersion;

use crate::failure::Failure;
use crate::output;

/// What a document is, where the API has no such kind or another one.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) enum Kind {
    ContextList,
    /// A bundle for whoever is asked for help.
    DiagBundle,
    ErrorList,
    ExitCodeList,
    /// What a dry run says; shorter than the API's.
    RunPlan,
    /// A run, its commands and who was skipped, in one.
    RunResult,
}

/// A body in its envelope.
#[derive(Debug, Serialize)]
pub(super) struct Document<T> {
    #[serde(rename = "apiVersion")]
    api_version: ApiVersion,
    kind: Kind,
    #[serde(flatten)]
    body: T,
}

impl<T: Serialize> Document<T> {
    pub(super) const fn new(kind: Kind, body: T) -> Self {
        Self {
            api_version: ApiVersion::V1,
            kind,
            body,
        }
    }

    pub(super) fn print(&self) -> Result<(), Failure> {
        output::json(self)
    }
}

/// The body of a list.
#[derive(Debug, Serialize)]
pub(super) struct Items<T> {
    items: Vec<T>,
}

impl<T> Items<T> {
    pub(super) fn of(items: impl IntoIterator<Item = T>) -> Self {
        Self {
            items: items.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_begins_with_its_version_and_its_kind() {
        let document = Document::new(Kind::ContextList, Items::of([1, 2]));
        assert_eq!(
            serde_json::to_string(&document).unwrap(),
            r#"{"apiVersion":"viworks/v1","kind":"ContextList","items":[1,2]}"#
        );
    }
}
