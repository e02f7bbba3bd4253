//! JSON objects with any keys, of which none may stand there twice: serde would take the last and say nothing, so that
//! two readers of one text could understand two things.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::fmt::{self, Display};
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Reads an object into a map, for `deserialize_with`.
///
/// # Errors
///
/// When it is no such object, or has a key twice, in the words that serde has for fields.
pub fn map<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord + Display,
    V: Deserialize<'de>,
{
    struct Entries<K, V>(PhantomData<(K, V)>);

    impl<'de, K, V> Visitor<'de> for Entries<K, V>
    where
        K: Deserialize<'de> + Ord + Display,
        V: Deserialize<'de>,
    {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut entries = BTreeMap::new();
            while let Some(key) = access.next_key::<K>()? {
                match entries.entry(key) {
                    Entry::Vacant(slot) => slot.insert(access.next_value()?),
                    Entry::Occupied(slot) => {
                        let key = slot.key();
                        return Err(A::Error::custom(format_args!("duplicate field `{key}`")));
                    }
                };
            }
            Ok(entries)
        }
    }

    deserializer.deserialize_map(Entries(PhantomData))
}

/// Any JSON value, and where a key stands twice in it. Without `KEPT` the value is looked at and not kept.
#[derive(Debug)]
pub struct Checked<const KEPT: bool> {
    /// The value; null where it is not kept.
    pub value: Value,
    /// The first key that stands in its object twice, with the way to it, such as `labels.site` or `records[3].at`.
    pub repeated: Option<String>,
}

impl<const KEPT: bool> Checked<KEPT> {
    const fn of(value: Value) -> Self {
        Self {
            value,
            repeated: None,
        }
    }

    fn scalar(value: impl Into<Value>) -> Self {
        Self::of(if KEPT { value.into() } else { Value::Null })
    }
}

impl<'de, const KEPT: bool> Deserialize<'de> for Checked<KEPT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any<const KEPT: bool>;

impl<'de, const KEPT: bool> Visitor<'de> for Any<KEPT> {
    type Value = Checked<KEPT>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Checked::of(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Checked::scalar(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Checked::scalar(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Checked::scalar(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Checked::scalar(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Checked::scalar(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let (mut items, mut repeated) = (Vec::new(), None);
        let mut at = 0_usize;
        while let Some(item) = access.next_element::<Checked<KEPT>>()? {
            let inside = |way: String| match way.starts_with('[') {
                true => format!("[{at}]{way}"),
                false => format!("[{at}].{way}"),
            };
            repeated = repeated.or_else(|| item.repeated.map(inside));
            if KEPT {
                items.push(item.value);
            }
            at += 1;
        }
        Ok(Checked {
            value: if KEPT {
                Value::Array(items)
            } else {
                Value::Null
            },
            repeated,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let (mut entries, mut seen, mut repeated) = (Map::new(), BTreeSet::new(), None);
        while let Some(key) = access.next_key::<String>()? {
            let item = access.next_value::<Checked<KEPT>>()?;
            if repeated.is_none() {
                repeated = match item.repeated {
                    _ if seen.contains(&key) => Some(key.clone()),
                    Some(way) if way.starts_with('[') => Some(format!("{key}{way}")),
                    Some(way) => Some(format!("{key}.{way}")),
                    None => None,
                };
            }
            if KEPT {
                entries.insert(key.clone(), item.value);
            }
            seen.insert(key);
        }
        Ok(Checked {
            value: if KEPT {
                Value::Object(entries)
            } else {
                Value::Null
            },
            repeated,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Labelled {
        #[serde(default, deserialize_with = "super::map")]
        labels: BTreeMap<String, u64>,
    }

    fn labels(text: &str) -> Result<BTreeMap<String, u64>, String> {
        let read: Result<Labelled, _> = serde_json::from_str(text);
        read.map(|it| it.labels).map_err(|error| error.to_string())
    }

    #[test]
    fn a_map_has_each_key_once() {
        let one = BTreeMap::from([("a".to_owned(), 1)]);
        assert_eq!(labels(r#"{"labels": {"a": 1}}"#), Ok(one));
        assert_eq!(labels("{}"), Ok(BTreeMap::new()));
        for twice in [
            r#"{"labels": {"a": 1, "b": 2, "a": 1}}"#,
            r#"{"labels": {"a": 1, "\u0061": 2}}"#,
        ] {
            let told = labels(twice).unwrap_err();
            assert!(told.starts_with("duplicate field `a`"), "{told}");
        }
        assert!(labels(r#"{"labels": [1]}"#).is_err());
    }

    #[test]
    fn a_key_that_stands_twice_anywhere_is_found_with_the_way_to_it() {
        for (text, wanted) in [
            (r#"{"a": {"a": [1, {"a": null}]}, "b": "a"}"#, None),
            (r#"{"a": 1, "a": 1}"#, Some("a")),
            (r#"{"a": {"b": 1, "c": 2, "b": 3}}"#, Some("a.b")),
            (r#"{"a": [{}, {"b": 1, "b": 2}]}"#, Some("a[1].b")),
            (r#"[[{"b": 1, "b": 2}]]"#, Some("[0][0].b")),
        ] {
            let kept: Checked<true> = serde_json::from_str(text).unwrap();
            let looked: Checked<false> = serde_json::from_str(text).unwrap();
            assert_eq!(kept.repeated.as_deref(), wanted, "{text}");
            assert_eq!(looked.repeated.as_deref(), wanted, "{text}");
            let whole: Value = serde_json::from_str(text).unwrap();
            assert_eq!((kept.value, looked.value), (whole, Value::Null), "{text}");
        }
        let number: Checked<true> = serde_json::from_str("[-1, 2, 0.5, true]").unwrap();
        assert_eq!(number.value, serde_json::json!([-1, 2, 0.5, true]));
    }
}
