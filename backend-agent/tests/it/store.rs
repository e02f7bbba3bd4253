//! The conformance suite of the store contract: every behaviour once, for every store.

mod authorities;
mod bed;
mod births;
mod days;
mod dead_letters;
mod earlier;
mod ends;
mod enrolments;
mod expiry;
mod failover;
mod fit;
mod forks;
mod gateways;
mod instance_changes;
mod instances;
mod journeys;
mod lane;
mod leases;
mod lost_answers;
mod moving;
mod one_key;
mod orphans;
mod over_time;
mod permits;
mod pins;
mod postgres_only;
mod records;
mod recount;
mod refusals;
mod reissues;
mod renewals;
mod replacements;
mod retention;
mod revocations;
mod rotation;
mod runs;
mod sessions;
mod standing_lanes;
mod strays;
mod taking_in;
mod telemetry;
mod time;
mod together;
mod twice;

use std::sync::Arc;

use tempfile::TempDir;
use viworks_backend_agent::data::postgres::{Address, PostgresStore, Role};
use viworks_backend_agent::data::sqlite::SqliteStore;
use viworks_backend_agent::data::{Store, TelemetryLimits, UpkeepStore as _};
use viworks_runtime::sqlite::Options;
use viworks_testkit::postgres::{self, Server};

/// Opens the store that lives in a folder; a second call opens the same one again.
async fn sqlite(folder: &TempDir) -> Option<Arc<dyn Store>> {
    let options = Options::new(folder.path().join("backend.db"));
    let store = SqliteStore::open(options).await.unwrap();
    Some(Arc::new(
        store
            .telemetry_limits(limits())
            .dead_letters_max(DEAD_LETTERS_MAX),
    ))
}

/// Dead letters that are kept here: few, so that a test reaches it.
const DEAD_LETTERS_MAX: usize = 120;

/// What a gateway may have stored here.
fn limits() -> TelemetryLimits {
    TelemetryLimits {
        retention_days: 30,
        ..TelemetryLimits::default()
    }
}

/// A database with the schema, which others are copied from.
const TEMPLATE: &str = "viworks_template";

/// The server, and the name of the database that goes with a folder.
fn database(folder: &TempDir) -> Option<(&'static Server, String)> {
    let server = postgres::server()?;
    let name = folder.path().file_name()?.to_str()?;
    Some((server, name.to_lowercase().replace('.', "store")))
}

/// Makes the database of a folder, with the schema, unless it is there.
fn make(server: &Server, database: &str) {
    server.make(database, TEMPLATE, || {
        let address = Address::parse(&server.url(TEMPLATE), None, None).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let migrated = PostgresStore::open(address, Role::Beside, true);
                migrated.await.unwrap().close().await;
            });
        })
        .join()
        .unwrap();
    });
}

/// The same on PostgreSQL, where that is installed.
async fn postgres(folder: &TempDir) -> Option<Arc<dyn Store>> {
    let (server, database) = database(folder)?;
    make(server, &database);
    let address = Address::parse(&server.url(&database), None, None).unwrap();
    let store = PostgresStore::open(address.connections_max(8), Role::Backend, true);
    Some(Arc::new(
        store
            .await
            .unwrap()
            .telemetry_limits(limits())
            .dead_letters_max(DEAD_LETTERS_MAX),
    ))
}

/// The same counters there.
fn postgres_counts_are_right(folder: &TempDir) {
    let Some((server, database)) = database(folder) else {
        return;
    };
    for wrong in [
        "SELECT tenant FROM (SELECT tenant, sum(commands) AS counted FROM open_commands GROUP BY tenant) AS o \
         WHERE counted <> (SELECT count(*) FROM commands AS c WHERE c.tenant = o.tenant AND finished_at IS NULL)",
        "SELECT agent_id FROM gateways AS g WHERE open_commands <> \
         (SELECT count(*) FROM commands AS c WHERE c.agent_id = g.agent_id AND c.tenant = g.tenant AND finished_at IS NULL)",
        "SELECT run_id FROM runs AS r WHERE open_commands <> \
         (SELECT count(*) FROM commands AS c WHERE c.run_id = r.run_id AND c.tenant = r.tenant AND finished_at IS NULL)",
        // The key is not the record's identity alone, so that is looked at as well.
        "SELECT epoch, seq FROM telemetry GROUP BY epoch, seq HAVING count(*) > 1",
    ] {
        assert_eq!(server.psql(&database, wrong).unwrap(), "", "{wrong}");
    }
    server.drop(&database);
}

