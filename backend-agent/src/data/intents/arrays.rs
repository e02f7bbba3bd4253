//! Many rows on their way into one statement: each column is one parameter, an array as a server reads it.

use viworks_runtime::sqlite::{Bind, Params, Value};

use crate::data::{StoreError, StoreResult};

/// What `unnest` makes rows of again: a table with these columns, and `item`, which counts from 1.
macro_rules! unnested {
    ($first:ident $first_type:ident, $($name:ident $type:ident),* $(,)?) => {
        concat!(
            "unnest(CAST(:", stringify!($first), " AS ", stringify!($first_type), "[])",
            $(", CAST(:", stringify!($name), " AS ", stringify!($type), "[])",)*
            ") WITH ORDINALITY AS a (", stringify!($first), $(", ", stringify!($name),)* ", item)"
        )
    };
}
pub(super) use unnested;

/// The same columns for [`Arrays`].
macro_rules! listed {
    ($($name:ident $type:ident),* $(,)?) => {
        &[$((concat!(":", stringify!($name)), $crate::data::intents::arrays::Kind::$type)),*]
    };
}
pub(super) use listed;

/// What a column holds, by the name of the server's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    non_camel_case_types,
    reason = "they are the server's names, which the statements have as well"
)]
pub(super) enum Kind {
    text,
    bigint,
    boolean,
    bytea,
}

impl Kind {
    /// The server's number of the type.
    const fn number(self) -> u32 {
        match self {
            Self::boolean => 16,
            Self::bytea => 17,
            Self::bigint => 20,
            Self::text => 25,
        }
    }
}

/// Rows, column by column.
#[derive(Debug)]
pub(super) struct Arrays {
    columns: Vec<(&'static str, Array)>,
}

impl Arrays {
    /// No rows of these columns.
    pub(super) fn of(columns: &[(&'static str, Kind)]) -> Self {
        let empty = |&(name, kind)| (name, Array::of(kind));
        Self {
            columns: columns.iter().map(empty).collect(),
        }
    }

    /// One more row; it has all columns, in their order.
    pub(super) fn push(&mut self, row: Params<'_>) -> StoreResult<()> {
        let names = row.iter().map(|(name, _)| *name);
        if !names.eq(self.columns.iter().map(|(name, _)| *name)) {
            let fault = "a row has other columns than its statement";
            return Err(StoreError::Unavailable(fault.into()));
        }
        for ((_, array), (_, value)) in self.columns.iter_mut().zip(row) {
            array.push(&value.bind());
        }
        Ok(())
    }

    /// As parameters of a statement, behind those that are no columns.
    pub(super) fn and<'p>(&'p self, others: Params<'p>) -> Vec<(&'static str, &'p dyn Bind)> {
        let columns = self.columns.iter();
        let columns = columns.map(|(name, array)| (*name, array as &dyn Bind));
        others.iter().copied().chain(columns).collect()
    }
}

/// One column.
#[derive(Debug)]
struct Array {
    kind: Kind,
    rows: u32,
    has_null: bool,
    /// The values, each behind its length.
    values: Vec<u8>,
}

impl Array {
    const fn of(kind: Kind) -> Self {
        Self {
            kind,
            rows: 0,
            has_null: false,
            values: Vec::new(),
        }
    }

    fn push(&mut self, value: &Value<'_>) {
        self.rows += 1;
        match value {
            Value::Null => {
                self.has_null = true;
                self.values.extend((-1_i32).to_be_bytes());
            }
            Value::Integer(number) if self.kind == Kind::boolean => {
                self.put(&[u8::from(*number != 0)]);
            }
            Value::Integer(number) => self.put(&number.to_be_bytes()),
            Value::Real(number) => self.put(&number.to_be_bytes()),
            Value::Text(text) => self.put(text.as_bytes()),
            Value::Blob(bytes) => self.put(bytes),
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        // The server refuses what is longer long before.
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.values.extend(length.to_be_bytes());
        self.values.extend(bytes);
    }
}

impl Bind for Array {
    fn bind(&self) -> Value<'_> {
        let mut bytes = Vec::with_capacity(20 + self.values.len());
        // One dimension, whose first element is number 1.
        let head = [
            1,
            u32::from(self.has_null),
            self.kind.number(),
            self.rows,
            1,
        ];
        bytes.extend(head.iter().flat_map(|number| number.to_be_bytes()));
        bytes.extend(&self.values);
        Value::Blob(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use viworks_runtime::sqlite::params;

    use super::*;

    const COLUMNS: &[(&str, Kind)] = listed!(name text, number bigint, truth boolean);

    #[test]
    fn rows_become_one_array_for_each_column() {
        let mut arrays = Arrays::of(COLUMNS);
        let (name, number, truth) = ("a", Some(2_u64), true);
        arrays.push(params! { name, number, truth }).unwrap();
        let (name, number, truth) = ("bc", None::<u64>, false);
        arrays.push(params! { name, number, truth }).unwrap();
        let given = arrays.and(&[]);
        let bytes: Vec<_> = given
            .iter()
            .map(|(name, value)| {
                let Value::Blob(bytes) = value.bind() else {
                    panic!("{name} is no array");
                };
                (*name, bytes.into_owned())
            })
            .collect();
        let name = [
            0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 25, 0, 0, 0, 2, 0, 0, 0, 1, // two texts
            0, 0, 0, 1, b'a', 0, 0, 0, 2, b'b', b'c',
        ];
        let number = [
            0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 20, 0, 0, 0, 2, 0, 0, 0, 1, // two numbers
            0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2, 255, 255, 255, 255,
        ];
        let truth = [
            0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 2, 0, 0, 0, 1, // two truths
            0, 0, 0, 1, 1, 0, 0, 0, 1, 0,
        ];
        let expected = [
            (":name", name.to_vec()),
            (":number", number.to_vec()),
            (":truth", truth.to_vec()),
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_row_of_other_columns_is_refused() {
        let mut arrays = Arrays::of(COLUMNS);
        let (name, number) = ("a", 2_u64);
        assert!(arrays.push(params! { number, name }).is_err());
        assert!(arrays.push(params! { name, number }).is_err());
    }

    #[test]
    fn the_server_is_told_the_same_columns() {
        let text = unnested!(name text, number bigint);
        assert_eq!(
            text,
            "unnest(CAST(:name AS text[]), CAST(:number AS bigint[])) WITH ORDINALITY AS a (name, number, item)"
        );
    }
}
