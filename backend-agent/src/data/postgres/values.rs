//! Values on their way to the server and back: binary, of whatever type it wants.

use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgRow, PgTypeInfo};
use sqlx::{Column as _, Postgres, Row as _, Type, TypeInfo as _, ValueRef as _};
use viworks_runtime::sqlite::{Columns, Value};

use super::append::FROM_1970_TO_2000;

/// How the server wants a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int2,
    Int4,
    /// Microseconds.
    Time,
    /// Numbers of eight bytes, text, documents and bytes go as they are.
    Plain,
}

impl Kind {
    /// By the type that the server says it has.
    pub(super) fn of(wanted: &PgTypeInfo) -> Self {
        match wanted.name() {
            "BOOL" => Self::Bool,
            "INT2" => Self::Int2,
            "INT4" => Self::Int4,
            "TIMESTAMPTZ" => Self::Time,
            _ => Self::Plain,
        }
    }
}

/// The earliest time that the server knows, in microseconds since 1970: the year 4713 before Christ.
const EARLIEST: i64 = -210_866_803_200_000_000;

/// A value on its way to the server, which says itself what type each parameter has.
pub(super) struct Bound<'v> {
    pub(super) value: Value<'v>,
    pub(super) kind: Kind,
}

impl Type<Postgres> for Bound<'_> {
    fn type_info() -> PgTypeInfo {
        // Not specified: the statement says it.
        PgTypeInfo::with_oid(Oid(0))
    }
}

impl Encode<'_, Postgres> for Bound<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        match (&self.value, self.kind) {
            (Value::Null, _) => return Ok(IsNull::Yes),
            (Value::Integer(number), Kind::Bool) => buffer.push(u8::from(*number != 0)),
            (Value::Integer(number), Kind::Int2) => {
                buffer.extend_from_slice(&i16::try_from(*number)?.to_be_bytes());
            }
            (Value::Integer(number), Kind::Int4) => {
                buffer.extend_from_slice(&i32::try_from(*number)?.to_be_bytes());
            }
            (Value::Integer(micros), Kind::Time) => {
                // The ends of all time are those of the server.
                let bytes = match *micros {
                    ..EARLIEST => i64::MIN,
                    micros => micros.saturating_sub(FROM_1970_TO_2000),
                };
                buffer.extend_from_slice(&bytes.to_be_bytes());
            }
            (Value::Integer(number), Kind::Plain) => {
                buffer.extend_from_slice(&number.to_be_bytes());
            }
            (Value::Real(number), _) => buffer.extend_from_slice(&number.to_be_bytes()),
            (Value::Text(text), _) => buffer.extend_from_slice(text.as_bytes()),
            (Value::Blob(bytes), _) => buffer.extend_from_slice(bytes),
        }
        Ok(IsNull::No)
    }
}

/// A row that was read.
pub(super) struct Read(pub(super) PgRow);

impl Read {
    fn at(&self, index: usize) -> Option<Value<'_>> {
        let raw = self.0.try_get_raw(index).ok()?;
        if raw.is_null() {
            return Some(Value::Null);
        }
        let bytes = raw.as_bytes().ok()?;
        Some(match raw.type_info().name() {
            "INT8" => Value::Integer(i64::from_be_bytes(bytes.try_into().ok()?)),
            "INT4" => Value::Integer(i32::from_be_bytes(bytes.try_into().ok()?).into()),
            "INT2" => Value::Integer(i16::from_be_bytes(bytes.try_into().ok()?).into()),
            "TIMESTAMPTZ" => {
                let micros = i64::from_be_bytes(bytes.try_into().ok()?);
                Value::Integer(micros.saturating_add(FROM_1970_TO_2000))
            }
            "FLOAT8" => Value::Real(f64::from_be_bytes(bytes.try_into().ok()?)),
            "BOOL" => Value::Integer(i64::from(*bytes.first()? != 0)),
            "TEXT" | "VARCHAR" | "NAME" | "JSON" => Value::Text(str::from_utf8(bytes).ok()?.into()),
            "BYTEA" => Value::Blob(bytes.into()),
            _ => return None,
        })
    }
}

impl Columns for Read {
    fn value(&self, column: &str) -> Option<Value<'_>> {
        let found = self.0.columns().iter();
        let index = found.into_iter().position(|known| known.name() == column)?;
        self.at(index)
    }

    fn first(&self) -> Option<Value<'_>> {
        self.at(0)
    }

    fn bytes(&self) -> usize {
        let size = |index| match self.at(index) {
            Some(Value::Text(text)) => text.len(),
            Some(Value::Blob(bytes)) => bytes.len(),
            Some(Value::Null | Value::Integer(_) | Value::Real(_)) | None => 0,
        };
        (0..self.0.columns().len()).map(size).sum()
    }
}