/// Holds every counter of the closed store in a folder against what it counts.
fn sqlite_counts_are_right(folder: &TempDir) {
    let database = rusqlite::Connection::open(folder.path().join("backend.db")).unwrap();
    let counts = |sql: &str| -> Vec<(String, i64)> {
        let mut statement = database.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.unwrap().collect::<Result<_, _>>().unwrap()
    };
    for (counted, real) in [
        (
            "SELECT tenant, commands FROM open_commands WHERE commands > 0 ORDER BY tenant",
            "SELECT tenant, count(*) FROM commands WHERE finished_at IS NULL GROUP BY tenant ORDER BY tenant",
        ),
        (
            "SELECT agent_id, open_commands FROM gateways WHERE open_commands > 0 ORDER BY agent_id",
            "SELECT agent_id, count(*) FROM commands WHERE finished_at IS NULL GROUP BY tenant, agent_id ORDER BY agent_id",
        ),
        (
            "SELECT run_id, open_commands FROM runs WHERE open_commands > 0 ORDER BY run_id",
            "SELECT run_id, count(*) FROM commands WHERE finished_at IS NULL GROUP BY run_id ORDER BY run_id",
        ),
    ] {
        assert_eq!(counts(counted), counts(real), "{counted}");
    }
}

/// Runs the whole suite against what `$open`, an `async fn(&TempDir) -> Arc<dyn Store>`, opens; `$check` looks at each
/// store when it is closed.
macro_rules! suite {
    ($($module:ident { $($behaviour:ident,)* })*) => {
        suite! { @on on_sqlite, crate::store::sqlite, crate::store::sqlite_counts_are_right,
            $($module { $($behaviour,)* })* }
        suite! { @on on_postgres, crate::store::postgres, crate::store::postgres_counts_are_right,
            $($module { $($behaviour,)* })* }
    };
    (@on $store:ident, $open:path, $check:path, $($module:ident { $($behaviour:ident,)* })*) => {
        mod $store {
            $(mod $module {
                $(#[tokio::test]
                async fn $behaviour() {
                    let folder = tempfile::tempdir().unwrap();
                    let Some(store) = $open(&folder).await else { return };
                    let bed = crate::store::bed::Bed::new(store);
                    crate::store::$module::$behaviour(&bed).await;
                    bed.store.close().await;
                    $check(&folder);
                })*
            })*

            #[tokio::test]
            async fn a_restart_keeps_everything() {
                let folder = tempfile::tempdir().unwrap();
                let Some(store) = $open(&folder).await else { return };
                let bed = crate::store::bed::Bed::new(store);
                let before = crate::store::records::fill(&bed).await;
                bed.store.close().await;
                let again = crate::store::bed::Bed::new($open(&folder).await.unwrap());
                crate::store::records::everything_is_there(&again, before).await;
                again.store.close().await;
            }
        }
    };
}

