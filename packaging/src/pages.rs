//! The pages that packages bring, with links that lead where these pages are there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// A package with the pages that it brings, beside those of the close codes, which every one has.
const BROUGHT: [(&str, &[&str]); 3] = [
    (
        "viworks-backend",
        &[
            "CHANGELOG.md",
            "docs/configuration.md",
            "docs/configuration_backend.md",
            "docs/files.md",
            "docs/operations/daily_checks.md",
            "docs/operations/limits.md",
            "docs/operations/reverse_proxy.md",
            "docs/operations/services.md",
            "docs/operations/upgrade.md",
        ],
    ),
    (
        "viworks-gateway",
        &[
            "CHANGELOG.md",
            "docs/catalogue.md",
            "docs/commands.md",
            "docs/configuration.md",
            "docs/configuration_gateway.md",
            "docs/files.md",
            "docs/local_api.md",
            "docs/operations/daily_checks.md",
            "docs/operations/services.md",
            "docs/operations/upgrade.md",
        ],
    ),
    (
        "viworks-cli",
        &[
            "CHANGELOG.md",
            "docs/api.md",
            "docs/operations/validation.md",
        ],
    ),
];

/// The pages of the close codes, which lie in a folder of their own in a package as well.
const ERRORS: &str = "docs/errors/";

/// Where each page of a package is in it, by where it is in the repository.
type Places = BTreeMap<String, String>;

/// Writes `PACKAGE/PAGE` for every package below a folder, of the repository in `root`.
pub(crate) fn write(root: &Path, folder: &Path) -> io::Result<()> {
    for (package, pages) in BROUGHT {
        let places = places(root, pages)?;
        for (page, place) in &places {
            let text = fs::read_to_string(root.join(page))?;
            let file = folder.join(package).join(place);
            if let Some(parent) = file.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(file, rewritten(&text, page, &places))?;
        }
    }
    Ok(())
}

fn places(root: &Path, pages: &[&str]) -> io::Result<Places> {
    let mut places = Places::new();
    for &page in pages {
        let name = page.rsplit('/').next().unwrap_or(page);
        places.insert(page.to_owned(), name.to_owned());
    }
    for entry in fs::read_dir(root.join(ERRORS))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        places.insert(format!("{ERRORS}{name}"), format!("errors/{name}"));
    }
    Ok(places)
}

/// A page as it stands in its package.
fn rewritten(text: &str, page: &str, places: &Places) -> String {
    let mut is_code = false;
    let mut lines = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        is_code ^= line.trim_start().starts_with("```");
        if is_code {
            lines.push_str(line);
        } else {
            lines.push_str(&line_of(line, page, places));
        }
    }
    lines
}

fn line_of(line: &str, page: &str, places: &Places) -> String {
    let mut written = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, text, target, behind)) = link(rest) {
        written.push_str(before);
        written.push_str(&led(text, target, page, places));
        rest = behind;
    }
    written.push_str(rest);
    written
}

/// The first link: what is before it, its text and target, and what is behind it.
fn link(line: &str) -> Option<(&str, &str, &str, &str)> {
    let (start, rest) = line.split_once("](")?;
    let (target, behind) = rest.split_once(')')?;
    let (before, text) = start.rsplit_once('[')?;
    Some((before, text, target, behind))
}

/// A link that leads to the page in the package, or its words where that is not there.
fn led(text: &str, target: &str, page: &str, places: &Places) -> String {
    if target.starts_with('#') || target.contains("://") || target.starts_with("mailto:") {
        return format!("[{text}]({target})");
    }
    let (file, anchor) = target
        .find('#')
        .and_then(|at| target.split_at_checked(at))
        .unwrap_or((target, ""));
    let wanted = resolved(page, file);
    let Some(place) = places.get(&wanted) else {
        return if text.trim_matches('`') == wanted {
            text.to_owned()
        } else {
            format!("{text} (`{wanted}` in the sources)")
        };
    };
    let own = places.get(page).map_or("", String::as_str);
    let from = own.rsplit_once('/').map_or("", |(folder, _name)| folder);
    let link = match place.split_once('/') {
        Some((folder, name)) if folder == from => name.to_owned(),
        _ if from.is_empty() => place.clone(),
        _ => format!("../{place}"),
    };
    format!("[{text}]({link}{anchor})")
}

/// A path that a page in the repository names, from the root of that.
fn resolved(page: &str, file: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for step in file.split('/') {
        match step {
            "." => {}
            ".." => {
                parts.pop();
            }
            step => parts.push(step),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn root() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
    }

    #[test]
    fn a_link_leads_into_the_package_or_is_said_in_words() {
        let places = places(root(), &["docs/files.md", "docs/operations/upgrade.md"]).unwrap();
        for (page, line, wanted) in [
            (
                "docs/operations/upgrade.md",
                "See [files](../files.md#owners), [why](../errors/replay.md).\n",
                "See [files](files.md#owners), [why](errors/replay.md).\n",
            ),
            (
                "docs/errors/replay.md",
                "[fork](identity_fork.md) and [upgrade](../operations/upgrade.md)",
                "[fork](identity_fork.md) and [upgrade](../upgrade.md)",
            ),
            (
                "docs/operations/upgrade.md",
                "[`nginx/nginx.conf`](../../nginx/nginx.conf), [decision 22](../decisions/0022-a.md)",
                "`nginx/nginx.conf`, decision 22 (`docs/decisions/0022-a.md` in the sources)",
            ),
            (
                "docs/files.md",
                "[here](#files), [there](https://example.org/) and a[0](b",
                "[here](#files), [there](https://example.org/) and a[0](b",
            ),
            (
                "docs/files.md",
                "```sh\n[a](b.md)\n```\n[a](b.md)\n",
                "```sh\n[a](b.md)\n```\na (`docs/b.md` in the sources)\n",
            ),
        ] {
            assert_eq!(rewritten(line, page, &places), wanted);
        }
    }

    #[test]
    fn every_link_of_a_package_leads_to_a_page_of_it() {
        let folder = tempfile::tempdir().unwrap();
        write(root(), folder.path()).unwrap();
        let mut followed = 0;
        for (package, pages) in BROUGHT {
            let places = places(root(), pages).unwrap();
            let written: BTreeSet<&String> = places.values().collect();
            assert_eq!(written.len(), places.len(), "two pages of one name");
            for place in written {
                let page = folder.path().join(package).join(place);
                let text = fs::read_to_string(&page).unwrap();
                let mut rest = text.as_str();
                while let Some((_before, _text, target, behind)) = link(rest) {
                    rest = behind;
                    let file = target.split('#').next().unwrap();
                    if file.is_empty() || target.contains("://") {
                        continue;
                    }
                    followed += 1;
                    let there = folder.path().join(package).join(resolved(place, file));
                    assert!(there.is_file(), "{package}: {place}: {target}");
                }
            }
        }
        assert!(followed > 20, "{followed} links were followed");
    }

    #[test]
    fn the_packages_take_the_pages_that_are_written_for_them() {
        for (package, of) in [
            ("viworks-backend", "backend-agent"),
            ("viworks-gateway", "gateway-agent"),
            ("viworks-cli", "operator-cli"),
        ] {
            let manifest = fs::read_to_string(root().join(of).join("Cargo.toml")).unwrap();
            for folder in ["", "errors/"] {
                let asset = format!(
                    "[\"../target/packaging/doc/{package}/{folder}*.md\", \"usr/share/doc/{package}/{folder}\", \"644\"],"
                );
                assert!(manifest.contains(&asset), "{of} has no {asset}");
            }
            assert!(!manifest.contains("[\"../docs/"), "{of}");
        }
    }
}
