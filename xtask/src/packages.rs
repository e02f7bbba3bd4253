//! The Debian packages, and what making and trying them takes.

use std::path::PathBuf;

use crate::shop::{Shop, finish, has};

/// The one version of cargo-deb that makes them.
const VERSION: &str = "3.8.0";

/// The crates that have a package.
const CRATES: [&str; 3] = [
    "viworks-backend-agent",
    "viworks-gateway-agent",
    "viworks-operator-cli",
];

/// What an archive for other systems has beside the programs: where it is kept, and where it goes.
const ARCHIVED: [(&str, &str); 10] = [
    ("target/packaging/man", "man"),
    ("target/packaging/completions", "completions"),
    ("systemd", "systemd"),
    ("common/catalogue", "catalogue"),
    ("packaging/helper.d", "helper.d"),
    ("nginx", "nginx"),
    ("scripts/install-service.sh", "scripts/install-service.sh"),
    (
        "scripts/production_validation.sh",
        "scripts/production_validation.sh",
    ),
    (
        "scripts/generate_spki_pin.sh",
        "scripts/generate_spki_pin.sh",
    ),
    (
        "scripts/rotate_certificates.sh",
        "scripts/rotate_certificates.sh",
    ),
];

/// Every package, from programs as they are released, in `target/debian`, and beside them an archive for systems that
/// have no packages, which `scripts/install-service.sh` in it installs.
pub(crate) fn make(shop: &mut Shop) -> Result<(), String> {
    let Some(tool) = tool(shop) else {
        return Err("cargo-deb is missing".to_owned());
    };
    shop.cargo(&[
        "run",
        "--locked",
        "--quiet",
        "--package",
        "viworks-packaging",
        "--",
        "target/packaging",
    ])?;
    for package in CRATES {
        shop.cargo(&[
            "build",
            "--locked",
            "--quiet",
            "--profile",
            "dist",
            "--package",
            package,
        ])?;
        let deb = [
            "deb",
            "--no-build",
            "--quiet",
            "--profile",
            "dist",
            "--package",
            package,
        ];
        finish(&mut shop.command(&tool, &deb))?;
    }
    archive(shop)
}

fn archive(shop: &Shop) -> Result<(), String> {
    let name = format!(
        "viworks-{}-{}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH
    );
    let folder = shop.root.join("target/debian").join(&name);
    let said = |error: std::io::Error| format!("{}: {error}", folder.display());
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(said)?;
    }
    let programs = [
        "viworks",
        "viworks-backend-agent",
        "viworks-gateway-agent",
        "viworks-gateway-helper",
    ];
    let programs = programs.map(|name| (format!("target/dist/{name}"), format!("bin/{name}")));
    let rest = ARCHIVED.map(|(from, to)| (from.to_owned(), to.to_owned()));
    for (from, to) in programs.into_iter().chain(rest) {
        let to = folder.join(to);
        std::fs::create_dir_all(to.parent().unwrap_or(&folder)).map_err(said)?;
        finish(shop.command("cp", &["-r", &from]).arg(to))?;
    }
    let whole = format!("{name}.tar.gz");
    let arguments = [
        "-C",
        "target/debian",
        "--owner=0",
        "--group=0",
        "-czf",
        &format!("target/debian/{whole}"),
        &name,
    ];
    finish(&mut shop.command("tar", &arguments))?;
    println!("target/debian/{whole}");
    Ok(())
}

/// What makes them.
pub(crate) fn tool(shop: &Shop) -> Option<PathBuf> {
    if has("cargo-deb") {
        return Some(PathBuf::from("cargo-deb"));
    }
    shop.compiled("cargo-deb", VERSION)
}

/// Whether there is a machine to try them on: `scripts/test.sh` makes its image, outside the repository.
pub(crate) fn has_machine() -> bool {
    let caches = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let image = caches
        .or(home)
        .map(|caches| caches.join("viworks/machine-bookworm"));
    has("systemd-nspawn")
        && image.is_some_and(|image| image.join("usr/lib/systemd/systemd").exists())
}
