//! What a reader pastes works as printed, and what is promised has a test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use viworks_api::Scope;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::PATIENCE;
use viworks_testkit::process::{Process, eventually, finish};

/// Pages whose shell blocks run, in this order, against one demo.
const PAGES: &[&str] = &[
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "docs/api.md",
    "docs/local_api.md",
    "docs/operations/daily_checks.md",
    "docs/testing.md",
    "docs/performance.md",
    "docs/catalogue.md",
    "docs/operations/containers.md",
    "docs/operations/upgrade.md",
    "docs/operations/validation.md",
];

/// A page of its own: it needs no demo.
const INSTALL: &str = "docs/install.md";

/// Blocks that are allowed not to run: more is a page that nobody checks.
const NOT_RUN_MAX: usize = 30;

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
        "Replayed messages",
        &[
            "no_frame_is_accepted_twice",
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
        "A request that is not even HTTP",
        &["too_many_headers_are_refused"],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

pub(crate) struct Block {
    /// What the info string says behind `not-run:`, when it does.
    not_run: Option<String>,
    pub(crate) script: String,
}

/// The shell blocks of a page. Of a `console` block only what stands behind a prompt is typed.
pub(crate) fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            continue;
        };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let language = info.split_whitespace().next().unwrap_or_default();
        let script = match language {
            "sh" | "bash" => body.join("\n"),
            "console" => typed(&body),
            _ => continue,
        };
        let not_run = info
            .split_once("not-run:")
            .map(|(_, why)| why.trim().to_owned());
        found.push(Block { not_run, script });
    }
    found
}

fn typed(body: &[&str]) -> String {
    let mut script = String::new();
    let mut goes_on = false;
    for line in body {
        let typed = line.strip_prefix("$ ").or_else(|| goes_on.then_some(*line));
        goes_on = typed.is_some_and(|line| line.ends_with('\\'));
        if let Some(line) = typed {
            script += line;
            script.push('\n');
        }
    }
    script
}

fn pages() -> Vec<String> {
    let errors = std::fs::read_dir(root().join("docs/errors")).unwrap();
    let mut errors: Vec<String> = errors
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| format!("docs/errors/{name}"))
        .collect();
    errors.sort();
    PAGES
        .iter()
        .map(|name| (*name).to_owned())
        .chain(errors)
        .collect()
}

#[test]
fn blocks_that_do_not_run_are_few_and_say_why() {
    let mut count = 0;
    for name in pages() {
        for block in blocks(&page(&name)) {
            let Some(why) = block.not_run else { continue };
            count += 1;
            assert!(
                why.len() > 10,
                "{name}: {why:?} is no reason for\n{}",
                block.script
            );
        }
    }
    assert!(count <= NOT_RUN_MAX, "{count} blocks do not run");
}

/// Every account of a machine reads the arguments of its processes.
#[test]
fn no_block_puts_a_key_on_a_command_line() {
    for name in pages() {
        for block in blocks(&page(&name)) {
            let shown = block.script.contains("-H \"Authorization");
            assert!(
                !shown || block.not_run.is_some(),
                "{name}: {}",
                block.script
            );
        }
    }
}

/// A folder that looks like the repository's to whoever pastes: the programs, and the demo where it always is.
struct Repository {
    folder: TempDir,
    demo: Process,
}

impl Repository {
    async fn with_demo() -> Self {
        let folder = TempDir::with_prefix("viworks documents ").unwrap();
        std::fs::create_dir(folder.path().join("target")).unwrap();
        let programs = Binaries::shipped().cli();
        let programs = programs.parent().unwrap();
        std::os::unix::fs::symlink(programs, folder.path().join("target/debug")).unwrap();
        let mut up = Command::new("target/debug/viworks");
        up.arg("up");
        environment(&mut up, folder.path());
        let log = folder.path().join("up.log");
        let mut demo = Process::start(&mut up, &log).unwrap();
        eventually("the demo is up", PATIENCE, async || {
            let ended = demo.ended();
            assert!(ended.is_none(), "{ended:?} {}", demo.log());
            demo.log().contains("Stop").then_some(())
        })
        .await;
        Self { folder, demo }
    }

    /// Pastes the blocks of a page one after the other into one shell.
    async fn paste(&self, name: &str) {
        let scripts: Vec<String> = blocks(&page(name))
            .into_iter()
            .filter(|block| block.not_run.is_none())
            .map(|block| block.script)
            .collect();
        if scripts.is_empty() {
            return;
        }
        let script = format!("set -euo pipefail\n{}", scripts.join("\n"));
        let mut shell = Command::new("bash");
        shell.args(["-c", &script]);
        environment(&mut shell, self.folder.path());
        let said = finish(shell, PATIENCE).await;
        assert_eq!(said.code, Some(0), "{name}:\n{script}\n{said:#?}");
    }
}

