//! The sizes in `docs/operations/scaling.md` are what its own figures come to.

use std::collections::BTreeMap;
use std::path::Path;

/// The gateways of the table's columns.
const SIZES: [f64; 3] = [1_000.0, 10_000.0, 100_000.0];

fn page() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations/scaling.md");
    std::fs::read_to_string(page).expect("the page can be read")
}

fn rows(page: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    rows.map(|row| row.split('|').map(str::trim).collect())
}

/// The figures by their names, which stand with stars in the first column.
fn figures(page: &str) -> BTreeMap<&str, f64> {
    let named = rows(page).filter_map(|row| {
        let name = row.first()?.strip_prefix('*')?.strip_suffix('*')?;
        let number = row.get(2)?.split(' ').next()?.replace(',', "");
        Some((name, number.parse().ok()?))
    });
    named.collect()
}

/// Two digits that count, and no more.
fn rounded(value: f64) -> f64 {
    let step = 10_f64.powf(value.log10().floor() - 1.0);
    (value / step).round() * step
}

fn sizes(of: impl Fn(&str) -> f64, gateways: f64) -> [(&'static str, f64); 10] {
    let backends = (gateways / of("sessions")).ceil().max(1.0) + 1.0;
    let (records, beats) = (gateways * of("records") / 60.0, gateways / of("beat"));
    let (commands, openings) = (gateways / 300.0, gateways / 60.0);
    let busy = |part: &str| {
        let time = |what: &str| of(&format!("{what}_{part}"));
        let micros = records * time("record")
            + beats * time("beat")
            + commands * time("command")
            + openings * time("opening");
        2.0 * micros / 1e6
    };
    let days = |bytes_a_second: f64| bytes_a_second * 86_400.0 / 1e9;
    let daily = gateways * of("commands");
    [
        ("Backends", backends),
        (
            "Memory of each backend, MiB",
            of("base") + of("memory") * gateways / (backends - 1.0) / 1_024.0,
        ),
        ("Processors of all backends", busy("backend")),
        ("Processors of PostgreSQL", busy("postgres")),
        (
            "Disk for telemetry, GB a day",
            days(records * of("record_disk")),
        ),
        (
            "Disk for commands, GB a day",
            daily * of("command_disk") / 1e9,
        ),
        (
            "Log of PostgreSQL (WAL), GB a day",
            days(records * of("record_wal") + beats * of("beat_wal"))
                + daily * of("command_wal") / 1e9,
        ),
        (
            "Connections of PostgreSQL",
            backends * (of("connections") + 1.0),
        ),
        ("Memory of Redis, MiB", gateways * of("redis") / 1_024.0),
        (
            "Network of all backends, Mbit a second",
            8.0 * (records * of("record_net") + beats * of("beat_net")) / 1e6,
        ),
    ]
}

#[test]
fn the_sizes_are_what_the_figures_come_to() {
    let page = page();
    let figures = figures(&page);
    let figure = |name: &str| {
        let found = figures.get(name).copied();
        found.unwrap_or_else(|| panic!("the page has no figure {name}"))
    };
    for (at, gateways) in SIZES.into_iter().enumerate() {
        for (what, value) in sizes(figure, gateways) {
            let row = rows(&page).find(|row| row.first() == Some(&what));
            let row = row.unwrap_or_else(|| panic!("the page has no row {what}"));
            let said: f64 = row[at + 1].replace(',', "").parse().expect("a number");
            let whole = what == "Backends" || what.starts_with("Connections");
            let expected = if whole { value } else { rounded(value) };
            assert!(
                (said - expected).abs() <= expected * 1e-6,
                "{what}, {gateways} gateways: {said} instead of {expected} ({value})"
            );
        }
    }
}
