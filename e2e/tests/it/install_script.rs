//! `scripts/install-service.sh` below a folder: without root, the network, or anything that it could start.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;
use viworks_testkit::binaries::workspace;

/// A page of each kind: of a program, of a verb, of what nobody types.
const PAGES: [&str; 4] = [
    "viworks.1",
    "viworks-run.1",
    "viworks-backend-agent-pki.8",
    "viworks-gateway-helper.8",
];

/// What `docs/operations/validation.md` types.
const VALIDATION: &str = "scripts/production_validation.sh";
const PIN: &str = "scripts/generate_spki_pin.sh";
const ROTATION: &str = "scripts/rotate_certificates.sh";

/// Keys that an enrolment has left, and that were put aside for one.
const KEYS: [&str; 3] = [
    "etc/viworks/.enrolling/gateway.key",
    "etc/viworks/before-1/gateway.key",
    "var/lib/viworks-gateway.before-12/identity.json",
];

/// An archive with programs that are none, and a folder to install it below.
struct Site {
    folder: TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("archive");
        for program in [
            "viworks",
            "viworks-backend-agent",
            "viworks-gateway-agent",
            "viworks-gateway-helper",
        ] {
            write(&archive.join("bin").join(program), program);
        }
        for page in PAGES {
            write(&archive.join("man").join(page), page);
        }
        for (from, to) in [
            ("systemd", "systemd"),
            ("common/catalogue", "catalogue"),
            ("packaging/helper.d", "helper.d"),
            ("nginx", "nginx"),
            ("scripts/install-service.sh", "scripts/install-service.sh"),
            (VALIDATION, VALIDATION),
            (PIN, PIN),
            (ROTATION, ROTATION),
        ] {
            let to = archive.join(to);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            let from = workspace().join(from);
            let copied = Command::new("cp").arg("-r").args([from, to]).status();
            assert!(copied.unwrap().success());
        }
        fs::create_dir(folder.path().join("root")).unwrap();
        Self { folder }
    }

    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("root")
    }

    /// The script, which finds the archive by its own place.
    fn script(&self) -> Command {
        let mut command = Command::new("sh");
        command
            .arg("archive/scripts/install-service.sh")
            .current_dir(self.folder.path());
        command
    }

    fn has(&self, path: &str) -> bool {
        self.root().join(path).exists()
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn said(command: &mut Command) -> (Output, String) {
    let output = command.output().unwrap();
    let both = [output.stdout.clone(), output.stderr.clone()].concat();
    (output, String::from_utf8(both).unwrap())
}

#[test]
fn it_installs_keeps_uninstalls_and_purges_below_a_folder() {
    let site = Site::new();
    let act = |verb: &str, options: &[&str]| {
        let mut script = site.script();
        script.args([verb, "--root", "root", "backend", "gateway", "cli"]);
        let (output, said) = said(script.args(options));
        assert!(output.status.success(), "{verb}: {said}");
        said
    };
    let would = act("install", &["--dry-run"]);
    assert!(would.contains("would run: mv"), "{would}");
    assert_eq!(fs::read_dir(site.root()).unwrap().count(), 0);

    let installed = act("install", &[]);
    let next = "next: viworks-gateway-agent enroll";
    assert!(installed.contains(next), "{installed}");
    let unit = "usr/lib/systemd/system/viworks-gateway-agent.service";
    let example = "usr/share/viworks/helper.d/40-services.toml";
    for file in [
        "usr/bin/viworks",
        "usr/bin/viworks-gateway-helper",
        unit,
        example,
        "usr/share/viworks/nginx/nginx.conf",
        "usr/share/viworks/nginx/nginx-terminate.conf",
        "usr/share/viworks/generate_spki_pin.sh",
        "usr/share/viworks/rotate_certificates.sh",
    ] {
        assert!(site.has(file), "{file}");
    }
    let validation = site
        .root()
        .join("usr/share/viworks/production_validation.sh");
    let mode = fs::metadata(&validation).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    let pages = || {
        let page = |page: &&str| {
            let section = page.rsplit('.').next().unwrap();
            site.has(&format!("usr/share/man/man{section}/{page}"))
        };
        PAGES.iter().filter(|it| page(it)).count()
    };
    assert_eq!(pages(), PAGES.len());
    let catalogue = site.root().join("etc/viworks/commands.d/20-system.toml");
    write(&catalogue, "# ours\n");
    for ours in ["gateway.toml", "conf.d/10-site.toml"] {
        write(&site.root().join("etc/viworks").join(ours), "ours");
    }
    // Of a verb that the earlier version had.
    let gone = "usr/share/man/man8/viworks-backend-agent-gone.8";
    write(&site.root().join(gone), "gone");
    let again = act("install", &[]);
    assert!(again.contains("kept: "), "{again}");
    assert!(!site.has(gone));
    assert_eq!(pages(), PAGES.len());
    assert_eq!(fs::read_to_string(&catalogue).unwrap(), "# ours\n");

    act("uninstall", &[]);
    assert!(!site.has("usr/bin/viworks") && !site.has(unit));
    assert!(!validation.exists());
    assert!(!site.has("usr/share/viworks/rotate_certificates.sh"));
    assert_eq!(pages(), 0);
    assert!(site.has("etc/viworks/conf.d/10-site.toml") && catalogue.exists());
    assert!(site.has("etc/viworks/gateway.toml"));
    for key in KEYS {
        write(&site.root().join(key), "a key");
    }
    act("purge", &[]);
    assert!(!site.has("etc/viworks") && !site.has("usr/share/viworks"));
    for key in KEYS {
        assert!(!site.has(key), "{key}");
    }
}

#[test]
fn a_purged_package_leaves_no_key() {
    let site = Site::new();
    for key in KEYS {
        write(&site.root().join(key), "a key");
    }
    let script = workspace().join("packaging/debian/gateway/postrm");
    let mut script = fs::read_to_string(script).unwrap();
    for folder in ["/etc/", "/var/", "/run/", "/usr/"] {
        script = script.replace(folder, &format!(".{folder}"));
    }
    // The users of this machine are not its business.
    let script = script.replace("getent", "false");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, "postrm", "purge"]);
    let (output, said) = said(shell.current_dir(site.root()));
    assert!(output.status.success(), "{said}");
    for key in KEYS {
        assert!(!site.has(key), "{key}");
    }
    assert!(!site.has("etc/viworks"));
}

