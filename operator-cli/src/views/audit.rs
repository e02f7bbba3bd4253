//! The audit trail: the list, and one record whole.

use serde_json::Value;
use viworks_api::{AuditList, AuditRecord};
use viworks_common::human;
use viworks_common::time::Timestamp;

use crate::failure::Failure;
use crate::output::{self, Format, one_line, plain, short};

/// Prints a row for each; `wanted` says what was looked for, and is empty where that is everything.
pub fn list(list: &AuditList, wanted: &str, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(list);
    }
    output::table(
        ["NUMBER", "WHEN", "BY", "ACTION", "ON", "OUTCOME", "WHY"],
        list.items.iter().map(|record| {
            [
                record.id.to_string(),
                human::relative(record.at, now),
                short(named(record.actor_name.as_ref(), &record.actor)),
                short(&record.action),
                short(named(record.object_name.as_ref(), &record.object)),
                record.outcome.clone(),
                short(why(&record.detail)),
            ]
        }),
    )?;
    let rows = list.items.len();
    output::note(&match (rows, &list.next) {
        (0, None) if wanted.is_empty() => "there is no such record".to_owned(),
        (0, None) => format!("there is no such record: {}", one_line(wanted)),
        (_, Some(_more)) => format!("the latest {rows}; more with --limit or --all"),
        (_, None) => human::counted(rows, "record", "records"),
    });
    Ok(())
}

/// Prints one.
pub fn show(record: &AuditRecord, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(record);
    }
    output::line(&format!("number    {}", record.id))?;
    output::line(&format!(
        "at        {}",
        human::relative_and_exact(record.at, now)
    ))?;
    for (what, found) in [
        ("by", both(record.actor_name.as_ref(), &record.actor)),
        ("action", record.action.clone()),
        ("on", both(record.object_name.as_ref(), &record.object)),
        ("outcome", record.outcome.clone()),
        ("request", record.request_id.clone().unwrap_or_default()),
    ] {
        if !found.is_empty() {
            output::line(&format!("{what:<9} {}", one_line(&found)))?;
        }
    }
    let Value::Object(detail) = &record.detail else {
        return output::line(&format!(
            "detail    {}",
            one_line(&record.detail.to_string())
        ));
    };
    for (name, value) in detail {
        let told = value.as_str().map_or_else(|| value.to_string(), plain);
        let (name, told) = (one_line(name), one_line(&told.replace('\n', " ")));
        output::line(&format!("  {name}: {told}"))?;
    }
    Ok(())
}

/// The name where it has one: that is what people look for.
fn named<'r>(name: Option<&'r String>, word: &'r str) -> &'r str {
    name.map_or(word, String::as_str)
}

/// The name, and what the trail has: a name can go to somebody else.
fn both(name: Option<&String>, word: &str) -> String {
    match name {
        Some(name) => format!("{name} ({word})"),
        None => word.to_owned(),
    }
}

/// What somebody gave as the reason, or why it was refused.
fn why(detail: &Value) -> &str {
    ["reason", "why", "told"]
        .iter()
        .find_map(|name| detail.get(name).and_then(Value::as_str))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_says_why_in_the_words_that_it_has() {
        assert_eq!(why(&json!({"why": "fork", "reason": "stolen"})), "stolen");
        assert_eq!(why(&json!({"why": "stale_key"})), "stale_key");
        assert_eq!(why(&json!({"reason": 7})), "");
        assert_eq!(why(&json!([])), "");
    }

    #[test]
    fn a_name_goes_before_an_id() {
        let desk = "desk".to_owned();
        assert_eq!(named(Some(&desk), "api_key:01"), "desk");
        assert_eq!(named(None, "local:root"), "local:root");
        assert_eq!(both(Some(&desk), "api_key:01"), "desk (api_key:01)");
    }
}
