//! Keyset pages: one row more than wanted tells whether there is a next page.

use sqlx::sqlite::SqliteRow;
use viworks_common::limits;

use crate::data::{Listing, StoreResult};

/// The limit of the statement for a page of `limit` rows.
pub(super) fn rows_wanted(limit: usize) -> i64 {
    i64::try_from(held(limit) + 1).unwrap_or(i64::MAX)
}

fn held(limit: usize) -> usize {
    limit.clamp(1, limits::PAGE_ROWS_MAX)
}

/// The rows of a statement that asked for [`rows_wanted`].
pub(super) struct Fetched {
    rows: Vec<SqliteRow>,
    limit: usize,
}

impl Fetched {
    pub(super) fn new(rows: Vec<SqliteRow>, limit: usize) -> Self {
        Self {
            rows,
            limit: held(limit),
        }
    }

    pub(super) fn listing<T, K>(
        mut self,
        read: impl Fn(&SqliteRow) -> StoreResult<T>,
        key: impl Fn(&T) -> K,
    ) -> StoreResult<Listing<T, K>> {
        let more = self.rows.len() > self.limit;
        self.rows.truncate(self.limit);
        let items = self
            .rows
            .iter()
            .map(read)
            .collect::<StoreResult<Vec<T>>>()?;
        let next = items.last().filter(|_last| more).map(key);
        Ok(Listing { items, next })
    }
}
