//! The containers, `docker-compose.yml` and `Dockerfile`: nothing in them that the programs do not know, nothing left
//! open, and the same command lines work outside of them.

pub(crate) mod compose;
mod guide;
mod outside;
mod schema;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use viworks_common::limits::DRAIN_TIME;
use viworks_testkit::binaries::{Binaries, workspace};

use self::compose::{Compose, Service};

/// Services that end by themselves.
fn is_setup(name: &str) -> bool {
    name.starts_with("setup")
}

/// An exact version, which people read, and of what others have made the digest, which no registry can change.
fn is_pinned(image: &str) {
    let (named, digest) = image.split_once("@sha256:").unwrap_or((image, ""));
    let (repository, tag) = named.rsplit_once(':').unwrap_or((named, ""));
    let exact = tag
        .split(['.', '-'])
        .filter(|part| part.parse::<u32>().is_ok());
    assert!(exact.count() >= 2, "{image}: {tag} is no exact version");
    let ours = ["viworks-backend", "viworks-gateway"].contains(&repository);
    let whole = digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit());
    assert!(ours || whole, "{image} has no digest");
}

#[test]
fn every_container_is_confined_bounded_and_pinned() {
    for (name, service) in &Compose::read().services {
        assert_eq!(service.value("read_only"), &Value::Bool(true), "{name}");
        assert_eq!(service.text("user"), "65532:65532", "{name}");
        assert_eq!(service.strings("cap_drop"), ["ALL"], "{name}");
        assert_eq!(
            service.strings("security_opt"),
            ["no-new-privileges:true"],
            "{name}"
        );
        let tmp = service.strings("tmpfs");
        assert!(
            tmp.iter().any(|it| it.starts_with("/tmp:size=")),
            "{name}: {tmp:?}"
        );
        assert!(
            tmp.iter().all(|it| it.contains("noexec,nosuid,nodev")),
            "{name}: {tmp:?}"
        );
        let logging = service.value("logging");
        assert!(logging["options"]["max-size"].is_string(), "{name}");
        assert!(logging["options"]["max-file"].is_string(), "{name}");
        let limits = &service.value("deploy")["resources"]["limits"];
        for limit in ["cpus", "memory", "pids"] {
            assert!(!limits[limit].is_null(), "{name} has no limit of {limit}");
        }
        is_pinned(&service.text("image"));
        let restart = if is_setup(name) {
            "no"
        } else {
            "unless-stopped"
        };
        assert_eq!(service.text("restart"), restart, "{name}");
        assert_eq!(
            service.strings("profiles").len(),
            1,
            "{name} starts in every profile, or in none"
        );
        // What holds the network does nothing that could be asked for.
        let is_asked = !is_setup(name) && name != "pod";
        assert_eq!(service.has("healthcheck"), is_asked, "{name}");
        for mount in service.mounts() {
            assert!(!mount.source.contains("docker.sock"), "{name}");
            let is_file = mount.source.starts_with('.') || mount.source.starts_with('/');
            assert!(
                !is_file || mount.read_only,
                "{name} may write {}",
                mount.source
            );
        }
    }
}

#[test]
fn whoever_is_stopped_has_the_time_that_it_takes() {
    let compose = Compose::read();
    for name in ["backend", "backend-1", "backend-2", "gateway", "nginx"] {
        let given = compose.services[name].text("stop_grace_period");
        let given: u64 = given.trim_end_matches('s').parse().unwrap();
        // It drains, closes, and ends what is left; as the units have it.
        let wanted = DRAIN_TIME + Duration::from_secs(30);
        assert!(Duration::from_secs(given) > wanted, "{name}: {given} s");
    }
}

/// The variables of a configuration reference.
fn known(page: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(workspace().join(page)).unwrap();
    let cells = text.split('`').filter(|cell| cell.starts_with("VIWORKS__"));
    cells.map(str::to_owned).collect()
}

#[test]
fn every_setting_is_one_that_its_program_knows() {
    let backend = known("docs/configuration_backend.md");
    let gateway = known("docs/configuration_gateway.md");
    // The command line's, of `docker compose exec`, and the one that the setup hands on.
    let other = [
        "VIWORKS_SERVER",
        "VIWORKS_TOKEN_FILE",
        "VIWORKS_SERVER_NAME",
    ];
    let compose = Compose::read();
    let mut seen = 0;
    for (name, service) in &compose.services {
        let image = service.text("image");
        let program = match image.split(':').next().unwrap() {
            "viworks-backend" => &backend,
            "viworks-gateway" => &gateway,
            _ => continue,
        };
        for variable in service.environment().keys() {
            seen += 1;
            let is_known = program.contains(variable) || other.contains(&variable.as_str());
            assert!(is_known, "{name}: there is no setting {variable}");
        }
    }
    assert!(seen > 20, "{seen} settings were looked at");
}

