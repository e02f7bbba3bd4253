//! Every bullet that promises something has a test that holds it.

use super::{page, read_sources, root};

/// A promise by its page and first words, and the tests that hold it.
const PROMISES: &[(&str, &str, &[&str])] = &[
    (
        "README.md",
        "**No command lost, none run twice.**",
        &[
            "a_backend_that_dies_at_any_durable_step_loses_and_repeats_nothing",
            "a_gateway_that_dies_at_any_durable_step_leaves_every_command_decided",
        ],
    ),
    (
        "README.md",
        "**No command late.**",
        &[
            "a_permit_that_comes_too_late_starts_nothing",
            "an_offer_without_a_permit_expires_at_its_deadline",
            "a_helper_that_takes_its_time_makes_no_command_late",
        ],
    ),
    (
        "README.md",
        "**No telemetry lost silently",
        &[
            "kills_amid_commands_and_telemetry_lose_nothing_and_repeat_nothing",
            "at_the_bound_the_oldest_go_and_the_count_is_exact",
        ],
    ),
    (
        "README.md",
        "**One identity, one live session.**",
        &["a_second_machine_with_the_same_identity_is_refused_while_the_first_is_alive"],
    ),
    (
        "README.md",
        "**The gateway decides what may run.**",
        &[
            "a_catalogue_that_others_could_change_is_refused",
            "arguments_reach_the_program_unchanged",
        ],
    ),
    (
        "README.md",
        "**A wrong clock locks nobody out.**",
        &["the_invariants_hold_in_every_world"],
    ),
    (
        "SECURITY.md",
        "Nobody without a certificate",
        &["whoever_does_not_belong_is_refused_logged_once_and_counted"],
    ),
    (
        "SECURITY.md",
        "A gateway talks only to",
        &["a_good_chain_with_another_key_is_a_pin_mismatch_that_proves_nothing"],
    ),
    (
        "SECURITY.md",
        "A machine becomes a gateway",
        &[
            "a_request_or_a_name_that_is_no_good_is_told_of_audited_and_costs_nothing",
            "a_ticket_does_not_show_its_secret",
            "whoever_holds_places_without_a_ticket_keeps_nobody_from_enrolling",
            "one_that_says_nothing_gives_way_to_one_that_does",
        ],
    ),
    (
        "SECURITY.md",
        "What a gateway may run",
        &[
            "a_file_below_a_folder_that_others_can_change_is_refused_however_deep",
            "a_catalogue_that_another_user_swaps_while_it_is_read_is_never_taken",
            "arguments_reach_the_program_unchanged",
        ],
    ),
    (
        "SECURITY.md",
        "A gateway that an operator throws out",
        &[
            "a_gateway_is_thrown_out_by_an_operator_and_knows_at_once",
            "a_gateway_that_is_revoked_loses_its_session_at_whichever_backend",
            "revocation_cuts_the_live_session_and_refuses_the_next",
        ],
    ),
    (
        "SECURITY.md",
        "Replayed messages",
        &[
            "no_frame_is_accepted_twice",
            "what_was_said_before_or_elsewhere_ends_the_session_and_is_on_record_once_a_minute",
            "whoever_does_not_belong_is_refused_logged_once_and_counted",
            "a_counter_above_the_row_proves_a_roll_back",
        ],
    ),
    (
        "SECURITY.md",
        "Keys that others can read",
        &[
            "a_key_that_others_can_read_is_refused",
            "senseless_urls_are_refused",
            "every_problem_is_listed_at_once_with_its_line",
            "a_plain_text_api_for_others_is_refused_by_a_backends_check_and_start",
        ],
    ),
    (
        "SECURITY.md",
        "Files that others than root",
        &[
            "what_belongs_to_another_user_is_refused_by_a_gateways_check_and_start",
            "what_belongs_to_another_user_is_refused_by_a_backends_check_and_start",
            "a_gateways_links_are_refused_by_check_and_start",
        ],
    ),
    (
        "SECURITY.md",
        "A local account that may use a gateway's socket",
        &[
            "a_user_who_floods_a_gateway_slows_neither_its_commands_nor_its_readings",
            "local_programs_cannot_push_the_gateways_own_readings_out_of_its_spool",
        ],
    ),
    (
        "SECURITY.md",
        "Everything a principal does",
        &[
            "the_audit_log_cannot_be_changed_or_deleted",
            "a_command_runs_and_is_audited",
        ],
    ),
    (
        "docs/api.md",
        "It is done when it is answered",
        &[
            "a_gateway_is_thrown_out_by_an_operator_and_knows_at_once",
            "a_gateway_that_is_thrown_out_takes_its_commands_with_it_and_followers_are_told",
        ],
    ),
    (
        "docs/api.md",
        "Revoking twice is revoking once",
        &["revoking_twice_is_revoking_once_and_the_first_reason_stays"],
    ),
    (
        "docs/api.md",
        "**Orphans**",
        &["orphans_are_listed_by_page_the_latest_first"],
    ),
    (
        "docs/api.md",
        "A step is a number",
        &[
            "steps_are_read_as_they_are_shown_or_refused",
            "steps_are_what_a_plain_model_says",
        ],
    ),
    (
        "docs/api.md",
        "Two such questions are answered at a time",
        &["reports_that_take_long_hold_up_nobody"],
    ),
    (
        "docs/api.md",
        "A step without a record",
        &["steps_are_what_a_plain_model_says"],
    ),
    (
        "docs/api.md",
        "Numbers are reckoned",
        &[
            "a_sum_beyond_every_number_is_absent",
            "what_is_beyond_every_number_is_not_told",
        ],
    ),
    (
        "docs/api.md",
        "Steps of whole hours",
        &[
            "days_that_are_rolled_up_tell_what_their_records_told",
            "roll_ups_outlive_the_records",
        ],
    ),
    (
        "docs/api.md",
        "`from` is needed",
        &["a_page_of_steps_looks_at_so_many_records_and_tells_of_none_twice"],
    ),
    (
        "docs/api.md",
        "**Dead letters**",
        &[
            "what_could_not_be_delivered_is_retried_once_or_discarded",
            "a_retry_is_a_run_of_its_own_that_knows_what_it_is_for",
            "of_dead_letters_so_many_are_kept_and_what_is_resolved_goes_first",
            "what_is_decided_about_is_forgotten_after_a_month",
        ],
    ),
    (
        "docs/api.md",
        "With `wait_ms`",
        &[
            "a_submission_that_waits_is_answered_with_the_end_of_its_run",
            "a_submission_that_waited_in_vain_says_where_to_wait_on",
            "a_key_that_waits_as_often_as_it_may_leaves_room_for_others",
        ],
    ),
    (
        "docs/api.md",
        "A run is accepted whole",
        &[
            "a_submission_that_is_not_right_names_the_field_and_what_is_allowed",
            "targets_that_come_to_nothing_are_refused",
            "all_means_every_gateway_that_can",
        ],
    ),
    (
        "docs/api.md",
        "One gateway cannot veto the fleet",
        &[
            "a_gateway_that_nothing_fits_is_named_and_can_be_left_out",
            "gateways_whose_queues_are_full_are_named_and_can_be_left_out",
            "a_gateway_that_claims_a_higher_risk_is_named_and_can_be_left_out",
        ],
    ),
    (
        "docs/api.md",
        "`expect_targets`",
        &["all_means_every_gateway_that_can"],
    ),
    (
        "docs/api.md",
        "`deadline_ms`",
        &["a_time_limit_can_only_become_shorter"],
    ),
    (
        "docs/api.md",
        "Repeating a submission",
        &["a_repeated_submission_gets_the_first_ones_run"],
    ),
    (
        "docs/api.md",
        "A command whose risk",
        &["the_risk_of_a_command_decides_which_scope_it_needs"],
    ),
    (
        "docs/api.md",
        "`missed` with `events`",
        &["a_follower_is_told_each_range_of_output_that_does_not_come"],
    ),
    (
        "docs/api.md",
        "`missed` with `output`",
        &[
            "a_follower_is_told_each_range_of_output_that_does_not_come",
            "events_tell_programs_what_they_do_not_bring",
        ],
    ),
    (
        "docs/api.md",
        "A piece whose `offset`",
        &["a_command_that_is_run_again_begins_again"],
    ),
    (
        "docs/api.md",
        "Pieces end between letters",
        &["a_letter_is_in_one_live_piece_wherever_the_pipe_divides_it"],
    ),
    (
        "docs/api.md",
        "**Lists**",
        &["gateways_are_listed_by_page_and_shown_by_name_and_id"],
    ),
    (
        "docs/api.md",
        "**Input is strict**",
        &["an_unknown_or_repeated_query_parameter_is_named"],
    ),
    (
        "docs/api.md",
        "**Refusals**",
        &[
            "every_answer_names_its_request_and_is_not_to_be_stored",
            "a_busy_backend_says_when_to_come_back",
        ],
    ),
    (
        "docs/api.md",
        "**Scopes**",
        &[
            "every_guarded_endpoint_answers_to_its_scope_alone",
            "a_key_cannot_grant_what_it_does_not_have",
        ],
    ),
    (
        "docs/api.md",
        "**Probes**",
        &[
            "probes_and_the_description_are_public",
            "a_key_that_was_known_lately_is_known_for_an_hour_unless_it_was_refused_since",
            "a_database_that_says_nothing_is_told_of_and_costs_nothing",
        ],
    ),
    (
        "docs/api.md",
        "**Connections**",
        &[
            "whoever_showed_a_key_keeps_its_place_and_where_nobody_can_go_the_newcomer_is_told_so",
            "a_key_that_waits_eleven_hundred_times_stops_nobody",
            "a_client_that_does_not_take_its_answer_is_cut_and_counted",
            "two_hosts_and_encoded_bodies_are_refused",
        ],
    ),
    (
        "docs/api.md",
        "**Bounds**",
        &[
            "a_body_over_the_limit_is_refused_with_or_without_a_length",
            "a_body_that_never_comes_ends_at_the_request_timeout",
            "a_key_that_waits_as_often_as_it_may_leaves_room_for_others",
        ],
    ),
    (
        "docs/api.md",
        "`gateway` are the records by or on a gateway",
        &[
            "records_are_found_by_whom_and_what_they_are_about",
            "the_audit_log_is_searched_a_bounded_part_at_a_time",
        ],
    ),
    (
        "docs/api.md",
        "The log has no index but its numbers",
        &["the_audit_log_is_searched_a_bounded_part_at_a_time"],
    ),
    (
        "docs/api.md",
        "A request that is not even HTTP",
        &["too_many_headers_are_refused"],
    ),
];