suite! {
    rotation {
        a_key_that_is_asked_for_is_wanted_until_a_session_uses_it,
        who_takes_keys_is_known_since_the_last_session,
        which_master_keys_a_backend_has_is_known_to_others,
        a_revoked_gateway_gets_no_key_and_generations_end,
    }
    renewals {
        with_the_first_session_of_a_renewed_certificate_the_earlier_ones_retire,
        a_certificate_is_answered_again_until_it_is_in_use,
        a_gateway_gets_one_certificate_a_minute_and_six_an_hour,
        a_gateway_that_uses_none_of_many_certificates_gets_one_an_hour,
        certificates_that_nobody_used_are_forgotten_long_after_their_end,
        only_the_session_of_a_gateway_that_is_not_revoked_renews,
        certificates_that_ended_long_ago_are_forgotten_once_they_are_retired,
    }
    reissues {
        a_certificate_ends_by_the_wall_clock_at_the_door_as_it_does_in_tls,
        a_gateway_whose_certificate_has_ended_gets_another_for_the_same_key,
        the_holder_that_is_kept_gets_another_until_it_has_come_back,
        the_first_session_with_it_retires_the_earlier_ones,
        the_key_of_a_revoked_certificate_is_called_revoked,
        whoever_is_not_the_gateway_of_today_gets_none,
        the_door_and_the_session_have_one_bound,
        what_the_door_refuses_is_recorded_within_bounds_and_of_gateways_alone,
    }
    earlier {
        an_earlier_certificate_names_its_key_and_ends_a_session_with_it,
        a_session_with_an_earlier_certificate_of_another_key_goes_on,
        earlier_certificates_are_withdrawn_with_their_key_until_they_end,
        of_withdrawn_certificates_the_revoked_ones_come_first,
        a_holder_that_is_known_by_an_earlier_certificate_is_kept,
        a_holder_that_is_kept_and_lost_its_certificate_gets_another_one_at_the_door,
        a_holder_with_an_earlier_certificate_of_a_revoked_key_is_out,
        a_session_that_waits_with_an_earlier_certificate_of_a_revoked_key_is_not_confirmed,
        the_latest_earlier_certificates_are_kept,
        what_ended_long_ago_is_forgotten_unless_a_fork_knows_a_holder_by_it,
    }
    pins {
        a_key_of_the_server_is_staged_promoted_and_the_one_before_is_retired,
        a_key_is_promoted_against_whoever_does_not_trust_it_only_by_force,
        a_gateway_that_is_revoked_or_trusts_what_nobody_made_confirms_nothing,
        a_gateway_whose_only_certificate_was_revoked_is_not_cut_off_by_a_step,
        a_gateway_of_which_a_holder_can_be_kept_with_a_retired_certificate_is_cut_off_by_a_step,
        a_pin_set_that_is_configured_under_a_higher_version_takes_the_place_of_the_stored_one,
        the_configured_set_is_stored_by_the_first_and_replaced_by_a_higher_version_alone,
        a_gateway_has_confirmed_the_pins_that_it_became_one_with,
        the_pins_of_the_last_answer_at_the_door_are_those_that_count,
    }
    authorities {
        a_gateway_has_what_it_reported_whether_it_is_connected_or_not,
        only_the_session_of_a_gateway_that_is_not_revoked_reports_what_it_has,
        a_bundle_is_forgotten_once_no_gateway_has_it_and_no_backend_gives_it,
        a_gateway_has_the_authorities_that_it_became_one_with,
        the_authorities_of_the_last_answer_at_the_door_are_those_that_count,
        which_authority_signed_a_certificate_is_kept_however_it_was_issued,
        who_signed_a_certificate_is_learned_with_a_session_of_its_gateway_alone,
        who_signed_the_certificate_of_before_is_not_stored_of_one_from_the_door,
        a_gateway_counts_by_the_certificates_with_which_it_gets_in,
    }
    revocations {
        a_revoked_certificate_ends_its_session_and_no_other,
        a_session_with_an_earlier_certificate_of_the_key_ends_as_well,
        whoever_revokes_a_certificate_is_told_of_a_renewal_that_is_not_proved,
        a_session_that_waits_to_be_confirmed_is_not_with_a_revoked_certificate,
        a_certificate_is_found_as_other_programs_print_its_serial_number,
        a_revoked_certificate_is_neither_handed_out_again_nor_in_use,
        whoever_was_revoked_or_replaced_is_recorded_once_an_hour,
        a_knock_that_is_expected_does_not_hide_a_graver_refusal,
    }
    gateways {
        a_gateway_is_found_by_id_and_by_name,
        a_name_is_unique_within_its_tenant_only,
        an_id_is_never_used_again,
        a_rename_to_a_taken_name_is_a_conflict,
        gateways_are_listed_in_pages_and_filtered,
        a_key_is_registered_for_one_gateway_once,
        a_certificate_of_a_revoked_gateway_is_revoked,
        keys_of_many_gateways_are_each_their_own,
        labels_keep_their_source,
        odd_text_is_kept,
        the_catalogue_is_known_by_its_digest,
        reports_at_the_same_moment_are_stored_each_for_itself,
        the_fleet_s_catalogue_counts_equal_entries,
        the_fleet_s_catalogue_is_read_in_pages_of_so_many_bytes,
        targets_are_resolved_in_the_order_named,
    }
    sessions {
        an_unknown_gateway_is_not_admitted,
        the_first_session_gets_epoch_one,
        of_two_concurrent_confirms_one_wins,
        lost_welcomes_never_look_like_a_fork,
        a_left_behind_copy_is_a_fork_with_both_parties_recorded,
        a_fork_that_keeps_knocking_is_one_row,
        an_overtaken_message_of_the_same_process_is_late,
        a_wrong_token_is_refused_and_audited,
        a_stale_key_generation_is_refused,
        a_newer_session_fences_the_older,
        a_late_close_does_not_touch_the_newer_session,
        revocation_fences_at_once_and_ends_every_command,
        heartbeats_of_a_fenced_session_are_dropped,
        gateways_that_come_back_together_each_get_their_own_answer,
        a_rolled_back_database_raises_its_counters,
        a_gateway_that_claims_every_number_gets_orders_that_it_takes,
        a_hello_learns_about_the_live_session,
        sessions_that_are_never_confirmed_are_bounded_too,
    }
    refusals {
        refused_hellos_without_end_leave_so_many_audit_records,
        what_a_gateway_reports_leaves_room_in_the_audit_log_for_what_it_does_wrong,
        why_a_gateway_was_last_refused_is_found,
    }
    expiry {
        certificates_are_counted_by_the_time_that_they_have_left,
    }
    forks {
        an_original_that_is_kept_comes_back_and_its_copy_stays_out,
        what_was_permitted_to_a_copy_is_not_told_by_the_journal_of_the_original,
        whoever_denies_a_start_that_another_holder_told_is_recorded_within_bounds,
        a_live_holder_that_is_kept_is_not_disturbed,
        a_decision_can_be_taken_back,
        of_two_processes_of_one_boot_the_one_that_is_named_is_kept,
        a_live_holder_that_started_anew_since_is_not_disturbed,
        a_second_copied_disk_does_not_pass_for_the_one_that_is_kept,
        a_copy_that_was_put_out_before_does_not_pass_for_the_one_that_is_kept,
        a_holder_that_gets_another_identity_is_no_fork_any_more,
        the_certificate_of_the_one_that_is_kept_is_good_again,
        an_original_that_is_kept_comes_back_with_the_agent_key_that_it_has,
        a_holder_whose_certificate_was_revoked_is_not_kept,
        a_decision_that_means_nobody_changes_nothing,
    }
    runs {
        a_run_is_accepted_whole,
        a_run_over_a_gateway_s_bound_leaves_only_its_audit_record,
        a_run_over_the_global_bound_is_refused_whole,
        a_run_with_a_revoked_gateway_is_refused_whole,
        a_run_with_a_gateway_twice_is_refused,
        the_same_idempotency_key_and_request_answers_the_same_run,
        the_same_idempotency_key_with_another_request_is_a_mismatch,
        one_key_at_the_same_moment_is_one_run,
        a_key_is_forgotten_after_a_day,
        what_has_served_is_deleted_in_steps,
        orders_count_per_gateway_without_holes,
        runs_are_listed_newest_first_in_pages,
        a_cancel_before_the_permit_ends_the_command,
        a_cancel_of_a_finished_run_leaves_it_as_it_ended,
        a_cancel_after_the_permit_is_a_request,
        an_unknown_run_is_none,
    }
    together {
        commands_of_many_gateways_all_end,
        commands_of_one_gateway_keep_their_order,
        one_that_may_not_stops_no_other,
        what_was_printed_is_kept_and_nothing_is_nothing,
        callers_at_the_same_moment_each_get_their_own_answer,
    }
    births {
        a_command_is_offered_at_its_birth_to_the_session_that_kept_room,
        a_birth_for_a_session_that_is_gone_waits,
        a_birth_passes_by_nothing_that_waits,
        a_birth_beyond_the_order_window_waits,
        what_was_offered_at_its_birth_and_never_arrived_is_offered_again,
        a_gateway_that_is_not_what_was_remembered_gets_nothing,
        the_last_result_of_a_run_answers_with_the_run_as_it_ended,
    }
    leases {
        a_lease_takes_commands_in_order_and_once,
        a_command_is_there_at_once_for_whose_line_is_a_moment_behind,
        a_lease_respects_the_order_window,
        a_command_past_its_deadline_is_not_leased,
        used_up_deliveries_are_dead,
        a_lost_session_queues_what_was_dispatched,
        a_busy_gateway_gets_the_command_again_later,
        queued_gateways_are_offered_to_the_reconciler,
    }
    permits {
        an_idempotent_command_brings_its_permit_along,
        an_accepted_command_is_released_to_that_process,
        the_gateway_s_stricter_opinion_is_stored_with_the_release,
        acceptance_by_another_process_is_indeterminate_and_dropped,
        an_idempotent_command_is_released_again_to_another_process,
        an_accepted_unknown_or_final_command_is_dropped,
        acceptance_after_the_deadline_expires_the_command,
        a_permit_of_the_same_process_is_given_again_after_confirm,
        a_fenced_session_can_do_nothing,
    }
    ends {
        a_gone_process_ends_what_it_may_have_run,
        a_command_completes_once,
        output_is_kept_beside_the_command,
        an_outcome_that_denies_what_another_process_started_takes_no_room,
        an_outcome_after_indeterminate_is_kept_beside_it,
        a_refused_command_is_final_with_its_code,
        expiry_ends_only_what_has_no_permit,
        overdue_commands_end_as_indeterminate,
        low_water_is_the_highest_order_below_which_all_are_final,
    }
    orphans {
        an_unknown_result_is_an_orphan,
        orphans_are_listed_by_page_the_latest_first,
        of_results_that_nobody_asked_for_so_many_are_kept_and_the_others_counted,
        another_gateway_s_result_is_an_orphan,
    }
    dead_letters {
        what_could_not_be_delivered_is_kept_with_its_request,
        a_dead_letter_is_retried_once,
        a_refused_retry_leaves_the_dead_letter_open,
        a_discarded_dead_letter_is_not_retried,
        dead_letters_are_listed_in_pages_the_latest_first,
        of_dead_letters_so_many_are_kept_and_what_is_resolved_goes_first,
        what_is_decided_about_is_forgotten_after_a_month,
    }
    telemetry {
        a_batch_twice_is_stored_once,
        any_batching_stores_every_record_once,
        gaps_are_stored_clipped_at_the_position,
        a_batch_beyond_the_position_commits_a_rolled_back_gap,
        what_a_gateway_knows_as_committed_and_the_store_forgot_becomes_a_gap,
        a_gateway_that_knows_less_than_the_store_loses_nothing,
        a_refused_record_is_counted_and_does_not_fail_its_batch,
        other_bounds_count_from_the_next_batch_on,
        a_day_that_goes_back_gives_no_gateway_more_than_its_share,
        what_is_refused_of_one_epoch_too_many_is_counted_once,
        what_is_refused_of_several_epochs_in_alternation_is_counted_once,
        what_is_refused_of_many_epochs_at_once_is_counted_once,
        what_hello_claims_beyond_the_bound_of_gaps_is_counted_once,
        a_fenced_batch_is_not_stored_and_its_neighbour_is,
        a_fenced_batch_is_fenced_whatever_it_holds,
        behind_a_malformed_batch_nothing_of_its_gateway_is_stored,
        records_are_queried_by_stream_range_and_page,
    }
    over_time {
        steps_are_what_a_plain_model_says,
        a_page_of_steps_looks_at_so_many_records_and_tells_of_none_twice,
        a_sum_beyond_every_number_is_absent,
        the_smallest_numbers_are_numbers,
        numbers_at_both_ends_have_answers,
        days_that_are_rolled_up_tell_what_their_records_told,
        roll_ups_outlive_the_records,
    }
    retention {
        what_is_older_than_it_is_kept_is_refused_and_counted,
        what_an_unmeasured_clock_dates_too_early_is_kept_as_received,
        a_position_goes_some_time_after_the_last_record_of_its_spool_epoch,
        what_tells_of_losses_goes_with_what_was_kept_beside_it,
        what_was_kept_long_enough_is_deleted_in_steps,
        a_stream_that_comes_back_is_counted_anew,
    }
    enrolments {
        a_ticket_is_made_once_listed_and_revoked,
        a_ticket_makes_as_many_gateways_as_it_is_for,
        the_last_uses_of_a_ticket_go_to_so_many,
        an_answer_that_was_lost_is_given_again,
        a_challenge_is_good_for_one_redemption,
        a_taken_name_is_refused_or_changes_nothing_where_there_is_another,
        the_name_of_a_revoked_gateway_is_for_a_ticket_that_is_for_it,
        tickets_that_can_be_used_are_bounded_and_ended_ones_make_room,
        a_ticket_that_is_no_good_is_refused_and_recorded,
    }
    replacements {
        a_machine_takes_a_place_and_the_one_before_has_nothing_more,
        two_machines_never_take_one_place,
        a_hello_of_the_machine_before_never_outlives_it,
        whoever_held_the_identity_before_is_no_choice_any_more,
        a_place_whose_answer_was_lost_is_given_again,
        a_revoked_gateway_comes_back_by_a_ticket_for_its_place_alone,
        a_name_that_is_taken_is_taken_over_once_nothing_is_heard_of_it,
        a_gateway_has_as_many_keys_as_a_hello_can_name,
        an_ephemeral_gateway_that_stays_away_is_removed_and_its_name_is_free,
        an_ephemeral_gateway_without_a_free_name_does_not_hold_up_the_others,
        gateways_are_listed_by_the_ticket_that_they_came_of,
    }
    records {
        a_database_belongs_to_the_master_key_that_claims_it_first,
        a_page_of_large_rows_ends_early_and_the_next_one_goes_on,
        the_audit_log_counts_up_and_is_paged_newest_first,
        the_audit_log_is_searched_a_bounded_part_at_a_time,
        an_api_key_is_found_by_its_digest_only,
        what_principals_do_is_audited,
        counts_follow_the_rows,
        health_speaks_of_gateways_that_are_not_revoked_and_of_a_day,
        health_knows_since_when_the_oldest_queued_command_waits,
        results_that_were_not_kept_are_told_of_by_the_next_one_that_is_recorded,
        a_closed_store_is_unavailable,
    }
}

