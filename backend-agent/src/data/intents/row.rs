//! Between rows and domain types; says which row could not be read.

use serde::de::DeserializeOwned;
use viworks_runtime::sqlite::{Column, Row};

use crate::data::{StoreError, StoreResult};

/// A row of `table` whose first column tells which.
pub(super) struct Reader<'r> {
    table: &'static str,
    row: &'r Row<'r>,
}

impl<'r> Reader<'r> {
    pub(super) const fn new(table: &'static str, row: &'r Row<'r>) -> Self {
        Self { table, row }
    }

    /// What a column holds, by the type that is wanted.
    pub(super) fn get<T: Column>(&self, column: &'static str) -> StoreResult<T> {
        let value = self.row.get(column);
        value.ok_or_else(|| self.inconsistent(column))
    }

    /// A word with a meaning.
    pub(super) fn word<T>(
        &self,
        column: &'static str,
        meaning: impl FnOnce(&str) -> Option<T>,
    ) -> StoreResult<T> {
        let word = self.row.text(column).and_then(meaning);
        word.ok_or_else(|| self.inconsistent(column))
    }

    /// A document.
    pub(super) fn json<T: DeserializeOwned>(&self, column: &'static str) -> StoreResult<T> {
        self.word(column, |text| serde_json::from_str(text).ok())
    }

    /// A document, or null.
    pub(super) fn json_optional<T: DeserializeOwned>(
        &self,
        column: &'static str,
    ) -> StoreResult<Option<T>> {
        match self.get::<Option<String>>(column)? {
            Some(_text) => self.json(column).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn inconsistent(&self, column: &'static str) -> StoreError {
        StoreError::Inconsistent {
            table: self.table,
            column,
            row: self.row.name().unwrap_or("?").to_owned(),
        }
    }
}

/// One column of a row.
pub(super) fn column<T: Column>(
    table: &'static str,
    column: &'static str,
) -> impl Fn(&Row<'_>) -> StoreResult<T> {
    move |row| Reader::new(table, row).get(column)
}

/// A document as text. What the store writes has string keys and no failing parts.
pub(super) fn to_json(value: &(impl serde::Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("the store's documents have string keys only")
}
