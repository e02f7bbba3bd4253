//! What may come in: cargo-deny, of one version, from its project's releases or compiled once.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::shop::{Shop, finish, has, succeeds};

const VERSION: &str = "0.20.2";

/// The SHA-256 of the release for each kind of machine.
const RELEASES: &[(&str, &str)] = &[
    (
        "x86_64",
        "9f12ed4c49936e09b48bf862b595cde2fe64fcbd9d74dfacac6131ca824c8d5f",
    ),
    (
        "aarch64",
        "995c82be0defc7a025cae49a2aa2644ce8245c9a3318fc4103907c6a285e8c7d",
    ),
];

/// Licences, banned crates and sources, as `deny.toml` has them. One rule holds without the tool.
pub(crate) fn policy(shop: &mut Shop) -> Result<(), String> {
    let tree = [
        "tree",
        "--locked",
        "--workspace",
        "--edges",
        "normal,build",
        "-i",
        "ring",
    ];
    // Nobody depends on it: then cargo finds no such package, and says so where it is not shown.
    let mut tree = shop.command("cargo", &tree);
    let found = tree.stderr(Stdio::null()).output();
    let found = found.map_err(|error| format!("cargo did not start: {error}"))?;
    if !found.stdout.is_empty() {
        return Err("ring is in the dependency tree; aws-lc-rs is the one provider".to_owned());
    }
    let Some(tool) = tool(shop)? else {
        return Ok(());
    };
    let arguments = [
        "--locked",
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ];
    finish(&mut shop.command(tool, &arguments))
}

/// Known faults of dependencies. The database changes every day, so it says nothing about a change.
pub(crate) fn advisories(shop: &mut Shop) -> Result<(), String> {
    let Some(tool) = tool(shop)? else {
        return Ok(());
    };
    finish(&mut shop.command(tool, &["--locked", "check", "advisories"]))
}

/// The tool: ours, the machine's, or one that is got now. Without one it is said what is skipped.
fn tool(shop: &mut Shop) -> Result<Option<PathBuf>, String> {
    let home = shop
        .root
        .join(format!("target/tools/cargo-deny-{VERSION}/bin"));
    let ours = home.join("cargo-deny");
    if succeeds(&ours, &["--version"]) {
        return Ok(Some(ours));
    }
    if has("cargo-deny") {
        return Ok(Some(PathBuf::from("cargo-deny")));
    }
    if !shop.install {
        shop.skip("licences, bans and sources: cargo-deny is missing");
        return Ok(None);
    }
    std::fs::create_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;
    if download(shop, &home)? {
        return Ok(Some(ours));
    }
    if let Some(compiled) = shop.compiled("cargo-deny", VERSION) {
        return Ok(Some(compiled));
    }
    shop.skip("licences, bans and sources: cargo-deny could neither be downloaded nor compiled");
    Ok(None)
}

/// The release of cargo-deny's own project. False when it cannot be had; one that is not as pinned is an error.
fn download(shop: &Shop, home: &Path) -> Result<bool, String> {
    let machine = std::env::consts::ARCH;
    let Some((_, pinned)) = RELEASES.iter().find(|(name, _)| *name == machine) else {
        return Ok(false);
    };
    if !has("curl") || !has("sha256sum") || !has("tar") {
        return Ok(false);
    }
    let name = format!("cargo-deny-{VERSION}-{machine}-unknown-linux-musl");
    let url = format!(
        "https://github.com/EmbarkStudios/cargo-deny/releases/download/{VERSION}/{name}.tar.gz"
    );
    let archive = home.join("archive.tar.gz");
    let archive = archive.to_string_lossy();
    let get = [
        "--fail",
        "--silent",
        "--location",
        "--proto",
        "=https",
        "--connect-timeout",
        "10",
        "--max-time",
        "120",
        "--output",
    ];
    let mut get = shop.command("curl", &get);
    if finish(get.arg(&*archive).arg(&url)).is_err() {
        return Ok(false);
    }
    let sum = shop.command("sha256sum", &[&*archive]).output();
    let sum = sum.map_err(|error| format!("sha256sum did not start: {error}"))?;
    let sum = String::from_utf8_lossy(&sum.stdout);
    if sum.split_whitespace().next() != Some(pinned) {
        return Err(format!("{url} is not what is pinned: {}", sum.trim()));
    }
    let mut unpack = shop.command("tar", &["-xzf", &*archive, "--strip-components=1", "-C"]);
    finish(unpack.arg(home).arg(format!("{name}/cargo-deny")))?;
    Ok(true)
}
