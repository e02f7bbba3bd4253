//! `scripts/install-service.sh` below a folder: without root, the network, or anything that it could start.

use std::fs;
use std::os::unix::fs::PermissionsExt;
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

    act("install", &[]);
    let unit = "usr/lib/systemd/system/viworks-gateway-agent.service";
    let example = "usr/share/viworks/helper.d/40-services.toml";
    for file in [
        "usr/bin/viworks",
        "usr/bin/viworks-gateway-helper",
        unit,
        example,
        "usr/share/viworks/nginx/nginx.conf",
        "usr/share/viworks/nginx/nginx-terminate.conf",
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
    assert_eq!(pages(), 0);
    assert!(site.has("etc/viworks/conf.d/10-site.toml") && catalogue.exists());
    assert!(site.has("etc/viworks/gateway.toml"));
    act("purge", &[]);
    assert!(!site.has("etc/viworks") && !site.has("usr/share/viworks"));
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