/// What only SQLite has: triggers, and files of earlier versions.
mod sqlite_only {
    use viworks_backend_agent::data::{Actor, GatewayRef, Page, TelemetryQuery};
    use viworks_common::command::{CommandState, OutcomeState};
    use viworks_common::time::Timestamp;

    use super::bed::{Bed, agent, at};

    #[tokio::test]
    async fn why_a_gateway_was_revoked_is_known_without_the_audit_log() {
        let folder = tempfile::tempdir().unwrap();
        let bed = Bed::new(super::sqlite(&folder).await.unwrap());
        bed.gateway(1).await;
        let actor = Actor::local("uid 0");
        let reason = Some("it was stolen");
        let revoked = bed
            .store
            .revoke_gateway(&bed.tenant, agent(1), reason, &actor, at(5));
        revoked.await.unwrap();
        bed.store.close().await;
        let database = rusqlite::Connection::open(folder.path().join("backend.db")).unwrap();
        let forget = "DROP TRIGGER audit_log_is_never_deleted; DELETE FROM audit_log";
        database.execute_batch(forget).unwrap();
        drop(database);
        let bed = Bed::new(super::sqlite(&folder).await.unwrap());
        let known = bed.store.revocation(&bed.tenant, agent(1)).await.unwrap();
        let known = known.unwrap();
        assert_eq!(known.by, "local:uid 0");
        assert_eq!(known.reason.as_deref(), Some("it was stolen"));
        bed.store.close().await;
    }

