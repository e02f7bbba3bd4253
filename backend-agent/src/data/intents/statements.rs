//! Every statement by name, for the tests that look at each in its dialect.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::link::Sql;
use super::{
    admit, agents, audit, authorities, budget, catalogues, certificates, confirm, dead_letters,
    earlier, enrolments, expiry, forks, inbox, instances, keys, lease, merged, opening, orphans,
    outputs, pins, recount, refusals, reissues, replacements, reports, resolutions, rotation, runs,
    sessions, settle, site, standing, submit, targets, telemetry, tickets, timeline, tx, upkeep,
};

fn one(name: &'static str, sql: impl Into<Sql>) -> (&'static str, Sql) {
    (name, sql.into())
}

/// Each with the file that it is in.
pub(in crate::data) fn all() -> Vec<(&'static str, Sql)> {
    vec![
        one("admit::FORGET_SESSIONS", admit::FORGET_SESSIONS),
        one("admit::OPEN", admit::OPEN),
        one("agents::ADD_LABELS", agents::ADD_LABELS),
        one("agents::BY_ID", agents::BY_ID),
        one("agents::BY_NAME", agents::BY_NAME),
        one("agents::CAME_OF", agents::CAME_OF),
        one("agents::CREATE", agents::CREATE),
        one("agents::LIST", agents::LIST),
        one("agents::RENAME", agents::RENAME),
        one("agents::REVOCATION", agents::REVOCATION),
        one("agents::REVOKE", agents::REVOKE),
        one("audit::APPEND", audit::APPEND),
        one("audit::FIND", audit::FIND),
        one("audit::LIST", audit::LIST),
        one("audit::REVOCATION", audit::REVOCATION),
        one("audit::TOP", audit::TOP),
        one("authorities::BUNDLES", authorities::BUNDLES),
        one("authorities::FORGET", authorities::FORGET),
        one("authorities::FRESH", authorities::FRESH),
        one("authorities::NOTE", authorities::NOTE),
        one("authorities::REPORT", authorities::REPORT),
        one("authorities::SIGNED", authorities::SIGNED),
        one("authorities::SIGNED_FOR", authorities::SIGNED_FOR),
        one("authorities::SIGNERS", authorities::SIGNERS),
        one("authorities::TRUST", authorities::TRUST),
        one("authorities::UNAWARE", authorities::UNAWARE),
        one("budget::LOAD", budget::LOAD),
        one("budget::SAVE", budget::SAVE),
        one("budget::UNTOLD", budget::UNTOLD),
        one("catalogues::LOAD", catalogues::LOAD),
        one("catalogues::MERGE", catalogues::MERGE),
        one("catalogues::MERGE_ONE", catalogues::MERGE_ONE),
        one("catalogues::SAVE", catalogues::SAVE),
        one("certificates::BY_KEY", certificates::BY_KEY),
        one("certificates::END_SHOWN", certificates::END_SHOWN),
        one("certificates::FORGET", certificates::FORGET),
        one("certificates::LIST", certificates::LIST),
        one("certificates::LOAD", certificates::LOAD),
        one("certificates::MEANT", certificates::MEANT),
        one("certificates::PROVED", certificates::PROVED),
        one("certificates::REGISTER", certificates::REGISTER),
        one("certificates::REGISTERED", certificates::REGISTERED),
        one("certificates::RENEW", certificates::RENEW),
        one("certificates::RENEWALS", certificates::RENEWALS),
        one("certificates::REPLACE", certificates::REPLACE),
        one("certificates::RETIRE", certificates::RETIRE),
        one("certificates::REVOKE", certificates::REVOKE),
        one("certificates::SHOWN", certificates::SHOWN),
        one("certificates::SIGNED_BY", certificates::SIGNED_BY),
        one("certificates::UNPROVED", certificates::UNPROVED),
        one("certificates::WITHDRAWN", certificates::WITHDRAWN),
        one("confirm::ADD_LABELS", confirm::ADD_LABELS),
        one("confirm::CONFIRMED", confirm::CONFIRMED),
        one("confirm::LABELS", confirm::LABELS),
        one("confirm::REMOVE_LABELS", confirm::REMOVE_LABELS),
        one("confirm::TAKE_EFFECT", confirm::TAKE_EFFECT),
        one("dead_letters::BY_ID", dead_letters::BY_ID),
        one("dead_letters::DISCARD", dead_letters::DISCARD),
        one("dead_letters::KEEP", dead_letters::KEEP),
        one("dead_letters::LIST", dead_letters::LIST),
        one(
            "dead_letters::LIST_OF_GATEWAY",
            dead_letters::LIST_OF_GATEWAY,
        ),
        one("dead_letters::OPEN", dead_letters::OPEN),
        one(
            "dead_letters::OPEN_OF_GATEWAY",
            dead_letters::OPEN_OF_GATEWAY,
        ),
        one("dead_letters::PURGE", dead_letters::PURGE),
        one("dead_letters::RETRY", dead_letters::RETRY),
        one("dead_letters::TRIM", dead_letters::TRIM),
        one("dead_letters::TRIM_GATEWAY", dead_letters::TRIM_GATEWAY),
        one("earlier::FORGET", earlier::FORGET),
        one("earlier::HAS", earlier::HAS),
        one("earlier::KEEP", earlier::KEEP),
        one("earlier::KEEP_LATEST", earlier::KEEP_LATEST),
        one("earlier::MEANT", earlier::MEANT),
        one("enrolments::ADD", enrolments::ADD),
        one("enrolments::BY_KEY", enrolments::BY_KEY),
        one("enrolments::CONSUME", enrolments::CONSUME),
        one("enrolments::FORGET", enrolments::FORGET),
        one(
            "enrolments::FORGET_CHALLENGES",
            enrolments::FORGET_CHALLENGES,
        ),
        one("enrolments::FORGET_OF", enrolments::FORGET_OF),
        one("enrolments::GIVEN", enrolments::GIVEN),
        one("expiry::AWAY", expiry::AWAY),
        one("expiry::GENERATIONS", expiry::GENERATIONS),
        one("expiry::TALLY", expiry::TALLY),
        one("forks::KEEP_NEWEST", forks::KEEP_NEWEST),
        one("forks::LIST", forks::LIST),
        one("forks::RECORD", forks::RECORD),
        one("inbox::DELETE", inbox::DELETE),
        one("inbox::OWNER", inbox::OWNER),
        one("inbox::POST", inbox::POST),
        one("inbox::TAKE", inbox::TAKE),
        one("instances::END", instances::END),
        one("instances::END_EARLIER", instances::END_EARLIER),
        one("instances::FORGET", instances::FORGET),
        one("instances::INHERIT", instances::INHERIT),
        one("instances::KEY_HOLDERS", instances::KEY_HOLDERS),
        one("instances::LIST", instances::LIST),
        one("instances::SESSIONS", instances::SESSIONS),
        one("keys::BY_HASH", keys::BY_HASH),
        one("keys::BY_ID", keys::BY_ID),
        one("keys::CREATE", keys::CREATE),
        one("keys::LIST", keys::LIST),
        one("keys::REVOKE", keys::REVOKE),
        one("keys::TOUCH", keys::TOUCH),
        one("lease::QUEUED", lease::QUEUED),
        one("lease::QUEUED_AGENTS", lease::QUEUED_AGENTS),
        one("lease::QUEUED_AMONG", lease::QUEUED_AMONG),
        one("merged::admission::ADMIT", merged::admission::ADMIT),
        one("merged::admission::POSITIONS", merged::admission::POSITIONS),
        one("merged::certificates::FOUND", merged::certificates::FOUND),
        one(
            "merged::confirmation::CONFIRM",
            merged::confirmation::CONFIRM,
        ),
        one("merged::end::END", merged::end::END),
        one("merged::end::ENDING", merged::end::ENDING),
        one("merged::heartbeats::TOUCH", merged::heartbeats::TOUCH),
        one("merged::identities::FOUND", merged::identities::FOUND),
        one("merged::permit::PERMIT", merged::permit::PERMIT),
        one(
            "merged::submission::SUBMISSION",
            merged::submission::SUBMISSION,
        ),
        one("merged::submission::SUBMIT", merged::submission::SUBMIT),
        one("opening::IDENTITY", opening::IDENTITY),
        one("opening::SWAP", opening::SWAP),
        one("orphans::LIST", orphans::LIST),
        one("outputs::KEEP", outputs::KEEP),
        one("outputs::LOAD", outputs::LOAD),
        one("reissues::BY_KEY", reissues::BY_KEY),
        one("reissues::REISSUE", reissues::REISSUE),
        one("replacements::ABSENT", replacements::ABSENT),
        one("replacements::END_FORKS", replacements::END_FORKS),
        one("replacements::REPLACE", replacements::REPLACE),
        one("pins::FORGET", pins::FORGET),
        one("pins::FORGET_SHOWN", pins::FORGET_SHOWN),
        one("pins::LOAD", pins::LOAD),
        one("pins::SAVE", pins::SAVE),
        one("pins::SHOW", pins::SHOW),
        one("pins::SHOWN", pins::SHOWN),
        one("pins::TRUST", pins::TRUST),
        one("pins::UNSAID", pins::UNSAID),
        one("pins::UNTRUSTING", pins::UNTRUSTING),
        one("pins::UNTRUSTING_COUNT", pins::UNTRUSTING_COUNT),
        one("refusals::BEYOND", refusals::BEYOND),
        one("refusals::EVER", refusals::EVER),
        one("refusals::EVER_AT_DOOR", refusals::EVER_AT_DOOR),
        one("refusals::GRAVE", refusals::GRAVE),
        one("refusals::LAST", refusals::LAST),
        one("refusals::LAST_AT_DOOR", refusals::LAST_AT_DOOR),
        one("refusals::PROVED_AT_DOOR", refusals::PROVED_AT_DOOR),
        one("reports::HAS_ORPHAN", reports::HAS_ORPHAN),
        one("reports::KEEP_LATE_OUTCOME", reports::KEEP_LATE_OUTCOME),
        one("reports::KEEP_ORPHAN", reports::KEEP_ORPHAN),
        one("reports::TRIM_ORPHANS", reports::TRIM_ORPHANS),
        one("resolutions::DECIDE", resolutions::DECIDE),
        one("resolutions::GIVE", resolutions::GIVE),
        one("resolutions::HOLDER", resolutions::HOLDER),
        one("resolutions::IS_OUT", resolutions::IS_OUT),
        one("resolutions::LEAVE_OUT", resolutions::LEAVE_OUT),
        one("resolutions::UNRETIRE", resolutions::UNRETIRE),
        one("rotation::TAKES", rotation::TAKES),
        one("rotation::WANT", rotation::WANT),
        one("runs::CANCEL_COMMANDS", runs::CANCEL_COMMANDS),
        one("runs::CANCEL_RUN", runs::CANCEL_RUN),
        one("runs::COMMAND", runs::COMMAND),
        one("runs::COMMANDS", runs::COMMANDS),
        one("runs::COUNTS", runs::COUNTS),
        one("runs::FORKED", runs::FORKED),
        one("runs::KEY", runs::KEY),
        one("runs::LIST", runs::LIST),
        one("runs::RUN", runs::RUN),
        one("runs::SKIPPED", runs::SKIPPED),
        one("sessions::ENDED", sessions::ENDED),
        one("sessions::END_ALL", sessions::END_ALL),
        one("sessions::FENCE", sessions::FENCE),
        one("sessions::LIST", sessions::LIST),
        one("sessions::OPEN", sessions::OPEN),
        one("sessions::PINS", sessions::PINS),
        one("sessions::TOUCH", sessions::TOUCH),
        one("sessions::UNOWNED", sessions::UNOWNED),
        one("sessions::VACATE", sessions::VACATE),
        one("sessions::VACATE_ALL", sessions::VACATE_ALL),
        one("settle::CHANGE", settle::CHANGE),
        one("settle::END_OF_GATEWAY", settle::END_OF_GATEWAY),
        one("settle::END_OF_RUN", settle::END_OF_RUN),
        one("settle::LOAD", settle::LOAD),
        one("settle::LOAD_DISPATCHED", settle::LOAD_DISPATCHED),
        one("settle::LOAD_OPEN_OF_GATEWAY", settle::LOAD_OPEN_OF_GATEWAY),
        one("settle::LOAD_OPEN_OF_RUN", settle::LOAD_OPEN_OF_RUN),
        one("settle::LOAD_OVERDUE", settle::LOAD_OVERDUE),
        one(
            "settle::LOAD_UNSTARTED_PAST_DEADLINE",
            settle::LOAD_UNSTARTED_PAST_DEADLINE,
        ),
        one("settle::RAISE_LOW_WATER", settle::RAISE_LOW_WATER),
        one("site::CLAIM", site::CLAIM),
        one("site::LOAD", site::LOAD),
        one("site::MASTERS", site::MASTERS),
        one("site::NOTE_MASTERS", site::NOTE_MASTERS),
        one("site::REPLACE", site::REPLACE),
        one("standing::SAVE", standing::SAVE),
        one("submit::COUNT", submit::COUNT),
        one("submit::GATEWAY", submit::GATEWAY),
        one("submit::INSERT_COMMAND", submit::INSERT_COMMAND),
        one("submit::INSERT_RUN", submit::INSERT_RUN),
        one("submit::INSERT_SKIP", submit::INSERT_SKIP),
        one("submit::KEEP_KEY", submit::KEEP_KEY),
        one("submit::WAITING", submit::WAITING),
        one("targets::ALL", targets::ALL),
        one("targets::BY_ID", targets::BY_ID),
        one("targets::BY_NAME", targets::BY_NAME),
        one("telemetry::COUNT_REFUSALS", telemetry::COUNT_REFUSALS),
        one("telemetry::INSERT_GAP", telemetry::INSERT_GAP),
        one(
            "telemetry::KEEP_LATEST_REFUSED",
            telemetry::KEEP_LATEST_REFUSED,
        ),
        one("telemetry::POSITION", telemetry::POSITION),
        one("telemetry::POSITIONS", telemetry::POSITIONS),
        one("telemetry::REFUSED_TO", telemetry::REFUSED_TO),
        one("telemetry::REMEMBER_REFUSED", telemetry::REMEMBER_REFUSED),
        one("telemetry::USAGE", telemetry::USAGE),
        one("telemetry::all::BACKWARD", telemetry::all::BACKWARD),
        one("telemetry::all::FORWARD", telemetry::all::FORWARD),
        one("telemetry::all::HELD", telemetry::all::HELD),
        one("telemetry::all::STREAM_COUNT", telemetry::all::STREAM_COUNT),
        one(
            "telemetry::gathered::GATEWAYS",
            telemetry::gathered::GATEWAYS,
        ),
        one(
            "telemetry::gathered::MOVE_POSITIONS",
            telemetry::gathered::MOVE_POSITIONS,
        ),
        one(
            "telemetry::gathered::MOVE_STREAMS",
            telemetry::gathered::MOVE_STREAMS,
        ),
        one("telemetry::gathered::REACHED", telemetry::gathered::REACHED),
        one(
            "telemetry::gathered::SAVE_USAGE",
            telemetry::gathered::SAVE_USAGE,
        ),
        one("telemetry::gathered::STREAMS", telemetry::gathered::STREAMS),
        one("telemetry::proof::COMMON", telemetry::proof::COMMON),
        one("telemetry::proof::COUNT", telemetry::proof::COUNT),
        one("telemetry::proof::FORGET", telemetry::proof::FORGET),
        one("telemetry::proof::KEEP", telemetry::proof::KEEP),
        one("telemetry::proof::NOTE", telemetry::proof::NOTE),
        one("telemetry::proof::NUMBERS", telemetry::proof::NUMBERS),
        one("telemetry::proof::OTHERS", telemetry::proof::OTHERS),
        one(
            "telemetry::queries::ALL_BACKWARD",
            telemetry::queries::ALL_BACKWARD,
        ),
        one(
            "telemetry::queries::ALL_FORWARD",
            telemetry::queries::ALL_FORWARD,
        ),
        one("telemetry::queries::GAPS", telemetry::queries::GAPS),
        one("telemetry::queries::REFUSALS", telemetry::queries::REFUSALS),
        one("telemetry::queries::STREAMS", telemetry::queries::STREAMS),
        one(
            "telemetry::queries::STREAM_BACKWARD",
            telemetry::queries::STREAM_BACKWARD,
        ),
        one(
            "telemetry::queries::STREAM_FORWARD",
            telemetry::queries::STREAM_FORWARD,
        ),
        one(
            "telemetry::retention::COUNT_POSITIONS",
            telemetry::retention::COUNT_POSITIONS,
        ),
        one(
            "telemetry::retention::DELETE_STREAMS",
            telemetry::retention::DELETE_STREAMS,
        ),
        one(
            "telemetry::retention::FORGET_GAPS",
            telemetry::retention::FORGET_GAPS,
        ),
        one(
            "telemetry::retention::FORGET_REFUSALS",
            telemetry::retention::FORGET_REFUSALS,
        ),
        one(
            "telemetry::retention::FORGET_POSITIONS",
            telemetry::retention::FORGET_POSITIONS,
        ),
        one(
            "telemetry::retention::FREE_STREAMS",
            telemetry::retention::FREE_STREAMS,
        ),
        one(
            "telemetry::retention::GATEWAYS_AFTER",
            telemetry::retention::GATEWAYS_AFTER,
        ),
        one(
            "telemetry::retention::OLD_STREAM",
            telemetry::retention::OLD_STREAM,
        ),
        one("telemetry::rollups::CLAIM", telemetry::rollups::CLAIM),
        one("telemetry::rollups::DONE", telemetry::rollups::DONE),
        one(
            "telemetry::rollups::FIRST_DAY",
            telemetry::rollups::FIRST_DAY,
        ),
        one(
            "telemetry::rollups::FORGET_DAYS",
            telemetry::rollups::FORGET_DAYS,
        ),
        one(
            "telemetry::rollups::FORGET_ROLLUPS",
            telemetry::rollups::FORGET_ROLLUPS,
        ),
        one("telemetry::rollups::HOURS", telemetry::rollups::HOURS),
        one("telemetry::rollups::LAST_DAY", telemetry::rollups::LAST_DAY),
        one("telemetry::rollups::MARK", telemetry::rollups::MARK),
        one("telemetry::rollups::RECORDS", telemetry::rollups::RECORDS),
        one("telemetry::rollups::ROLLED", telemetry::rollups::ROLLED),
        one("telemetry::rollups::SAVE", telemetry::rollups::SAVE),
        one("telemetry::rollups::SETTLE", telemetry::rollups::SETTLE),
        one("telemetry::steps::FIRST_TIME", telemetry::steps::FIRST_TIME),
        one("telemetry::steps::LAST", telemetry::steps::LAST),
        one("telemetry::steps::LAST_TIME", telemetry::steps::LAST_TIME),
        one(
            "telemetry::steps::REACH_BACKWARD",
            telemetry::steps::REACH_BACKWARD,
        ),
        one(
            "telemetry::steps::REACH_FORWARD",
            telemetry::steps::REACH_FORWARD,
        ),
        one("telemetry::steps::SUMS", telemetry::steps::SUMS),
        one("telemetry::steps::TALLY", telemetry::steps::TALLY),
        one("tickets::BY_ID", tickets::BY_ID),
        one("tickets::COUNT", tickets::COUNT),
        one("tickets::CREATE", tickets::CREATE),
        one("tickets::DELETE", tickets::DELETE),
        one("tickets::FORGET", tickets::FORGET),
        one("tickets::LIST", tickets::LIST),
        one("tickets::OLDEST_ENDED", tickets::OLDEST_ENDED),
        one("tickets::REFUSED", tickets::REFUSED),
        one("tickets::REVOKE", tickets::REVOKE),
        one("tickets::USE", tickets::USE),
        one("timeline::LOAD", timeline::LOAD),
        one("timeline::SAVE", timeline::SAVE),
        one("timeline::SAVE_POINT", timeline::SAVE_POINT),
        one("tx::BEGIN_COUNT", tx::BEGIN_COUNT),
        one("tx::COUNT_OPEN", tx::COUNT_OPEN),
        one("recount::GATEWAYS", recount::GATEWAYS),
        one("recount::SHORT", recount::SHORT),
        one("upkeep::BEAT", upkeep::BEAT),
        one("upkeep::PURGE_KEYS", upkeep::PURGE_KEYS),
        one("upkeep::PURGE_SESSIONS", upkeep::PURGE_SESSIONS),
        one("upkeep::VERSION", upkeep::VERSION),
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