#[test]
fn secrets_are_files_and_everything_that_is_named_is_there() {
    let compose = Compose::read();
    for (name, service) in &compose.services {
        for (variable, value) in service.environment() {
            let is_secret = ["PASSWORD", "TOKEN", "SECRET"]
                .iter()
                .any(|it| variable.contains(it));
            assert!(
                !is_secret || variable.ends_with("_FILE"),
                "{name}: {variable} is a secret"
            );
            if let Some(secret) = value.strip_prefix("/run/secrets/") {
                assert!(
                    service.strings("secrets").contains(&secret.to_owned()),
                    "{name}: {secret}"
                );
            }
        }
        for secret in service.strings("secrets") {
            assert!(compose.secrets.contains_key(&secret), "{name}: {secret}");
        }
        for mount in service.mounts() {
            if mount.source.starts_with("./containers") {
                assert!(
                    workspace().join(&mount.source).is_file(),
                    "{name}: {}",
                    mount.source
                );
            } else if !mount.source.starts_with('.') {
                assert!(
                    compose.volumes.contains(&mount.source),
                    "{name}: {}",
                    mount.source
                );
            }
        }
        for other in service.depends_on() {
            let profile = compose.services[&other].strings("profiles");
            assert_eq!(
                profile,
                service.strings("profiles"),
                "{name} waits for {other}"
            );
        }
    }
    let used = |volume: &&String| {
        let mut services = compose.services.values();
        services.any(|service: &Service| service.mounts().iter().any(|it| it.source == **volume))
    };
    let unused: Vec<_> = compose
        .volumes
        .iter()
        .filter(|volume| !used(volume))
        .collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn the_images_are_built_from_what_is_there_and_run_as_nobody() {
    let root = workspace();
    let file = std::fs::read_to_string(root.join("Dockerfile")).unwrap();
    let toolchain = std::fs::read_to_string(root.join("rust-toolchain.toml")).unwrap();
    let version = toolchain.split('"').nth(1).unwrap();
    assert!(
        file.contains(&format!("FROM rust:{version}-slim-")),
        "another compiler than {version}"
    );
    assert!(file.contains(&format!("RUSTUP_TOOLCHAIN={version}\n")));
    let stages: BTreeSet<&str> = file
        .split(" AS ")
        .skip(1)
        .filter_map(|it| it.lines().next())
        .collect();
    for line in file.lines().filter_map(|line| line.strip_prefix("FROM ")) {
        let from = line.split(' ').next().unwrap();
        if !stages.contains(from) {
            is_pinned(from);
        }
    }
    assert_eq!(file.matches("USER 65532:65532\n").count(), 2);
    let ignored = std::fs::read_to_string(root.join(".dockerignore")).unwrap();
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let members = manifest
        .split_once("members = [")
        .unwrap()
        .1
        .split_once(']')
        .unwrap()
        .0;
    for member in members.split(',').map(|it| it.trim().trim_matches('"')) {
        assert!(
            ignored.contains(&format!("!{member}\n")),
            "{member} is not in the context"
        );
    }
    // Compiled into the backend, which writes it for a site.
    assert!(ignored.contains("!nginx\n"));
    for name in ["backend", "gateway"] {
        let build = Compose::read().services[name].value("build").clone();
        let target = build["target"].as_str().unwrap();
        assert!(file.contains(&format!(" AS {target}\n")), "{target}");
    }
}

#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
fn skipped(what: &str) {
    eprintln!("SKIPPED: {what}");
}

#[test]
fn the_programs_are_where_the_images_have_them() {
    let file = std::fs::read_to_string(workspace().join("Dockerfile")).unwrap();
    let shipped = Binaries::shipped();
    for program in [shipped.backend(), shipped.gateway(), shipped.cli()] {
        let name = program.file_name().unwrap().to_string_lossy().into_owned();
        assert!(file.contains(&format!("/target/release/{name}")), "{name}");
    }
}
