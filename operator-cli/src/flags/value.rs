//! How the values of flags are read, and what is expected where one cannot be.

use std::time::Duration;

use viworks_api::{
    EPHEMERAL_MS_MAX, EPHEMERAL_MS_MIN, GatewayStatus, REASON_BYTES_MAX, TICKET_LIFE_MS_MAX,
};
use viworks_common::enrolment::{NAME_PREFIX_BYTES_MAX, NameRule};
use viworks_common::human;
use viworks_common::id::{AgentRunId, InvalidId, LabelKey, check_label_value};
use viworks_common::network::{InvalidNetwork, IpNetwork};
use viworks_common::telemetry::steps::{Aggregate, InvalidStep, Step};

use crate::output::Format;

/// Reads a format; a variable that is empty is one that is not set.
pub(super) fn format(text: &str) -> Result<Format, String> {
    match text {
        "" | "table" => Ok(Format::Table),
        "json" => Ok(Format::Json),
        _ => Err("expected table or json".to_owned()),
    }
}

/// Reads how many rows are wanted: at least one.
pub(super) fn rows(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|rows| *rows > 0)
        .ok_or_else(|| "expected a whole number from 1".to_owned())
}

/// Reads the number of a record of the audit trail.
pub(super) fn record(text: &str) -> Result<u64, String> {
    text.parse::<u64>()
        .ok()
        .filter(|number| (1..i64::MAX.unsigned_abs()).contains(number))
        .ok_or_else(|| {
            "expected the number of a record, from 1, as viworks audit ls has it".to_owned()
        })
}

/// Reads who keeps an identity: a process, or an installation, which is written as one.
pub(super) fn holder(text: &str) -> Result<AgentRunId, String> {
    text.parse().map_err(|_invalid: InvalidId| {
        "expected the id of a process or of an installation, as viworks gateway forks shows both"
            .to_owned()
    })
}

/// Reads a span of time such as `30s`, `15m`, `2h` or `500ms`.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    human::parse_span(text).ok_or_else(|| {
        format!("{text:?} is no span of time: expected a number and ms, s, m, h or d, such as 30s")
    })
}

/// Reads the length of steps.
pub(super) fn step(text: &str) -> Result<Step, String> {
    text.parse().map_err(|error: InvalidStep| error.to_string())
}

/// Reads what is told of each step.
pub(super) fn aggregate(text: &str) -> Result<Aggregate, String> {
    Aggregate::from_name(text).ok_or_else(|| {
        let names: Vec<&str> = Aggregate::ALL.iter().map(|known| known.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Reads a span of time that is longer than none.
pub(super) fn some_time(text: &str) -> Result<Duration, String> {
    match span(text)? {
        Duration::ZERO => Err("no time at all ends it at once; expected 1ms or more".to_owned()),
        some => Ok(some),
    }
}

/// Reads how long a ticket is valid.
pub(super) fn ticket_life(text: &str) -> Result<Duration, String> {
    let possible = Duration::from_secs(1)..=Duration::from_millis(TICKET_LIFE_MS_MAX);
    let life = some_time(text)?;
    if possible.contains(&life) {
        Ok(life)
    } else {
        let most = human::span(*possible.end());
        Err(format!(
            "a ticket is valid for at least 1s and at most {most}"
        ))
    }
}

/// Reads after how long an absence a gateway is removed.
pub(super) fn absence(text: &str) -> Result<Duration, String> {
    let possible =
        Duration::from_millis(EPHEMERAL_MS_MIN)..=Duration::from_millis(EPHEMERAL_MS_MAX);
    let absence = some_time(text)?;
    if possible.contains(&absence) {
        Ok(absence)
    } else {
        let (least, most) = (human::span(*possible.start()), human::span(*possible.end()));
        Err(format!(
            "gateways are removed after at least {least} and at most {most}"
        ))
    }
}

/// Reads what the names of gateways begin with.
pub(super) fn name_prefix(text: &str) -> Result<String, String> {
    if NameRule::is_prefix(text) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "no name of a gateway begins like this: expected up to {NAME_PREFIX_BYTES_MAX} lower-case letters, digits \
             and hyphens"
        ))
    }
}

/// Reads a label such as `site=berlin`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| "expected KEY=VALUE, such as site=berlin".to_owned())?;
    let checked = key.parse::<LabelKey>().map(drop);
    let checked = checked.and_then(|()| check_label_value(value));
    checked.map_err(|error: InvalidId| error.to_string())?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads why something is done.
pub(super) fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if (1..=REASON_BYTES_MAX).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err(format!("expected why, in 1 to {REASON_BYTES_MAX} bytes"))
    }
}

/// Reads an address or a network.
pub(super) fn network(text: &str) -> Result<IpNetwork, String> {
    text.parse()
        .map_err(|error: InvalidNetwork| error.to_string())
}

/// Reads a gateway's status.
pub(super) fn status(text: &str) -> Result<GatewayStatus, String> {
    let all = GatewayStatus::ALL.iter().copied();
    all.clone()
        .find(|status| status.name() == text)
        .ok_or_else(|| {
            let names: Vec<&str> = all.map(GatewayStatus::name).collect();
            format!("expected one of {}", names.join(", "))
        })
}

#[cfg(test)]
mod tests {
    use super::{Duration, REASON_BYTES_MAX, absence, holder, reason, record, span};

    #[test]
    fn spans_of_time_are_read_or_refused_with_the_expected_form() {
        assert_eq!(span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(span("2h"), Ok(Duration::from_secs(7_200)));
        for text in ["", "5", "m", "5 m", "-5s", "5w", "99999999999999999999d"] {
            assert!(span(text).unwrap_err().contains("such as 30s"), "{text:?}");
        }
    }

    #[test]
    fn what_a_number_or_an_id_has_to_be_is_said_in_words() {
        assert_eq!(record("81"), Ok(81));
        for text in ["", "abc", "0", "-1", "9223372036854775807"] {
            let told = record(text).unwrap_err();
            assert!(told.contains("number of a record"), "{text:?}: {told}");
        }
        assert!(holder("01940f5e-0003-7000-8000-0000000000f3").is_ok());
        let told = holder("nosuch").unwrap_err();
        assert!(told.contains("a process or of an installation"), "{told}");
    }

    #[test]
    fn an_absence_is_a_minute_to_a_year() {
        assert_eq!(absence("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(absence("365d"), Ok(Duration::from_secs(365 * 24 * 3_600)));
        for text in ["0s", "59s", "366d", "soon"] {
            assert!(absence(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_reason_says_something_and_no_more_than_is_kept() {
        assert_eq!(reason(" stolen\n"), Ok("stolen".to_owned()));
        let longest = "x".repeat(REASON_BYTES_MAX);
        assert_eq!(reason(&longest), Ok(longest.clone()));
        for text in [String::new(), " \t".to_owned(), longest + "x"] {
            assert!(reason(&text).unwrap_err().contains("512"), "{text:?}");
        }
    }
}
