//! The page about limits: every number in it is the code's, or the default of the key that it names.

use std::path::{Path, PathBuf};

use super::documents::read_sources;

/// What a bound is set by, and the test that goes there, or to a smaller one in its place, and sees what the page says.
const HELD: &[(&str, &str)] = &[
    (
        "connections_max [agents]",
        "strangers_cannot_take_the_places_of_those_who_held_a_session",
    ),
    (
        "per_source_max [agents]",
        "one_source_cannot_take_every_place",
    ),
    (
        "openings_max [agents]",
        "openings_are_bounded_and_given_back",
    ),
    (
        "tls_timeout_ms [agents]",
        "whoever_says_nothing_is_ended_at_the_limit_of_tls",
    ),
    (
        "upgrade_timeout_ms [agents]",
        "a_head_that_comes_byte_by_byte_gets_no_more_time_than_one_that_does_not_come",
    ),
    (
        "hello_timeout_ms [agents]",
        "whoever_is_upgraded_and_says_no_hello_is_ended_with_its_code",
    ),
    (
        "HEADERS_MAX backend-agent/src/inbound/upgrade.rs",
        "a_head_that_is_too_large_is_refused_and_the_next_one_gets_in",
    ),
    (
        "HEAD_BYTES_MAX backend-agent/src/inbound/upgrade.rs",
        "a_head_that_is_too_large_is_refused_and_the_next_one_gets_in",
    ),
    (
        "HEADER_BYTES_MAX common/src/proxy_protocol.rs",
        "what_announces_more_than_is_read_is_refused_before_it_comes",
    ),
    (
        "connections_max [enrolment]",
        "whoever_holds_places_without_a_ticket_keeps_nobody_from_enrolling",
    ),
    (
        "per_source_max [enrolment]",
        "one_address_has_as_many_places_as_its_bound_says",
    ),
    (
        "requests_per_minute [enrolment]",
        "what_is_not_right_takes_nothing_of_those_behind_the_same_address",
    ),
    (
        "PER_KEY backend-agent/src/enrolment/redeem.rs",
        "a_machine_that_redeems_its_ticket_without_end_is_told_when_to_come_back",
    ),
    (
        "TICKETS_LIVE_MAX backend-agent/src/enrolment/office.rs",
        "tickets_that_can_be_used_are_bounded_and_ended_ones_make_room",
    ),
    (
        "TICKETS_OF_ONE_MAX backend-agent/src/enrolment/office.rs",
        "tickets_that_can_be_used_are_bounded_and_ended_ones_make_room",
    ),
    (
        "TICKETS_ENDED_MAX backend-agent/src/enrolment/office.rs",
        "tickets_that_can_be_used_are_bounded_and_ended_ones_make_room",
    ),
    (
        "RENEWALS_MAX backend-agent/src/data/intents/certificates.rs",
        "a_gateway_gets_one_certificate_a_minute_and_six_an_hour",
    ),
    (
        "KEPT_MAX backend-agent/src/data/intents/earlier.rs",
        "the_latest_earlier_certificates_are_kept",
    ),
    (
        "PINS_MAX common/src/pin.rs",
        "a_set_that_would_cut_the_gateway_off_is_refused",
    ),
    (
        "RETIRED_MAX common/src/pin/rotation.rs",
        "so_many_retired_keys_are_remembered",
    ),
    (
        "UNPROVED_MAX backend-agent/src/data/intents/certificates.rs",
        "a_gateway_that_uses_none_of_many_certificates_gets_one_an_hour",
    ),
    (
        "TURNS backend-agent/src/pki/renew.rs",
        "many_gateways_that_ask_at_once_are_all_answered",
    ),
    (
        "PER_GATEWAY backend-agent/src/enrolment/reissue.rs",
        "a_gateway_that_asks_at_the_door_without_end_is_told_when_to_come_back",
    ),
    (
        "REISSUES_MAX backend-agent/src/enrolment/reissue.rs",
        "many_gateways_that_come_back_together_are_all_answered",
    ),
    (
        "UNPROVED_RECORDED backend-agent/src/enrolment/reissue.rs",
        "requests_at_the_door_without_a_gateways_key_are_recorded_within_a_bound",
    ),
    (
        "AT_ONCE backend-agent/src/pki/signer.rs",
        "as_many_programs_sign_at_a_time_as_may_and_the_next_waits_its_turn",
    ),
    (
        "ANSWER_BYTES_MAX backend-agent/src/pki/signer.rs",
        "a_program_that_fails_hangs_or_says_too_much_is_told_of_and_ended",
    ),
    (
        "KEYS_KEPT common/src/rotation.rs",
        "what_is_kept_has_the_new_key_and_that_of_the_session",
    ),
    (
        "LAST_GENERATION common/src/rotation.rs",
        "a_rotation_that_is_under_way_stays_the_next_one_and_generations_end",
    ),
    (
        "LOOKED_AT backend-agent/src/api/handlers/audit.rs",
        "the_audit_log_is_searched_a_bounded_part_at_a_time",
    ),
    (
        "WITHDRAWN_MAX backend-agent/src/data/intents/certificates.rs",
        "of_withdrawn_certificates_the_revoked_ones_come_first",
    ),
    (
        "REFUSALS_NOTED_MAX backend-agent/src/data/intents/tickets.rs",
        "a_ticket_that_is_no_good_is_refused_and_recorded",
    ),
    (
        "RECORDED_EVERY_SECONDS backend-agent/src/data/intents/enrolments.rs",
        "an_answer_that_was_lost_is_given_again",
    ),
    (
        "HEARD_LATELY_SECONDS backend-agent/src/data/intents/replacements.rs",
        "a_name_that_is_taken_is_taken_over_once_nothing_is_heard_of_it",
    ),
    (
        "EPHEMERAL_MS_MIN api/src/ticket.rs",
        "a_place_is_given_away_by_whoever_may_throw_out_and_let_in",
    ),
    (
        "EPHEMERAL_MS_MAX api/src/ticket.rs",
        "a_place_is_given_away_by_whoever_may_throw_out_and_let_in",
    ),
    (
        "LOOKS backend-agent/src/jobs/absent.rs",
        "an_ephemeral_gateway_that_stays_away_is_removed_by_its_backend",
    ),
    (
        "connections_max [api]",
        "strangers_who_read_nothing_keep_nobody_out_and_are_cut",
    ),
    ("per_source_max [api]", "one_source_pushes_only_itself_out"),
    (
        "per_key_max [api]",
        "one_key_that_reads_nothing_keeps_no_other_key_out",
    ),
    (
        "header_timeout_ms [api]",
        "a_head_that_comes_byte_by_byte_gets_no_more_time_than_one_that_does_not_come",
    ),
    (
        "HEADERS_MAX backend-agent/src/api/limits.rs",
        "a_head_that_is_too_large_is_refused_and_the_next_one_gets_in",
    ),
    (
        "HEAD_BYTES_MAX backend-agent/src/api/limits.rs",
        "a_head_that_is_too_large_is_refused_and_the_next_one_gets_in",
    ),
    (
        "send_timeout_ms [api]",
        "a_client_that_does_not_take_its_answer_is_cut_and_counted",
    ),
    (
        "request_timeout_ms [api]",
        "a_body_that_never_comes_ends_at_the_request_timeout",
    ),
    (
        "key_requests_per_minute [api]",
        "every_guarded_endpoint_says_what_its_key_has_left_and_stops_there",
    ),
    (
        "REQUEST_BODY_BYTES_MAX common/src/limits.rs",
        "a_body_over_the_limit_is_refused_with_or_without_a_length",
    ),
    (
        "bodies_bytes_max [api]",
        "bodies_share_their_room_and_give_it_back",
    ),
    (
        "answers_bytes_max [api]",
        "whoever_has_no_room_for_a_page_is_refused_before_it_is_read",
    ),
    ("streams_max [api]", "event_streams_are_bounded"),
    (
        "streams_per_key_max [api]",
        "a_key_that_took_all_its_event_streams_leaves_room_for_others",
    ),
    (
        "KIB_PER_SECOND backend-agent/src/api/narration.rs",
        "followers_share_what_is_told_in_a_second_and_a_key_waits_for_itself",
    ),
    (
        "waits_per_key_max [api]",
        "a_key_that_waits_as_often_as_it_may_leaves_room_for_others",
    ),
    (
        "PAGE_ROWS_MAX common/src/limits.rs",
        "an_unknown_or_repeated_query_parameter_is_named",
    ),
    (
        "RUN_TARGETS_MAX common/src/limits.rs",
        "more_gateways_than_a_run_may_have_are_refused",
    ),
    (
        "ARGUMENTS_MAX common/src/limits.rs",
        "arguments_beyond_the_bound_are_refused",
    ),
    (
        "per_gateway [queue]",
        "a_full_queue_says_when_to_come_back_and_leaves_nothing_half_done",
    ),
    ("total [queue]", "all_queues_together_are_bounded"),
    (
        "attempts_max [queue]",
        "a_command_that_was_delivered_too_often_is_dead",
    ),
    (
        "ALL_MAX backend-agent/src/data/intents/dead_letters.rs",
        "of_dead_letters_so_many_are_kept_and_what_is_resolved_goes_first",
    ),
    (
        "batches_waiting_max [telemetry]",
        "with_one_batch_that_may_wait_gateways_keep_the_others_and_none_is_lost",
    ),
    (
        "gateway_epochs_per_day [telemetry]",
        "what_is_refused_of_one_epoch_too_many_is_counted_once",
    ),
    (
        "POSITIONS_KEPT backend-agent/src/data/intents/telemetry/retention.rs",
        "a_position_goes_some_time_after_the_last_record_of_its_spool_epoch",
    ),
    (
        "DRAIN_SECONDS common/src/limits.rs",
        "no_command_of_fifty_that_run_fails_when_the_backend_is_told_to_stop",
    ),
    (
        "MESSAGE_BYTES_MAX common/src/limits.rs",
        "a_message_over_the_limit_of_its_phase_is_refused_unread",
    ),
    (
        "OPENING_MESSAGE_BYTES_MAX common/src/limits.rs",
        "a_message_over_the_limit_of_its_phase_is_refused_unread",
    ),
    (
        "RETAINED_OUTPUT_BYTES_MAX common/src/limits.rs",
        "head_tail_and_cut_always_add_up_and_stay_within_the_limit",
    ),
    (
        "parallel_max [executor]",
        "no_more_run_at_once_than_allowed",
    ),
    (
        "STOP_SECONDS common/src/engine.rs",
        "a_gateway_that_stops_leaves_what_may_run_twice_to_its_next_process",
    ),
    (
        "entries_max [journal]",
        "the_bound_refuses_and_forgetting_makes_room",
    ),
    (
        "bytes_max [spool]",
        "at_the_bound_the_oldest_go_and_the_count_is_exact",
    ),
    (
        "local_percent [spool]",
        "local_programs_give_up_their_own_beyond_their_share_and_everybody_at_the_bound",
    ),
    (
        "RESERVE_BYTES gateway-agent/src/reserve.rs",
        "the_reserve_holds_real_blocks_until_it_is_given_up_once",
    ),
    (
        "records_per_minute [intake]",
        "one_who_hands_in_too_much_is_told_when_to_come_back_and_keeps_nobody_else_out",
    ),
    (
        "TURNS_MAX gateway-agent/src/api/intake.rs",
        "requests_of_telemetry_at_once_are_bounded_and_a_newcomer_gets_one",
    ),
    (
        "CONNECTIONS_MAX gateway-agent/src/api/serve.rs",
        "a_connection_over_the_limit_takes_the_place_of_an_idle_one",
    ),
    (
        "PER_USER_MAX gateway-agent/src/api/serve.rs",
        "callers_who_read_nothing_keep_nobody_out_and_are_cut",
    ),
    (
        "HEADER_MS gateway-agent/src/api/serve.rs",
        "a_head_that_comes_byte_by_byte_gets_no_more_time",
    ),
    (
        "BODY_MS gateway-agent/src/api/serve.rs",
        "a_body_that_does_not_arrive_is_a_problem_that_says_so",
    ),
    (
        "SEND_MS gateway-agent/src/api/serve.rs",
        "callers_who_read_nothing_keep_nobody_out_and_are_cut",
    ),
    (
        "BODIES_BYTES_MAX gateway-agent/src/api/serve.rs",
        "bodies_are_bounded_altogether_and_a_crowd_is_told_of",
    ),
    (
        "HEAD_BYTES_MAX gateway-agent/src/api/serve.rs",
        "a_head_that_is_too_large_is_refused",
    ),
    (
        "MESSAGE_BYTES_MAX gateway-agent/src/spawner.rs",
        "what_is_no_message_is_refused",
    ),
    (
        "FILES_MAX gateway-agent/src/catalogue/load.rs",
        "a_catalogue_of_too_many_files_is_refused",
    ),
    (
        "FILE_BYTES_MAX gateway-agent/src/audit.rs",
        "a_log_that_is_full_is_moved_aside",
    ),
    (
        "waiting_bytes_max [log]",
        "what_an_output_that_takes_nothing_costs_is_bounded_and_what_is_missing_is_told_where_it_is",
    ),
    (
        "CERTIFICATES_MAX backend-agent/src/agent/manager.rs",
        "the_certificates_of_so_many_gateways_are_remembered_and_no_more",
    ),
    (
        "IDENTITIES_MAX common/src/claims.rs",
        "of_too_many_gateways_in_a_minute_nothing_is_recorded_that_costs_its_sender_nothing",
    ),
    (
        "KNOWN_MAX backend-agent/src/inbound/limits.rs",
        "of_sources_that_held_a_session_the_latest_are_known",
    ),
    (
        "KEYS_MAX backend-agent/src/auth/principals.rs",
        "no_more_keys_are_remembered_than_there_is_room_for",
    ),
    (
        "KEYS_MAX backend-agent/src/auth/quota.rs",
        "a_key_for_which_there_is_no_room_is_not_limited_until_others_have_all_they_may",
    ),
    (
        "GATEWAYS_MAX backend-agent/src/telemetry/withheld.rs",
        "those_who_find_no_room_to_wait_come_again",
    ),
    (
        "IN_A_ROW_MAX backend-agent/src/telemetry/doubts.rs",
        "where_all_fail_it_is_the_database_and_nobody_is_blamed",
    ),
    (
        "LOGGED_MAX backend-agent/src/telemetry/watch.rs",
        "of_so_many_gateways_it_is_known_that_they_were_logged_and_then_of_none",
    ),
    (
        "KNOWN_MAX backend-agent/src/data/postgres/numbers.rs",
        "whoever_remembers_as_many_numbers_as_may_be_begins_anew",
    ),
    (
        "BYTES_MAX backend-agent/src/command/submit/known.rs",
        "what_is_remembered_is_bounded_by_what_it_takes",
    ),
    (
        "RUNS_MAX backend-agent/src/command/bus.rs",
        "the_most_silent_run_makes_room_and_its_watcher_learns_it",
    ),
    (
        "RUN_EVENTS_MAX backend-agent/src/command/bus.rs",
        "a_watcher_that_falls_behind_is_told_how_much_it_missed",
    ),
    (
        "EVENTS_MAX backend-agent/src/command/bus.rs",
        "many_runs_stay_within_one_bound_and_finished_ones_that_nobody_watches_go_first",
    ),
    (
        "RUN_OUTPUT_BYTES_MAX backend-agent/src/command/bus.rs",
        "output_of_one_run_is_bounded_in_bytes",
    ),
    (
        "OUTPUT_BYTES_MAX backend-agent/src/command/bus.rs",
        "output_of_all_runs_is_bounded_in_bytes",
    ),
    (
        "ANNOUNCED_MAX backend-agent/src/command/dispatch.rs",
        "no_session_here_waits_for_a_shared_queue_that_hangs",
    ),
    (
        "AGENTS_MAX backend-agent/src/command/queue/calls.rs",
        "too_many_calls_are_one_to_look_everywhere",
    ),
    (
        "RUNS_MAX backend-agent/src/command/queue/redis/relay.rs",
        "runs_that_others_watch_are_bounded_and_make_room_when_they_are_no_longer_watched",
    ),
    (
        "PIECES_MAX backend-agent/src/command/queue/redis/replays.rs",
        "a_run_that_writes_faster_than_it_is_told_is_not_followed_for_ever",
    ),
    (
        "RUNS_MAX backend-agent/src/inbound/connection/up.rs",
        "the_runs_of_so_many_commands_of_a_session_are_known",
    ),
    (
        "EARLY_MAX common/src/room.rs",
        "cancels_of_commands_that_never_come_are_forgotten_although_something_is_always_under_way",
    ),
    (
        "PER_SECOND backend-agent/src/agent/blocked.rs",
        "any_number_costs_no_more_than_so_much",
    ),
    (
        "FORKS_MAX backend-agent/src/agent/openings.rs",
        "of_second_holders_the_latest_are_remembered",
    ),
    (
        "ORDERS_MAX backend-agent/src/agent/shelf.rs",
        "a_session_that_takes_no_orders_is_given_so_many_and_no_more",
    ),
    (
        "CONDITIONS_MAX runtime/src/conditions.rs",
        "conditions_are_bounded",
    ),
    (
        "PAST_MAX runtime/src/conditions.rs",
        "a_condition_is_there_until_it_is_cleared",
    ),
    (
        "PAST_OF_ONE_MAX runtime/src/conditions.rs",
        "a_condition_that_comes_and_goes_leaves_what_others_were",
    ),
    (
        "CALLS_MAX runtime/src/blocking.rs",
        "calls_that_hang_are_bounded",
    ),
    (
        "LIVE_MAX gateway-agent/src/executor.rs",
        "nobody_reading_live_output_does_not_hold_the_command",
    ),
    (
        "USERS_MAX gateway-agent/src/api.rs",
        "each_source_has_its_own_and_too_many_share_one",
    ),
];

