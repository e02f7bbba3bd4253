//! What the tests leave behind on the machine: files outside the repository, and segments of shared memory.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Folders that are everybody's.
const FOLDERS: [&str; 2] = ["/var/tmp", "/dev/shm"];

/// What names begin with that our programs and their tests give: their own, those of unnamed temporary folders and of
/// the locks of machines, and those that PostgreSQL and libfaketime give shared memory.
const OURS: [&str; 6] = [
    "viworks",
    ".#viworks",
    ".tmp",
    "PostgreSQL.",
    "faketime_shm_",
    "sem.faketime_sem_",
];

/// How long what ends with its tests may take to be gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is there, by names that say what it is.
pub(crate) fn look() -> BTreeSet<String> {
    let temporary = std::env::temp_dir();
    let folders = FOLDERS.iter().map(Path::new).chain([&*temporary]);
    let mut found: BTreeSet<String> = folders.flat_map(files).collect();
    // Where the system has none, there is nothing to be left.
    let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    found.extend(unused(&segments));
    found
}

/// What was not there before and stays, a line each.
///
/// # Errors
/// When there is anything.
#[expect(
    clippy::disallowed_methods,
    reason = "servers that end with their tests can only be looked for again and again"
)]
pub(crate) fn nothing_since(before: &BTreeSet<String>) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let now = look();
        let left: Vec<&str> = now.difference(before).map(String::as_str).collect();
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!(
                "left behind since the tests began, by one of them or by something else that ran meanwhile:\n  {}",
                left.join("\n  ")
            ));
        }
        sleep(Duration::from_millis(200));
    }
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        OURS.iter().any(|ours| name.starts_with(ours))
    });
    names
        .map(|entry| entry.path().display().to_string())
        .collect()
}

/// The segments of shared memory that nobody has attached, as in proc(5): the second column is the number, the fourth
/// its size, the seventh by how many it is attached, the eighth whose it is.
fn unused(segments: &str) -> Vec<String> {
    let rows = segments.lines().skip(1);
    let unused = rows.filter_map(|row| {
        let columns: Vec<&str> = row.split_whitespace().collect();
        let (number, bytes, user) = (columns.get(1)?, columns.get(3)?, columns.get(7)?);
        (*columns.get(6)? == "0").then(|| {
            format!("segment {number} of shared memory, {bytes} bytes of user {user} (ipcs -m)")
        })
    });
    unused.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_named_and_what_goes_is_not() {
        let folder = crate::shop::Folder::make().unwrap();
        for name in [
            "viworks-pg-1",
            ".#viworks-machine-1.lck",
            "of somebody else",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let mut found = files(folder.path());
        found.sort_unstable();
        let expected = [".#viworks-machine-1.lck", "viworks-pg-1"];
        let expected = expected.map(|name| folder.path().join(name).display().to_string());
        assert_eq!(found, expected);
    }

    #[test]
    fn a_segment_is_left_when_nobody_has_it() {
        let table = "\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime
  10666553     393216   600                    56  7001  7001      0   107   114   107   114 1764431971
  10666554     393217   600                    56  7002  7002      6   107   114   107   114 1764431971
";
        assert_eq!(
            unused(table),
            ["segment 393216 of shared memory, 56 bytes of user 107 (ipcs -m)"]
        );
        assert_eq!(unused(""), [""; 0]);
    }
}
