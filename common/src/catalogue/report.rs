//! Takes a catalogue that a gateway reports: an entry that breaks a rule is refused by itself, and said to be.

use super::arguments::{TEXT_BYTES_MAX, TIMEOUT_MS_MAX, TIMEOUT_MS_MIN};
use super::{CatalogueEntry, check_entry};
use crate::id::CommandName;
use crate::limits;
use crate::text;

/// An entry that was not taken as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedEntry {
    /// Which.
    pub name: CommandName,
    /// The first rule it breaks, in one sentence.
    pub problem: String,
}

/// The entries as they are kept, and which of them were refused.
///
/// A refused entry stays visible under its name and cannot be run: nobody wonders where it went, and one entry of one
/// gateway costs neither that gateway its session nor the fleet its other commands.
///
/// Before each entry it is asked whether to go on, because many patterns take long; none when not.
pub fn take_report_while(
    entries: Vec<CatalogueEntry>,
    goes_on: impl Fn() -> bool,
) -> Option<(Vec<CatalogueEntry>, Vec<RefusedEntry>)> {
    let mut refused = Vec::new();
    let mut kept = Vec::with_capacity(entries.len());
    for entry in entries {
        if !goes_on() {
            return None;
        }
        match first_problem(&entry) {
            None => kept.push(entry),
            Some(problem) => {
                kept.push(without_meaning(&entry, &problem));
                let name = entry.name;
                refused.push(RefusedEntry { name, problem });
            }
        }
    }
    Some((kept, refused))
}

fn first_problem(entry: &CatalogueEntry) -> Option<String> {
    let problem = check_entry(entry).into_iter().next()?;
    let (field, what, allowed) = (problem.argument, problem.problem, problem.allowed);
    Some(text::told(&format!("{field}: {what}; allowed: {allowed}")))
}

/// The entry with nothing in it that anybody could trip over.
fn without_meaning(entry: &CatalogueEntry, problem: &str) -> CatalogueEntry {
    let title = text::told(&entry.title);
    let end = title.floor_char_boundary(TEXT_BYTES_MAX);
    let output_max = u64::try_from(limits::RETAINED_OUTPUT_BYTES_MAX).unwrap_or(u64::MAX);
    CatalogueEntry {
        name: entry.name.clone(),
        title: if end == 0 {
            "(no title)".to_owned()
        } else {
            title[..end].to_owned()
        },
        risk: entry.risk,
        idempotent: entry.idempotent,
        arguments: Vec::new(),
        timeout_ms: entry.timeout_ms.clamp(TIMEOUT_MS_MIN, TIMEOUT_MS_MAX),
        output_bytes_max: entry.output_bytes_max.clamp(1, output_max),
        unavailable: Some(text::told(&format!(
            "the backend refuses this entry of the gateway's catalogue: {problem}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Argument, ArgumentType, Risk};

    fn take_report(entries: Vec<CatalogueEntry>) -> (Vec<CatalogueEntry>, Vec<RefusedEntry>) {
        take_report_while(entries, || true).unwrap()
    }

    fn entry(title: &str, value: ArgumentType) -> CatalogueEntry {
        CatalogueEntry {
            name: "a.b".parse().unwrap(),
            title: title.to_owned(),
            risk: Risk::Read,
            idempotent: true,
            arguments: vec![Argument {
                name: "unit".parse().unwrap(),
                description: String::new(),
                value,
                default: None,
            }],
            timeout_ms: 1_000,
            output_bytes_max: 1_000,
            unavailable: None,
        }
    }

    #[test]
    fn an_entry_that_keeps_the_rules_is_taken_as_it_is() {
        let good = vec![entry("A title", ArgumentType::Boolean)];
        assert_eq!(take_report(good.clone()), (good, Vec::new()));
        assert_eq!(
            take_report_while(vec![entry("a", ArgumentType::Boolean)], || false),
            None
        );
    }

    #[test]
    fn an_entry_that_breaks_a_rule_stays_visible_and_cannot_run() {
        let pattern = |pattern: &str| ArgumentType::String {
            pattern: pattern.to_owned(),
        };
        let wrong = [
            entry("a title\nforged  read  yes", ArgumentType::Boolean),
            entry("", ArgumentType::Boolean),
            entry(&"x".repeat(201), ArgumentType::Boolean),
            entry("turned \u{202e}", ArgumentType::Boolean),
            entry("range", ArgumentType::Integer { min: 2, max: 1 }),
            entry("pattern", pattern("(")),
            entry("bomb", pattern("(a{1000}){1000}")),
            entry("choice", ArgumentType::Choice { values: Vec::new() }),
            CatalogueEntry {
                timeout_ms: u64::MAX,
                ..entry("limit", ArgumentType::Boolean)
            },
        ];
        for one in wrong {
            let (kept, refused) = take_report(vec![one.clone()]);
            assert_eq!(refused.len(), 1, "{one:?}");
            assert!(check_entry(&kept[0]).is_empty(), "{kept:?}");
            let reason = kept[0].unavailable.as_deref().unwrap();
            assert!(reason.contains(&refused[0].problem) || reason.len() > 400);
            assert!(kept[0].arguments.is_empty());
        }
    }
}
