//! `viworks audit`: who did what to what, and how it ended.

use viworks_common::human;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use crate::client::{ALL, Client, Sought};
use crate::failure::Failure;
use crate::flags::{Audit, ListAudit};
use crate::output::Format;
use crate::views;

/// Nothing is older than the beginning of what a time can say.
const BEGINNING: Timestamp = Timestamp::from_unix_micros(0);

pub(super) async fn execute(
    client: &Client,
    verb: Audit,
    format: Format,
) -> Result<ExitCode, Failure> {
    let now = SystemClock.wall();
    match verb {
        Audit::Ls(wanted) => {
            let limit = if wanted.all { ALL } else { wanted.limit };
            let told = told(&wanted);
            let list = client.audit(sought(wanted, now), limit).await?;
            views::audit::list(&list, &told, format, now)?;
        }
        Audit::Show { id } => {
            views::audit::show(&client.audit_record(id).await?, format, now)?;
        }
    }
    Ok(ExitCode::Ok)
}

fn sought(wanted: ListAudit, now: Timestamp) -> Sought {
    Sought {
        gateway: wanted.gateway,
        actor: wanted.by,
        object: wanted.on,
        action: wanted.action,
        outcome: wanted.outcome,
        since: wanted
            .since
            .map(|since| now.saturating_sub(since).max(BEGINNING)),
    }
}

/// What is looked for, in words.
fn told(wanted: &ListAudit) -> String {
    let named = |word: &str, value: Option<&String>| value.map(|value| format!("{word} {value:?}"));
    let conditions = [
        named("of the gateway", wanted.gateway.as_ref()),
        named("by", wanted.by.as_ref()),
        named("on", wanted.on.as_ref()),
        named("of the action or family", wanted.action.as_ref()),
        named("with the outcome", wanted.outcome.as_ref()),
        wanted
            .since
            .map(|since| format!("within {}", human::span(since))),
    ];
    let conditions: Vec<String> = conditions.into_iter().flatten().collect();
    conditions.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_for_is_told_in_words() {
        let mut wanted = ListAudit {
            gateway: None,
            by: None,
            on: None,
            action: None,
            outcome: None,
            since: None,
            limit: 20,
            all: false,
        };
        assert_eq!(told(&wanted), "");
        wanted.by = Some("nosuch".to_owned());
        wanted.action = Some("gateway".to_owned());
        wanted.since = Some(std::time::Duration::from_secs(7_200));
        assert_eq!(
            told(&wanted),
            r#"by "nosuch", of the action or family "gateway", within 2 h 0 min"#
        );
    }
}
