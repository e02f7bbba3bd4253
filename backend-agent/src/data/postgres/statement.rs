//! Statements as the server takes them: parameters by number instead of by name.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

/// A statement whose parameters are `$1`, `$2`, …
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Numbered {
    pub(super) sql: String,
    /// The names of the parameters, in the order of their numbers, each with its colon.
    pub(super) names: Vec<String>,
}

/// Each statement once; there are as many as constants in the code.
static NUMBERED: LazyLock<Mutex<HashMap<&'static str, &'static Numbered>>> =
    LazyLock::new(Mutex::default);

/// The statement with numbers.
pub(super) fn numbered(sql: &'static str) -> &'static Numbered {
    // Nothing panics while it is held.
    let mut known = NUMBERED.lock().unwrap_or_else(PoisonError::into_inner);
    known
        .entry(sql)
        .or_insert_with(|| Box::leak(Box::new(number(sql))))
}

/// Replaces `:name` by the number of its first occurrence, outside of quotes and casts (`::`). What the planner of the
/// embedded database is told about an index is left out.
fn number(sql: &str) -> Numbered {
    let sql = without_hints(sql);
    let mut numbered = Numbered {
        sql: String::with_capacity(sql.len()),
        names: Vec::new(),
    };
    let mut rest = sql.as_str();
    while let Some(at) = rest.find([':', '\'']) {
        numbered.sql.push_str(&rest[..at]);
        rest = &rest[at..];
        rest = if let Some(quoted) = rest.strip_prefix('\'') {
            let end = quoted.find('\'').map_or(rest.len(), |end| end + 2);
            numbered.sql.push_str(&rest[..end]);
            &rest[end..]
        } else if let Some(behind) = rest.strip_prefix("::") {
            numbered.sql.push_str("::");
            behind
        } else {
            let name = rest[1..]
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .map_or(rest, |end| &rest[..=end]);
            let known = numbered.names.iter().position(|known| known == name);
            let index = known.unwrap_or_else(|| {
                numbered.names.push(name.to_owned());
                numbered.names.len() - 1
            });
            numbered.sql.push('$');
            numbered.sql.push_str(&(index + 1).to_string());
            &rest[name.len()..]
        };
    }
    numbered.sql.push_str(rest);
    numbered
}

fn without_hints(sql: &str) -> String {
    const HINT: &str = "INDEXED BY ";
    let mut parts = sql.split(HINT);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        text.push_str(end.map_or("", |end| &part[end..]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_number_and_quotes_and_casts_stay() {
        let numbered = number("SELECT :a::text, ':a', :b_2 FROM t WHERE x = :a AND y = 'it''s :b'");
        assert_eq!(
            numbered.sql,
            "SELECT $1::text, ':a', $2 FROM t WHERE x = $1 AND y = 'it''s :b'"
        );
        assert_eq!(numbered.names, [":a", ":b_2"]);
    }

    #[test]
    fn hints_for_the_other_database_are_left_out() {
        let numbered = number("SELECT 1 FROM t AS c INDEXED BY t_by_a WHERE c.a = :a");
        assert_eq!(numbered.sql, "SELECT 1 FROM t AS c  WHERE c.a = $1");
    }
}
