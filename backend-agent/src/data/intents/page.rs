//! Keyset pages: one row more than wanted tells whether there is a next page. A page whose rows are large ends early.

use viworks_common::limits;

use crate::data::Listing;

/// The limit of the statement for a page of `limit` rows.
pub(super) fn rows_wanted(limit: usize) -> usize {
    held(limit) + 1
}

fn held(limit: usize) -> usize {
    limit.clamp(1, limits::PAGE_ROWS_MAX)
}

/// What was read of a page: as much as one page may hold.
pub(super) struct Rows<T> {
    pub(super) items: Vec<T>,
    /// It ended because of its bytes, and there are more.
    pub(super) cut: bool,
}

/// The page of `limit` rows whose statement asked for [`rows_wanted`].
pub(super) fn listing<T, K>(
    Rows { mut items, cut }: Rows<T>,
    limit: usize,
    key: impl Fn(&T) -> K,
) -> Listing<T, K> {
    let more = cut || items.len() > held(limit);
    items.truncate(held(limit));
    let next = items.last().filter(|_last| more).map(key);
    Listing { items, next }
}

/// The key of a page whose rows follow `after`; what begins with a hexadecimal digit sorts behind nothing at all.
pub(super) fn following(after: Option<impl ToString>) -> String {
    after.map_or_else(String::new, |after| after.to_string())
}

/// The key of a page whose rows come before `after`, and so before what no id begins with.
pub(super) fn preceding(after: Option<impl ToString>) -> String {
    after.map_or_else(|| "~".to_owned(), |after| after.to_string())
}