/// The bullets of the lists that promise something.
fn promises(name: &str) -> Vec<String> {
    let text = page(name);
    let section = match name {
        "README.md" => text.split("\n## ").next().unwrap(),
        "SECURITY.md" => text.split_once("\n## What ViWorkS defends\n").unwrap().1,
        _ => text.as_str(),
    };
    let section = match name {
        "SECURITY.md" => section.split("\n## ").next().unwrap(),
        _ => section,
    };
    let bullets = section.lines().filter_map(|line| line.strip_prefix("- "));
    bullets.map(str::to_owned).collect()
}

#[test]
fn every_promise_has_a_test() {
    let mut sources = String::new();
    read_sources(&root(), &mut sources);
    for name in ["README.md", "SECURITY.md", "docs/api.md"] {
        for promise in promises(name) {
            let held = PROMISES
                .iter()
                .any(|(page, words, _)| *page == name && promise.starts_with(words));
            assert!(held, "{name} promises what no test is named for: {promise}");
        }
    }
    for (name, words, tests) in PROMISES {
        let made = promises(name)
            .iter()
            .any(|promise| promise.starts_with(words));
        assert!(made, "{name} no longer promises {words:?}");
        for test in *tests {
            let there = sources.contains(&format!("fn {test}("));
            assert!(there, "{name}: {words}: there is no test {test}");
        }
    }
}
