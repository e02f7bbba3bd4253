//! The checks, one function each; `scripts/test.sh` and continuous integration run them, and write none of them again.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shop::{Folder, Shop, finish, has, succeeds};
use crate::{deny, left, packages, skew, tidy, units};

/// How long all tests may take; on two cores they take a little more than half of it.
const TESTS_LIMIT: &str = "60m";

/// One check.
pub(crate) struct Recipe {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Whether a change has to pass it. One that asks the world is not about the change.
    pub(crate) of_a_change: bool,
    pub(crate) run: fn(&mut Shop) -> Result<(), String>,
}

const fn of_a_change(
    name: &'static str,
    about: &'static str,
    run: fn(&mut Shop) -> Result<(), String>,
) -> Recipe {
    Recipe {
        name,
        about,
        of_a_change: true,
        run,
    }
}

/// Every check, the quick ones first.
pub(crate) const RECIPES: &[Recipe] = &[
    of_a_change("format", "every file is formatted", format),
    of_a_change(
        "tidy",
        "storeys, dead items, what pages name, house rules",
        tidied,
    ),
    of_a_change(
        "shell",
        "shellcheck finds nothing in the shell scripts",
        shell,
    ),
    of_a_change(
        "images",
        "hadolint finds nothing in the file that the images are made from",
        images,
    ),
    of_a_change(
        "units",
        "systemd understands its units, and they leave little open",
        units::check,
    ),
    of_a_change(
        "deny",
        "licences, sources and crates that may not come in",
        deny::policy,
    ),
    of_a_change("lint", "clippy without warnings, tests included", lint),
    of_a_change("test", "all tests, with the programs they run", test),
    of_a_change(
        "docs",
        "the documentation of the code builds without warnings",
        docs,
    ),
    of_a_change("quickstart", "the quickstart does what it says", quickstart),
    Recipe {
        name: "skew",
        about: "gateways and backends of earlier versions, which it builds once, beside those of this one",
        of_a_change: false,
        run: skew::check,
    },
    Recipe {
        name: "packages",
        about: "the Debian packages, as they are released, in target/debian",
        of_a_change: false,
        run: packages::make,
    },
    Recipe {
        name: "advisories",
        about: "known faults of dependencies, from the public database",
        of_a_change: false,
        run: deny::advisories,
    },
];

/// Rustfmt, as `rustfmt.toml` has it.
fn format(shop: &mut Shop) -> Result<(), String> {
    shop.cargo(&["fmt", "--all", "--check"])
}

/// The house rules; the same runs as a test of this crate.
fn tidied(shop: &mut Shop) -> Result<(), String> {
    let findings = tidy::findings(&shop.root)?;
    if findings.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} findings\n{}",
        findings.len(),
        findings.join("\n")
    ))
}

/// Shellcheck over every script that a person or continuous integration calls.
fn shell(shop: &mut Shop) -> Result<(), String> {
    if !has("shellcheck") {
        shop.skip("shell scripts: shellcheck is missing");
        return Ok(());
    }
    let scripts = [
        ".ci/run",
        "scripts/generate_spki_pin.sh",
        "scripts/install-service.sh",
        "scripts/production_validation.sh",
        "scripts/quickstart.sh",
        "scripts/rotate_certificates.sh",
        "scripts/test.sh",
        "packaging/debian/backend/postinst",
        "packaging/debian/backend/postrm",
        "packaging/debian/backend/prerm",
        "packaging/debian/gateway/postinst",
        "packaging/debian/gateway/postrm",
        "packaging/debian/gateway/prerm",
    ];
    finish(&mut shop.command("shellcheck", &scripts))
}

/// Hadolint over the Dockerfile. No distribution has it, so only whoever installed it has it looked at.
fn images(shop: &mut Shop) -> Result<(), String> {
    if !has("hadolint") {
        shop.skip("the Dockerfile: hadolint is missing");
        return Ok(());
    }
    finish(&mut shop.command("hadolint", &["Dockerfile"]))
}

/// Clippy over everything, each warning an error.
fn lint(shop: &mut Shop) -> Result<(), String> {
    shop.cargo(&[
        "clippy",
        "--locked",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])
}