/// A row of a table of the page.
struct Row {
    what: String,
    bound: u64,
    /// The words in code spans of its third column.
    set_by: Vec<String>,
    at_the_bound: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rows(text: &str) -> Vec<Row> {
    let table = text.lines().filter(|line| line.starts_with("| "));
    let cells = table.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect());
    let rows = cells.filter_map(|cells: Vec<&str>| {
        let [what, bound, set_by, at_the_bound] = cells.try_into().ok()?;
        Some(Row {
            what: what.to_owned(),
            // The lines of heads have none.
            bound: bound.replace(',', "").parse().ok()?,
            set_by: set_by
                .split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect(),
            at_the_bound: at_the_bound.to_owned(),
        })
    });
    rows.collect()
}

/// The default of a key, by the generated references.
fn default_of(section: &str, key: &str) -> Vec<u64> {
    let mut found = Vec::new();
    for page in [
        "docs/configuration_backend.md",
        "docs/configuration_gateway.md",
    ] {
        let text = read(page);
        let Some((_, rest)) = text.split_once(&format!("## `{section}`")) else {
            continue;
        };
        let rest = rest.split("\n## ").next().unwrap();
        let line = rest
            .lines()
            .find(|line| line.starts_with(&format!("| `{key}` |")));
        let default = line.and_then(|line| line.split(" | ").nth(2));
        let number = default.and_then(|default| default.trim_matches('`').parse().ok());
        found.extend::<Option<u64>>(number);
    }
    found
}