    #[tokio::test]
    async fn the_audit_log_cannot_be_changed_or_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let bed = Bed::new(super::sqlite(&folder).await.unwrap());
        bed.gateway(1).await;
        bed.store.close().await;
        let database = rusqlite::Connection::open(folder.path().join("backend.db")).unwrap();
        for sql in [
            "UPDATE audit_log SET action = 'x'",
            "DELETE FROM audit_log",
            "DELETE FROM gateways",
        ] {
            let refused = database.execute(sql, []).unwrap_err();
            assert!(
                refused.to_string().contains("append-only")
                    || refused.to_string().contains("never used again"),
                "{refused}"
            );
        }
    }

    #[tokio::test]
    async fn what_the_process_before_left_open_is_ended_at_the_next_start() {
        for many in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let bed = Bed::new(super::sqlite(&folder).await.unwrap());
            super::sessions::abandoned_sessions_are_ended(&bed, many).await;
            bed.store.close().await;
            super::sqlite_counts_are_right(&folder);
        }
    }

    /// Made by version 8 of the schema on its driver: `records::fill`, then gateway 2 with three commands, two of them
    /// taken, and three records.
    #[tokio::test]
    async fn a_database_of_an_earlier_version_opens_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let dump = include_str!("../fixtures/backend_0008.sql");
        viworks_testkit::dump::restore(&folder.path().join("backend.db"), dump);
        let old = Bed::new(super::sqlite(&folder).await.unwrap());
        // Its ids are taken.
        for _taken in 0..100 {
            let _id = old.run_id();
        }

        // The same was done by today's version.
        let beside = tempfile::tempdir().unwrap();
        let new = Bed::new(super::sqlite(&beside).await.unwrap());
        let filled = super::records::fill(&new).await;
        let (found, expected) = (old.command_now(filled.2.command_id).await, &filled.2);
        assert_eq!(&found, expected);
        let by_name = GatewayRef::Name("gw-1".parse().unwrap());
        let gateway = old.store.gateway(&old.tenant, &by_name).await.unwrap();
        assert_eq!(gateway.as_ref(), Some(&filled.0));
        let audit = old.store.list_audit(&old.tenant, Page::first(100)).await;
        let audit = audit.unwrap().items;
        assert_eq!(audit[audit.len() - filled.3.len()..], filled.3[..]);
        new.store.close().await;

        let gateway = old.gateway_now(2).await;
        assert_eq!((gateway.open_commands, gateway.next_order), (3, 4));
        let query = TelemetryQuery {
            stream: None,
            from: Timestamp::from_unix_micros(0),
            until: Timestamp::from_unix_micros(i64::MAX),
            newest_first: false,
        };
        let page = Page::first(10);
        let records = old
            .store
            .query_telemetry(&old.tenant, agent(2), &query, page);
        assert_eq!(records.await.unwrap().items.len(), 3);

        // It goes on: the same process comes back, and everything comes to its end.
        let session = old.session(2, 1).await;
        let waiting = session
            .confirmed
            .released
            .iter()
            .map(|open| open.command_id);
        let leased = old.lease(&session).await;
        let mut commands: Vec<_> = waiting.collect();
        commands.extend(leased.iter().map(|command| command.command_id));
        commands.sort_unstable();
        commands.dedup();
        assert_eq!(commands.len(), 3, "{:?}", session.confirmed);
        for command_id in commands {
            old.accept(&session, command_id, false).await;
            old.complete(&session, command_id, OutcomeState::Succeeded)
                .await;
            assert_eq!(old.state(command_id).await, CommandState::Succeeded);
        }
        let again = old.command(2, true).await;
        assert_eq!(old.state(again).await, CommandState::Queued);
        super::telemetry::commit(&old, 2, super::telemetry::batch(1, 5)).await;
        let records = old
            .store
            .query_telemetry(&old.tenant, agent(2), &query, page);
        assert_eq!(records.await.unwrap().items.len(), 5);
        old.store.close().await;
        super::sqlite_counts_are_right(&folder);
    }
}
