//! Values on their way into a statement and out of a row.

use std::borrow::Cow;

use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};
use viworks_common::id::{
    AgentId, AgentRunId, ApiKeyId, BootId, CommandId, CommandName, FieldName, GatewayName,
    InstallId, InstanceId, RunId, SessionId, StreamName, Tenant, TicketId,
};
use viworks_common::time::Timestamp;

/// What SQLite can store, in the types that the tables and their sums use.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'v> {
    /// Nothing.
    Null,
    /// A number, a time or a truth.
    Integer(i64),
    /// A number that need not be whole.
    Real(f64),
    /// Text, an id or a document.
    Text(Cow<'v, str>),
    /// Bytes.
    Blob(Cow<'v, [u8]>),
}

impl<'v> Value<'v> {
    /// What a row holds; `None` for text that is none.
    pub(super) fn of(value: ValueRef<'v>) -> Option<Self> {
        match value {
            ValueRef::Null => Some(Self::Null),
            ValueRef::Integer(number) => Some(Self::Integer(number)),
            ValueRef::Text(text) => Some(Self::Text(str::from_utf8(text).ok()?.into())),
            ValueRef::Blob(bytes) => Some(Self::Blob(bytes.into())),
            ValueRef::Real(number) => Some(Self::Real(number)),
        }
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Real(number) => ValueRef::Real(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// What can be the parameter of a statement.
pub trait Bind {
    /// As SQLite stores it.
    fn bind(&self) -> Value<'_>;
}

/// What can be read from a column.
pub trait Column: Sized {
    /// The value's meaning; `None` where it has none.
    fn read(value: Value<'_>) -> Option<Self>;
}

/// Ids and names are stored as the one text that reads as them.
macro_rules! text {
    ($($id:ty),* $(,)?) => {$(
        impl Bind for $id {
            fn bind(&self) -> Value<'_> {
                Value::Text(self.to_string().into())
            }
        }

        impl Column for $id {
            fn read(value: Value<'_>) -> Option<Self> {
                match value {
                    Value::Text(text) => text.parse().ok(),
                    Value::Null | Value::Integer(_) | Value::Real(_) | Value::Blob(_) => None,
                }
            }
        }
    )*};
}

text!(
    AgentId,
    AgentRunId,
    ApiKeyId,
    BootId,
    CommandId,
    CommandName,
    FieldName,
    GatewayName,
    InstallId,
    InstanceId,
    RunId,
    SessionId,
    StreamName,
    Tenant,
    TicketId,
);

impl Bind for String {
    fn bind(&self) -> Value<'_> {
        self.as_str().bind()
    }
}

impl Column for String {
    fn read(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Text(text) => Some(text.into_owned()),
            Value::Null | Value::Integer(_) | Value::Real(_) | Value::Blob(_) => None,
        }
    }
}

/// Numbers are stored as `i64`; one beyond its range becomes the nearest, and one that does not fit reads as nothing.
macro_rules! number {
    ($($number:ty),*) => {$(
        impl Bind for $number {
            fn bind(&self) -> Value<'_> {
                Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX))
            }
        }

        impl Column for $number {
            fn read(value: Value<'_>) -> Option<Self> {
                match value {
                    Value::Integer(number) => Self::try_from(number).ok(),
                    Value::Null | Value::Real(_) | Value::Text(_) | Value::Blob(_) => None,
                }
            }
        }
    )*};
}

number!(u64, usize);

impl Bind for u32 {
    fn bind(&self) -> Value<'_> {
        Value::Integer(i64::from(*self))
    }
}

impl Column for u32 {
    fn read(value: Value<'_>) -> Option<Self> {
        i64::read(value).and_then(|number| Self::try_from(number).ok())
    }
}

impl Bind for i64 {
    fn bind(&self) -> Value<'_> {
        Value::Integer(*self)
    }
}

impl Column for i64 {
    fn read(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Integer(number) => Some(number),
            Value::Null | Value::Real(_) | Value::Text(_) | Value::Blob(_) => None,
        }
    }
}

impl Column for f64 {
    fn read(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Real(number) => Some(number),
            Value::Null | Value::Integer(_) | Value::Text(_) | Value::Blob(_) => None,
        }
    }
}

impl Bind for bool {
    fn bind(&self) -> Value<'_> {
        Value::Integer(i64::from(*self))
    }
}

impl Column for bool {
    fn read(value: Value<'_>) -> Option<Self> {
        i64::read(value).map(|number| number != 0)
    }
}

impl Bind for Timestamp {
    fn bind(&self) -> Value<'_> {
        Value::Integer(self.unix_micros())
    }
}

impl Column for Timestamp {
    fn read(value: Value<'_>) -> Option<Self> {
        i64::read(value).map(Self::from_unix_micros)
    }
}

impl Bind for str {
    fn bind(&self) -> Value<'_> {
        Value::Text(self.into())
    }
}

impl Bind for [u8] {
    fn bind(&self) -> Value<'_> {
        Value::Blob(self.into())
    }
}

impl<const LENGTH: usize> Bind for [u8; LENGTH] {
    fn bind(&self) -> Value<'_> {
        self.as_slice().bind()
    }
}

impl<const LENGTH: usize> Column for [u8; LENGTH] {
    fn read(value: Value<'_>) -> Option<Self> {
        Vec::read(value)?.try_into().ok()
    }
}

impl Bind for Vec<u8> {
    fn bind(&self) -> Value<'_> {
        self.as_slice().bind()
    }
}

impl Column for Vec<u8> {
    fn read(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Blob(bytes) => Some(bytes.into_owned()),
            Value::Null | Value::Integer(_) | Value::Real(_) | Value::Text(_) => None,
        }
    }
}

impl<T: Bind> Bind for Option<T> {
    fn bind(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Null, Bind::bind)
    }
}

impl<T: Column> Column for Option<T> {
    fn read(value: Value<'_>) -> Option<Self> {
        if value == Value::Null {
            return Some(None);
        }
        T::read(value).map(Some)
    }
}

impl<T: Bind + ?Sized> Bind for &T {
    fn bind(&self) -> Value<'_> {
        (**self).bind()
    }
}