/// What a constant comes to, which is a number or a product of numbers.
fn constant(name: &str, file: &str) -> Vec<u64> {
    let text = read(file);
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = text.lines().map(str::trim);
    let line = lines
        .filter(|line| line.contains(&format!("const {name}: ")))
        .find_map(|line| line.split_once(" = "));
    let value = line.map(|(_, value)| value.trim_end_matches(';'));
    let factors = value.into_iter().map(|value| {
        let factors = value.split(" * ").map(|factor| {
            let digits = factor.replace('_', "");
            digits
                .parse::<u64>()
                .unwrap_or_else(|_| panic!("{name} in {file} is no product of numbers: {value}"))
        });
        factors.product()
    });
    factors.collect()
}

#[test]
fn every_limit_of_the_page_is_the_one_in_force() {
    let rows = rows(&read("docs/operations/limits.md"));
    assert!(rows.len() > 35, "{} rows", rows.len());
    for row in rows {
        let known = match row.set_by.as_slice() {
            [key, section] if section.starts_with('[') => default_of(section, key),
            [name, file] => constant(name, file),
            other => panic!("{}: {other:?} is neither a key nor a constant", row.what),
        };
        let set_by = row.set_by.join(" ");
        assert!(
            known.contains(&row.bound),
            "{}: the page says {}, and {set_by} is {known:?}",
            row.what,
            row.bound
        );
        assert!(!row.at_the_bound.is_empty(), "{}", row.what);
    }
}

