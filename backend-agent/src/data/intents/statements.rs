//! Every statement by name, for the tests that look at each in its dialect.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::link::Sql;
use super::{
    admit, agents, audit, budget, catalogues, certificates, confirm, forks, keys, lease, opening,
    orphans, outputs, reports, runs, sessions, settle, submit, targets, telemetry, timeline, tx,
    upkeep,
};

/// Each with the file that it is in.
pub(in crate::data) fn all() -> Vec<(&'static str, Sql)> {
    vec![
        ("admit::FORGET_SESSIONS", admit::FORGET_SESSIONS.into()),
        ("admit::OPEN", admit::OPEN.into()),
        ("agents::ADD_LABELS", agents::ADD_LABELS.into()),
        ("agents::BY_ID", agents::BY_ID.into()),
        ("agents::BY_NAME", agents::BY_NAME.into()),
        ("agents::CREATE", agents::CREATE.into()),
        ("agents::LIST", agents::LIST.into()),
        ("agents::RENAME", agents::RENAME.into()),
        ("agents::REVOKE", agents::REVOKE.into()),
        ("audit::APPEND", audit::APPEND.into()),
        ("audit::LIST", audit::LIST.into()),
        ("budget::LOAD", budget::LOAD.into()),
        ("budget::SAVE", budget::SAVE.into()),
        ("catalogues::LOAD", catalogues::LOAD.into()),
        ("catalogues::MERGE", catalogues::MERGE.into()),
        ("catalogues::MERGE_ONE", catalogues::MERGE_ONE.into()),
        ("catalogues::SAVE", catalogues::SAVE.into()),
        ("certificates::LOAD", certificates::LOAD.into()),
        ("certificates::REGISTER", certificates::REGISTER.into()),
        ("confirm::ADD_LABELS", confirm::ADD_LABELS.into()),
        ("confirm::CONFIRMED", confirm::CONFIRMED.into()),
        ("confirm::REMOVE_LABELS", confirm::REMOVE_LABELS.into()),
        ("confirm::TAKE_EFFECT", confirm::TAKE_EFFECT.into()),
        ("forks::KEEP_NEWEST", forks::KEEP_NEWEST.into()),
        ("forks::LIST", forks::LIST.into()),
        ("forks::RECORD", forks::RECORD.into()),
        ("keys::BY_HASH", keys::BY_HASH.into()),
        ("keys::BY_ID", keys::BY_ID.into()),
        ("keys::CREATE", keys::CREATE.into()),
        ("keys::LIST", keys::LIST.into()),
        ("keys::REVOKE", keys::REVOKE.into()),
        ("keys::TOUCH", keys::TOUCH.into()),
        ("lease::QUEUED", lease::QUEUED.into()),
        ("lease::QUEUED_AGENTS", lease::QUEUED_AGENTS.into()),
        ("opening::IDENTITY", opening::IDENTITY.into()),
        ("opening::SWAP", opening::SWAP.into()),
        ("orphans::LIST", orphans::LIST.into()),
        ("outputs::KEEP", outputs::KEEP.into()),
        ("outputs::LOAD", outputs::LOAD.into()),
        ("reports::HAS_ORPHAN", reports::HAS_ORPHAN.into()),
        (
            "reports::KEEP_LATE_OUTCOME",
            reports::KEEP_LATE_OUTCOME.into(),
        ),
        ("reports::KEEP_ORPHAN", reports::KEEP_ORPHAN.into()),
        ("reports::TRIM_ORPHANS", reports::TRIM_ORPHANS.into()),
        ("runs::CANCEL_COMMANDS", runs::CANCEL_COMMANDS.into()),
        ("runs::CANCEL_RUN", runs::CANCEL_RUN.into()),
        ("runs::COMMAND", runs::COMMAND.into()),
        ("runs::COMMANDS", runs::COMMANDS.into()),
        ("runs::COUNTS", runs::COUNTS.into()),
        ("runs::KEY", runs::KEY.into()),
        ("runs::LIST", runs::LIST.into()),
        ("runs::RUN", runs::RUN.into()),
        ("runs::SKIPPED", runs::SKIPPED.into()),
        ("sessions::ENDED", sessions::ENDED.into()),
        ("sessions::END_ALL", sessions::END_ALL.into()),
        ("sessions::FENCE", sessions::FENCE.into()),
        ("sessions::LIST", sessions::LIST.into()),
        ("sessions::PINS", sessions::PINS.into()),
        ("sessions::TOUCH", sessions::TOUCH.into()),
        ("sessions::VACATE", sessions::VACATE.into()),
        ("sessions::VACATE_ALL", sessions::VACATE_ALL.into()),
        ("settle::CHANGE", settle::CHANGE.into()),
        ("settle::END_OF_GATEWAY", settle::END_OF_GATEWAY.into()),
        ("settle::END_OF_RUN", settle::END_OF_RUN.into()),
        ("settle::LOAD", settle::LOAD.into()),
        ("settle::LOAD_DISPATCHED", settle::LOAD_DISPATCHED.into()),
        (
            "settle::LOAD_OPEN_OF_GATEWAY",
            settle::LOAD_OPEN_OF_GATEWAY.into(),
        ),
        ("settle::LOAD_OPEN_OF_RUN", settle::LOAD_OPEN_OF_RUN.into()),
        ("settle::LOAD_OVERDUE", settle::LOAD_OVERDUE.into()),
        (
            "settle::LOAD_UNSTARTED_PAST_DEADLINE",
            settle::LOAD_UNSTARTED_PAST_DEADLINE.into(),
        ),
        ("settle::RAISE_LOW_WATER", settle::RAISE_LOW_WATER.into()),
        ("submit::COUNT", submit::COUNT.into()),
        ("submit::GATEWAY", submit::GATEWAY.into()),
        ("submit::INSERT_COMMAND", submit::INSERT_COMMAND.into()),
        ("submit::INSERT_RUN", submit::INSERT_RUN.into()),
        ("submit::INSERT_SKIP", submit::INSERT_SKIP.into()),
        ("submit::KEEP_KEY", submit::KEEP_KEY.into()),
        ("submit::WAITING", submit::WAITING.into()),
        ("targets::ALL", targets::ALL.into()),
        ("targets::BY_ID", targets::BY_ID.into()),
        ("targets::BY_NAME", targets::BY_NAME.into()),
        (
            "telemetry::COUNT_REFUSALS",
            telemetry::COUNT_REFUSALS.into(),
        ),
        ("telemetry::INSERT", telemetry::INSERT.into()),
        ("telemetry::INSERT_GAP", telemetry::INSERT_GAP.into()),
        (
            "telemetry::KEEP_LATEST_REFUSED",
            telemetry::KEEP_LATEST_REFUSED.into(),
        ),
        ("telemetry::MOVE_POSITION", telemetry::MOVE_POSITION.into()),
        ("telemetry::MOVE_STREAM", telemetry::MOVE_STREAM.into()),
        ("telemetry::POSITION", telemetry::POSITION.into()),
        ("telemetry::POSITIONS", telemetry::POSITIONS.into()),
        ("telemetry::REFUSED_TO", telemetry::REFUSED_TO.into()),
        (
            "telemetry::REMEMBER_REFUSED",
            telemetry::REMEMBER_REFUSED.into(),
        ),
        ("telemetry::SAVE_USAGE", telemetry::SAVE_USAGE.into()),
        ("telemetry::STREAM", telemetry::STREAM.into()),
        ("telemetry::USAGE", telemetry::USAGE.into()),
        (
            "telemetry::queries::ALL_BACKWARD",
            telemetry::queries::ALL_BACKWARD.into(),
        ),
        (
            "telemetry::queries::ALL_FORWARD",
            telemetry::queries::ALL_FORWARD.into(),
        ),
        ("telemetry::queries::GAPS", telemetry::queries::GAPS.into()),
        (
            "telemetry::queries::REFUSALS",
            telemetry::queries::REFUSALS.into(),
        ),
        (
            "telemetry::queries::STREAMS",
            telemetry::queries::STREAMS.into(),
        ),
        (
            "telemetry::queries::STREAM_BACKWARD",
            telemetry::queries::STREAM_BACKWARD.into(),
        ),
        (
            "telemetry::queries::STREAM_FORWARD",
            telemetry::queries::STREAM_FORWARD.into(),
        ),
        ("timeline::LOAD", timeline::LOAD.into()),
        ("timeline::SAVE", timeline::SAVE.into()),
        ("tx::BEGIN_COUNT", tx::BEGIN_COUNT.into()),
        ("tx::COUNT_OPEN", tx::COUNT_OPEN.into()),
        ("upkeep::BEAT", upkeep::BEAT.into()),
        ("upkeep::PURGE_KEYS", upkeep::PURGE_KEYS.into()),
        ("upkeep::PURGE_SESSIONS", upkeep::PURGE_SESSIONS.into()),
        ("upkeep::VERSION", upkeep::VERSION.into()),
    ]
}

/// The one of this name.
pub(in crate::data) fn named(name: &str) -> Sql {
    let found = all().into_iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no statement {name}")).1
}

/// The constants of a folder's files that hold statements, as `file::NAME`.
fn statements_in(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let name = format!("{prefix}{name}");
        if name == "statements" {
            continue;
        }
        if path.is_dir() {
            statements_in(&path, &format!("{name}::"), found);
            continue;
        }
        for line in fs::read_to_string(&path).unwrap().lines() {
            let constant = line.split_once(" const ").and_then(|(_, rest)| {
                rest.split_once(": &str")
                    .or_else(|| rest.split_once(": Sql"))
            });
            if let Some((constant, _)) = constant {
                found.insert(format!("{name}::{constant}"));
            }
        }
    }
}

#[test]
fn every_statement_is_looked_at() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/intents");
    let mut found = BTreeSet::new();
    statements_in(&folder, "", &mut found);
    let known: BTreeSet<_> = all().iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(found, known);
}