#[test]
fn a_first_installation_that_broke_off_is_still_the_first_one() {
    let site = Site::new();
    let folder = site.folder.path();
    for (name, does) in [
        (
            "systemctl",
            "case $1 in\n--version) echo 'systemd 252' ;;\nis-enabled) exit 1 ;;\n\
             enable) echo \"enabled $3\"; [ ! -e refuses ] ;;\nesac",
        ),
        ("systemd-sysusers", ":"),
        ("systemd-tmpfiles", ":"),
    ] {
        let stub = folder.join("stubs").join(name);
        write(&stub, &format!("#!/bin/sh\n{does}\n"));
        fs::set_permissions(stub, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let script = folder.join("archive/scripts/install-service.sh");
    let text = fs::read_to_string(&script).unwrap();
    let whether = r#"is_live() { [ -z "$root" ] && [ -d /run/systemd/system ]; }"#;
    assert!(text.contains(whether));
    fs::write(&script, text.replace(whether, "is_live() { true; }")).unwrap();
    let path = std::env::var_os("PATH").unwrap();
    let path = format!(
        "{}:{}",
        folder.join("stubs").display(),
        path.to_string_lossy()
    );
    let install = || {
        let mut script = site.script();
        script.args(["install", "--root", "root", "gateway"]);
        let (output, said) = said(script.env("PATH", &path));
        (output.status.success(), said)
    };
    write(&folder.join("refuses"), "");
    let (is_done, told) = install();
    assert!(!is_done && told.contains("enabled"), "{told}");
    fs::remove_file(folder.join("refuses")).unwrap();
    for is_first in [true, false] {
        let (is_done, told) = install();
        assert!(is_done, "{told}");
        for unit in [
            "viworks-gateway-helper.socket",
            "viworks-gateway-agent.service",
        ] {
            let is_enabled = told.contains(&format!("enabled {unit}"));
            assert_eq!(is_enabled, is_first, "{unit}: {told}");
        }
    }
}

#[test]
fn a_folder_to_search_for_folders_leads_it_nowhere() {
    let site = Site::new();
    // Another archive of the same name, without programs, where `cd` would go.
    fs::create_dir_all(site.folder.path().join("elsewhere/archive/scripts")).unwrap();
    let mut script = site.script();
    script.args(["install", "--root", "root", "--from", "archive", "cli"]);
    let (output, said) = said(script.env("CDPATH", "elsewhere"));
    assert!(output.status.success(), "{said}");
    assert!(site.has("usr/bin/viworks"), "{said}");
    // Alone, it takes what it brought.
    let mut script = site.script();
    script.args(["uninstall", "--root", "root", "cli"]);
    let (output, said) = self::said(&mut script);
    assert!(output.status.success(), "{said}");
    assert!(!site.has("usr/share/viworks"), "{said}");
}

#[test]
fn the_root_is_as_good_as_none() {
    let site = Site::new();
    let mut script = site.script();
    let (output, said) = said(script.args(["install", "--root", "/", "--dry-run", "cli"]));
    // Where a package has installed it already, it says so; nothing is below a folder either way.
    assert!(
        output.status.success() || output.status.code() == Some(6),
        "{said}"
    );
    assert!(!said.contains("//usr/bin"), "{said}");
}

#[test]
fn what_a_package_has_installed_is_left_to_it() {
    let site = Site::new();
    let dpkg = site.root().join("var/lib/dpkg");
    write(
        &dpkg.join("status"),
        "Package: viworks-cli\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\
         Maintainer: x\nDescription: x\n\n",
    );
    write(&dpkg.join("info/viworks-cli.list"), "/usr/bin/viworks\n");
    write(&dpkg.join("info/format"), "1\n");
    let has_dpkg = Command::new("dpkg-query").arg("--version").output().is_ok();
    for verb in ["install", "uninstall", "purge"] {
        let mut script = site.script();
        let (output, said) = said(script.args([verb, "--root", "root", "gateway", "cli"]));
        if has_dpkg {
            assert_eq!(output.status.code(), Some(6), "{said}");
            assert!(said.contains("dpkg --remove viworks-cli"), "{said}");
            // Nothing is half done.
            assert!(!site.has("usr/bin/viworks-gateway-agent"), "{said}");
        }
    }
}
