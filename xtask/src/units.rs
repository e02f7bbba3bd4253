//! The units of the service manager: it understands every line of them, and they leave little open.

use std::fs;
use std::path::Path;

use crate::shop::{Folder, Shop, finish, has};

/// The highest exposure, in tenths, that `systemd-analyze security` may find.
const EXPOSURE_MAX: &str = "20";

/// The same of the one whose work is to become other users, which takes root and two capabilities.
const HELPER: (&str, &str) = ("viworks-gateway-helper@.service", "25");

/// Where packages put the programs, which need not be there for a check.
const PROGRAMS: &str = "/usr/bin/viworks-";

/// `systemd-analyze verify` and `security` over every unit.
pub(crate) fn check(shop: &mut Shop) -> Result<(), String> {
    if !has("systemd-analyze") {
        shop.skip("units of the service manager: systemd-analyze is missing");
        return Ok(());
    }
    let folder = Folder::make()?;
    let said = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let source = shop.root.join("systemd");
    let mut units = Vec::new();
    for entry in fs::read_dir(&source).map_err(|error| said(&source, error))? {
        let path = entry.map_err(|error| said(&source, error))?.path();
        let (Some(name), true) = (path.file_name(), path.is_file()) else {
            continue;
        };
        let text = fs::read_to_string(&path).map_err(|error| said(&path, error))?;
        // The line stays what it is but for its first word.
        let lines = text.lines().map(|line| match line.split_once(PROGRAMS) {
            Some((before, after)) if line.starts_with("Exec") => {
                let rest = after.split_once(' ').map_or("", |(_, rest)| rest);
                format!("{before}/bin/true {rest}\n")
            }
            Some(_) | None => format!("{line}\n"),
        });
        let copy = folder.path().join(name);
        fs::write(&copy, lines.collect::<String>()).map_err(|error| said(&copy, error))?;
        units.push(copy);
    }
    units.sort();
    if units.is_empty() {
        return Err(format!("no unit in {}", source.display()));
    }
    let verify = ["verify", "--man=no", "--recursive-errors=one"];
    let mut verify = shop.command("systemd-analyze", &verify);
    finish(verify.args(&units))?;
    let services = units
        .iter()
        .filter(|unit| unit.extension().is_some_and(|end| end == "service"));
    for unit in services {
        let (helper, allowed) = HELPER;
        let highest = if unit.ends_with(helper) {
            allowed
        } else {
            EXPOSURE_MAX
        };
        let threshold = format!("--threshold={highest}");
        let arguments = ["security", "--offline=true", "--no-pager", &threshold];
        let mut security = shop.command("systemd-analyze", &arguments);
        // The table is for who asks for it; the last line, and what is wrong, go to standard error.
        security.arg(unit).stdout(std::process::Stdio::null());
        finish(&mut security).map_err(|why| format!("{}: {why}", unit.display()))?;
    }
    println!("{} units", units.len());
    Ok(())
}