#[test]
fn the_helpers_socket_has_the_bound_of_the_page() {
    let unit = read("systemd/viworks-gateway-helper.socket");
    let bound = unit
        .lines()
        .find_map(|line| line.strip_prefix("MaxConnections="));
    let told = format!("by its socket: {} (`MaxConnections`", bound.unwrap());
    assert!(read("docs/operations/limits.md").contains(&told), "{told}");
}

#[test]
fn every_limit_of_the_page_has_a_test_of_what_happens_there() {
    let mut sources = String::new();
    read_sources(&root(), &mut sources);
    let rows = rows(&read("docs/operations/limits.md"));
    for row in &rows {
        let set_by = row.set_by.join(" ");
        let held = HELD.iter().find(|(bound, _test)| *bound == set_by);
        let (_bound, test) = held.unwrap_or_else(|| panic!("{}: {set_by}", row.what));
        assert!(sources.contains(&format!("fn {test}(")), "{set_by}: {test}");
    }
    for (bound, _test) in HELD {
        let is_told = rows.iter().any(|row| row.set_by.join(" ") == *bound);
        assert!(is_told, "{bound} is not on the page");
    }
}

#[test]
fn a_number_that_is_another_one_is_found() {
    assert_eq!(default_of("[agents]", "connections_max"), [20_000]);
    assert!(default_of("[agents]", "nothing_max").is_empty());
    assert_eq!(constant("PAGE_ROWS_MAX", "common/src/limits.rs"), [1_000]);
    assert!(constant("NOTHING_MAX", "common/src/limits.rs").is_empty());
    let row = "| rows of a page | 1,000 | `PAGE_ROWS_MAX` in `common/src/limits.rs` | refused |";
    assert_eq!(rows(row)[0].bound, 1_000);
    assert_eq!(rows("| --- | --- | --- | --- |").len(), 0);
}