fn environment(command: &mut Command, folder: &Path) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = vec![folder.join("target/debug")];
    folders.extend(std::env::split_paths(&path));
    command
        .current_dir(folder)
        .env("PATH", std::env::join_paths(folders).unwrap())
        .env("HOME", folder)
        .env("VIWORKS_CONFIG_DIR", folder.join("config"));
    for variable in [
        "VIWORKS_SERVER",
        "VIWORKS_TOKEN_FILE",
        "VIWORKS_CONTEXT",
        "VIWORKS_OUTPUT",
    ] {
        command.env_remove(variable);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reader_pastes_works_as_printed() {
    let mut repository = Repository::with_demo().await;
    for name in pages() {
        repository.paste(&name).await;
    }
    // What was pasted last may have replaced a gateway's certificate; the demo still ends when it is told to.
    let ended = repository.demo.stop(Duration::from_secs(60)).await;
    assert!(ended.code().is_some(), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_installation_by_hand_works_as_printed() {
    by_hand(Command::new("bash"), |_folder| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_installation_by_hand_needs_no_root() {
    if !rustix::process::geteuid().is_root() {
        // Then the other test is this one.
        return;
    }
    let mut shell = Command::new("setpriv");
    shell.args(["--reuid=65534", "--regid=65534", "--clear-groups", "bash"]);
    by_hand(shell, |folder| {
        std::os::unix::fs::chown(folder, Some(65_534), Some(65_534)).unwrap();
    })
    .await;
}

/// Does what the page says, in a folder that was prepared for whoever the shell is.
async fn by_hand(mut shell: Command, prepare: impl FnOnce(&Path)) {
    let every = blocks(&page(INSTALL));
    assert!(every.iter().all(|block| block.not_run.is_none()));
    let folder = TempDir::with_prefix("viworks install ").unwrap();
    let programs = folder.path().join("target/debug");
    std::fs::create_dir_all(&programs).unwrap();
    let shipped = Binaries::shipped();
    for program in [shipped.cli(), shipped.backend(), shipped.gateway()] {
        // Where they are built another user may not go.
        let here = programs.join(program.file_name().unwrap());
        std::fs::hard_link(&program, &here)
            .or_else(|_elsewhere| std::fs::copy(&program, &here).map(|_bytes| ()))
            .unwrap();
    }
    prepare(folder.path());
    let mut steps: Vec<String> = every.into_iter().map(|block| block.script).collect();
    let start = steps.iter().find(|step| step.contains(" serve "));
    let again = with_a_door(start.unwrap());
    steps.push(again);
    // Whatever fails, nothing stays.
    let steps = steps.join("\n");
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let holders = [free(), free(), free()];
    let [api, agents, door] = holders
        .each_ref()
        .map(|holder| holder.local_addr().unwrap().port().to_string());
    // Somebody else may have the ports of the page.
    let ports = [("9080", &api), ("9081", &agents), ("9082", &door)];
    // One that is free may have another one of the page in it.
    let steps = ports.iter().fold(steps, |steps, (port, _own)| {
        steps.replace(port, &format!("PORT-{port}"))
    });
    let steps = ports.iter().fold(steps, |steps, (port, own)| {
        steps.replace(&format!("PORT-{port}"), own)
    });
    drop(holders);
    let script =
        format!("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{steps}");
    shell.args(["-c", &script]);
    environment(&mut shell, folder.path());
    let said = finish(shell, PATIENCE).await;
    assert_eq!(said.code, Some(0), "{script}\n{said:#?}");
    assert!(said.stdout.contains("gw-first"), "{said:#?}");
    let last = said.stdout.lines().last().unwrap_or_default();
    assert!(last.starts_with("vwt1_"), "{said:#?}");
}

/// What the page says of a door for new gateways, to be done behind the rest: its lines in the configuration, the step
/// that starts the backend once more, and a ticket.
fn with_a_door(start: &str) -> String {
    let text = page(INSTALL);
    let mut found = text.split("\n```toml\n").skip(1);
    let block = found.next().and_then(|rest| rest.split("\n```").next());
    let block = block.unwrap();
    assert!(block.contains("[enrolment]") && found.next().is_none());
    format!(
        "rm -f backend.ready\ncat >>backend/backend.toml <<'END'\n\n{block}\nEND\n{start}\nviworks ticket create\n\
         kill \"$backend\"\nwait \"$backend\""
    )
}

#[test]
fn every_scope_is_in_the_table_and_no_other() {
    let text = page("docs/api.md");
    let section = text.split_once("\n## Scopes\n").unwrap().1;
    let section = section.split("\n## ").next().unwrap();
    let listed: BTreeSet<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    let known: BTreeSet<&str> = Scope::ALL.iter().map(|scope| scope.name()).collect();
    assert_eq!(listed, known);
}

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

pub(crate) fn read_sources(folder: &Path, sources: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                read_sources(&path, sources);
            }
        } else if name.ends_with(".rs") && name != "documents.rs" {
            sources.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Programs that are named in documents, in what the programs say, and in what they advise.
#[test]
fn every_program_that_is_named_exists() {
    let known = [
        "viworks",
        "viworks-backend-agent",
        "viworks-gateway-agent",
        "viworks-gateway-helper",
        // Packages, and the folders of their state.
        "viworks-backend",
        "viworks-gateway",
        "viworks-cli",
        // Crates, named in the lines that build them.
        "viworks-bench",
        "viworks-e2e",
        "viworks-testkit",
    ];
    for name in pages().into_iter().chain(
        [
            "docs/configuration_backend.md",
            "docs/configuration_gateway.md",
            "docs/protocol.md",
            INSTALL,
        ]
        .map(str::to_owned),
    ) {
        let text = page(&name);
        for (at, _) in text.match_indices("viworks-") {
            let word: String = text[at..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
                .collect();
            assert!(known.contains(&word.as_str()), "{name} names {word}");
        }
        for stray in ["`backend-agent ", "`gateway-agent "] {
            assert!(!text.contains(stray), "{name} names {stray}");
        }
    }
}
