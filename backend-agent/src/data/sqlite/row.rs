//! Between columns or documents and domain types; says which row could not be read.

use std::str::FromStr;

use serde::de::DeserializeOwned;
use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{Decode, Row, Type};
use viworks_common::time::Timestamp;

use crate::data::{StoreError, StoreResult};

/// Rows in one statement: large enough to be fast, small enough to keep its document small.
pub(super) const CHUNK_ROWS: usize = 1_000;

/// A row of `table` whose first column tells which.
pub(super) struct Reader<'r> {
    table: &'static str,
    row: &'r SqliteRow,
}

impl<'r> Reader<'r> {
    pub(super) const fn new(table: &'static str, row: &'r SqliteRow) -> Self {
        Self { table, row }
    }

    /// Any column that SQLite itself can read.
    pub(super) fn get<T: Decode<'r, Sqlite> + Type<Sqlite>>(
        &self,
        column: &'static str,
    ) -> StoreResult<T> {
        self.row
            .try_get(column)
            .map_err(|_unreadable| self.inconsistent(column))
    }

    /// Text that is the one form of a domain type.
    pub(super) fn parse<T: FromStr>(&self, column: &'static str) -> StoreResult<T> {
        let text: &str = self.get(column)?;
        text.parse().map_err(|_invalid| self.inconsistent(column))
    }

    /// Like [`Self::parse`], or null.
    pub(super) fn parse_optional<T: FromStr>(
        &self,
        column: &'static str,
    ) -> StoreResult<Option<T>> {
        match self.get::<Option<&str>>(column)? {
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_invalid| self.inconsistent(column)),
            None => Ok(None),
        }
    }

    /// A word with a meaning.
    pub(super) fn word<T>(
        &self,
        column: &'static str,
        meaning: impl FnOnce(&str) -> Option<T>,
    ) -> StoreResult<T> {
        meaning(self.get(column)?).ok_or_else(|| self.inconsistent(column))
    }

    /// A place in a document.
    pub(super) fn index(&self, column: &'static str) -> StoreResult<usize> {
        usize::try_from(self.count(column)?).map_err(|_large| self.inconsistent(column))
    }

    /// A point in time.
    pub(super) fn time(&self, column: &'static str) -> StoreResult<Timestamp> {
        self.get(column).map(Timestamp::from_unix_micros)
    }

    /// A point in time, or null.
    pub(super) fn time_optional(&self, column: &'static str) -> StoreResult<Option<Timestamp>> {
        Ok(self
            .get::<Option<i64>>(column)?
            .map(Timestamp::from_unix_micros))
    }

    /// A number that is not negative.
    pub(super) fn count(&self, column: &'static str) -> StoreResult<u64> {
        u64::try_from(self.get::<i64>(column)?).map_err(|_negative| self.inconsistent(column))
    }

    /// A number that is not negative, or null.
    pub(super) fn count_optional(&self, column: &'static str) -> StoreResult<Option<u64>> {
        match self.get::<Option<i64>>(column)? {
            Some(number) => u64::try_from(number)
                .map(Some)
                .map_err(|_negative| self.inconsistent(column)),
            None => Ok(None),
        }
    }

    /// A number that fits 32 bits.
    pub(super) fn small(&self, column: &'static str) -> StoreResult<u32> {
        u32::try_from(self.get::<i64>(column)?).map_err(|_outside| self.inconsistent(column))
    }

    /// 32 bytes.
    pub(super) fn digest(&self, column: &'static str) -> StoreResult<[u8; 32]> {
        <[u8; 32]>::try_from(self.get::<&[u8]>(column)?)
            .map_err(|_length| self.inconsistent(column))
    }

    /// A document.
    pub(super) fn json<T: DeserializeOwned>(&self, column: &'static str) -> StoreResult<T> {
        serde_json::from_str(self.get(column)?).map_err(|_invalid| self.inconsistent(column))
    }

    /// A document, or null.
    pub(super) fn json_optional<T: DeserializeOwned>(
        &self,
        column: &'static str,
    ) -> StoreResult<Option<T>> {
        match self.get::<Option<&str>>(column)? {
            Some(text) => serde_json::from_str(text)
                .map(Some)
                .map_err(|_invalid| self.inconsistent(column)),
            None => Ok(None),
        }
    }

    pub(super) fn inconsistent(&self, column: &'static str) -> StoreError {
        StoreError::Inconsistent {
            table: self.table,
            column,
            row: self
                .row
                .try_get(0)
                .unwrap_or_else(|_unreadable| "?".to_owned()),
        }
    }
}

/// A number as SQLite stores it; one beyond its range becomes the largest.
pub(super) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A document as text. What the store writes has string keys and no failing parts.
pub(super) fn to_json(value: &(impl serde::Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("the store's documents have string keys only")
}