/// All tests, the simulation and the black-box tests of the shipped programs among them.
fn test(shop: &mut Shop) -> Result<(), String> {
    if !has("openssl") {
        shop.skip("certificates against OpenSSL: openssl is missing");
    }
    if !has("faketime") {
        shop.skip("a backend whose wall clock is set: faketime is missing");
    }
    if !succeeds("unshare", &["--mount", "true"]) {
        shop.skip(
            "mounts that hang, limits on processes, process 1: they need root and namespaces",
        );
    }
    let postgres = std::env::var_os("VIWORKS_POSTGRES_BIN").map(PathBuf::from);
    let postgres = postgres.map_or_else(installed_postgres, |named| vec![named]);
    for what in without_servers(&postgres, &has_server) {
        shop.skip(what);
    }
    if !Path::new("/usr/lib/nginx/modules/ngx_stream_module.so").is_file() {
        shop.skip("a site behind nginx: nginx or its stream module is missing");
    }
    if !has("ping") {
        println!("note: ping is missing; net.ping uses its own fallback");
    }
    if !packages::has_machine() {
        shop.skip("the packages under a real systemd: there is no image of a machine, which scripts/test.sh makes");
    } else if packages::tool(shop).is_none() {
        shop.skip("the packages under a real systemd: cargo-deb is missing");
    }
    // The test kit builds the programs as well, for those who run one test; nothing of that is waited for in a test
    // here.
    shop.cargo(&["build", "--locked", "--quiet", "--workspace"])?;
    shop.cargo(&[
        "build",
        "--locked",
        "--quiet",
        "--workspace",
        "--bin",
        "viworks",
        "--bin",
        "viworks-gateway-agent",
        "--bin",
        "viworks-backend-agent",
        "--bin",
        "viworks-gateway-helper",
        "--features",
        "viworks-gateway-agent/fault-points,viworks-backend-agent/fault-points",
    ])?;
    // Last, from the libraries that are there now.
    skew::prepare(shop)?;
    let mut tests = tests_command(shop);
    if !has("python3") {
        shop.skip("the reference agent in Python: python3 is missing");
        tests.env("VIWORKS_WITHOUT_PYTHON", "1");
    }
    let before = left::look();
    finish(&mut tests).map_err(|why| {
        format!(
            "{why}; 124 means that the tests were not over within {TESTS_LIMIT}, and the last one that is said to run \
             for over 60 seconds stood still"
        )
    })?;
    left::nothing_since(&before)
}

/// The folders with programs of PostgreSQL, where the test kit looks for them.
fn installed_postgres() -> Vec<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter();
    let versions = versions.flatten().flatten();
    versions.map(|version| version.path().join("bin")).collect()
}

/// Whether a server of this name is where the test kit looks for it.
fn has_server(program: &str) -> bool {
    let folders = ["/usr/bin", "/usr/sbin"].map(Path::new);
    has(program) || folders.iter().any(|folder| folder.join(program).is_file())
}

/// What is not tested because a server is missing. A test without its server passes, and what it says of that nobody
/// sees.
fn without_servers(postgres: &[PathBuf], finds: &dyn Fn(&str) -> bool) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !postgres
        .iter()
        .any(|programs| programs.join("initdb").is_file())
    {
        missing.push("everything on PostgreSQL, several backends among it: it is missing");
    }
    for (program, what) in [
        (
            "redis-server",
            "everything with Redis, several backends with it among it: redis-server is missing",
        ),
        (
            "valkey-server",
            "the queue in Valkey: valkey-server is missing",
        ),
        (
            "nats-server",
            "figures beside NATS JetStream: nats-server is missing",
        ),
        (
            "mosquitto",
            "figures beside mosquitto: mosquitto is missing",
        ),
    ] {
        if !finds(program) {
            missing.push(what);
        }
    }
    missing
}

/// The run of all tests. Where nobody sees that one stands still, it is ended with everything it started; somebody at
/// a terminal sees it, and there it stays in the group of processes that Ctrl-C reaches.
fn tests_command(shop: &Shop) -> Command {
    let tests = ["cargo", "test", "--locked", "--workspace"];
    if std::io::stdin().is_terminal() || !has("timeout") {
        return shop.command(tests[0], &tests[1..]);
    }
    let mut command = shop.command("timeout", &["--kill-after=10s", TESTS_LIMIT]);
    command.args(tests);
    command
}

/// Rustdoc, each warning an error.
fn docs(shop: &mut Shop) -> Result<(), String> {
    let arguments = ["doc", "--locked", "--quiet", "--no-deps", "--workspace"];
    finish(
        shop.command("cargo", &arguments)
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

/// The quickstart, in a folder with a blank in its name.
fn quickstart(shop: &mut Shop) -> Result<(), String> {
    let folder = Folder::make()?;
    let mut command = shop.command("scripts/quickstart.sh", &["--once", "--data-dir"]);
    command.arg(folder.path().join("demo data"));
    command.env("VIWORKS_CONFIG_DIR", folder.path().join("config"));
    finish(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_tested_for_want_of_a_server_is_listed() {
        let folder = Folder::make().unwrap();
        let programs = [folder.path().to_owned()];
        let said = without_servers(&programs, &|_none| false).join("\n");
        for server in ["PostgreSQL", "Redis", "Valkey", "NATS", "mosquitto"] {
            assert!(said.contains(server), "{said}");
        }
        std::fs::write(folder.path().join("initdb"), "").unwrap();
        let said = without_servers(&programs, &|program| program != "valkey-server");
        assert_eq!(said, ["the queue in Valkey: valkey-server is missing"]);
        assert!(without_servers(&programs, &|_all| true).is_empty());
    }
}
