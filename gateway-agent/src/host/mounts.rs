//! Which mounts matter: the kernel's table, read byte by byte, and the choice of what is shown of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The table of this process's mounts.
const TABLE: &str = "/proc/self/mountinfo";

/// File systems that hold no files of anybody, or that must not be touched because a look mounts them.
const PSEUDO: &[&str] = &[
    "autofs",
    "bdev",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "cpuset",
    "debugfs",
    "devfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fuse.gvfsd-fuse",
    "fuse.lxcfs",
    "fuse.portal",
    "fusectl",
    "hugetlbfs",
    "kernfs",
    "mqueue",
    "none",
    "nsfs",
    "pipefs",
    "proc",
    "pstore",
    "resctrl",
    "rootfs",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "sockfs",
    "subfs",
    "sysfs",
    "tracefs",
    "usbfs",
];

/// Images that are full by nature and say nothing about room.
const IMAGES: &[&str] = &["cramfs", "erofs", "iso9660", "romfs", "squashfs"];

/// Memory, or layers over a disk that is listed by itself.
const SECONDARY: &[&str] = &["aufs", "overlay", "ramfs", "tmpfs"];

/// File systems behind a network, or behind a program.
const REMOTE: &[&str] = &[
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "fuse",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "orangefs",
    "smb3",
    "smbfs",
];

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, which no other has while it is there.
    pub id: u32,
    /// The mount that it is mounted on.
    pub parent: u32,
    /// The device, as `MAJOR:MINOR`.
    pub device: String,
    /// Which folder of the file system is mounted; `/` unless it is a bind mount.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// What is mounted, such as `/dev/sda1`.
    pub source: OsString,
}

/// Mounts that are not shown, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Further mounts of a device that is shown.
    pub same_device: usize,
    /// Mounts under others, where nobody can reach them.
    pub covered: usize,
    /// Read-only images, which are always full.
    pub images: usize,
    /// Lines that could not be understood.
    pub unreadable: usize,
    /// Beyond the number that is shown.
    pub beyond: usize,
}

impl LeftOut {
    /// All of them.
    #[must_use]
    pub const fn sum(&self) -> usize {
        self.same_device + self.covered + self.images + self.unreadable + self.beyond
    }
}

/// The mounts worth showing, the important ones first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The root first, then disks, then what lies behind a network, then memory.
    pub mounts: Vec<Mount>,
    /// What is not among them, pseudo file systems aside.
    pub left_out: LeftOut,
}

/// Reads the table and chooses at most `limit` mounts.
///
/// # Errors
/// When the kernel does not show it.
pub fn read(limit: usize) -> io::Result<Chosen> {
    let (mounts, unreadable) = parse(&fs::read(TABLE)?);
    let mut chosen = choose(mounts, limit);
    chosen.left_out.unreadable = unreadable;
    Ok(chosen)
}

/// The lines of a table, and how many of them could not be understood.
#[must_use]
pub fn parse(table: &[u8]) -> (Vec<Mount>, usize) {
    let lines = table.split(|byte| *byte == b'\n').filter(|l| !l.is_empty());
    let mut mounts = Vec::new();
    let mut unreadable = 0;
    for line in lines {
        match parse_line(line) {
            Some(mount) => mounts.push(mount),
            None => unreadable += 1,
        }
    }
    (mounts, unreadable)
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ').filter(|f| !f.is_empty());
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    let text = |field: &[u8]| String::from_utf8(unescape(field)).ok();
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = text(fields.next()?)?;
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    // Options, then any number of tags up to a lone dash.
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Mount {
        id,
        parent,
        device,
        root,
        point,
        kind: text(rest.next()?)?,
        source: OsString::from_vec(unescape(rest.next().unwrap_or_default())),
    })
}

/// The kernel writes blanks, tabs, newlines, backslashes and the hash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|d| {
            let digits = std::str::from_utf8(d).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// Chooses what is shown: no pseudo file systems, nothing that is covered by another mount, each device once.
#[must_use]
pub fn choose(mounts: Vec<Mount>, limit: usize) -> Chosen {
    let covered = covered(&mounts);
    let mut left_out = LeftOut::default();
    let mut candidates = Vec::new();
    for mount in mounts {
        if PSEUDO.contains(&mount.kind.as_str()) {
            continue;
        }
        if covered.contains(&mount.id) {
            left_out.covered += 1;
        } else if IMAGES.contains(&mount.kind.as_str()) && mount.point != Path::new("/") {
            left_out.images += 1;
        } else {
            candidates.push(mount);
        }
    }
    // Of one device the mount that shows the whole of it, and the shortest path of these.
    candidates.sort_by_key(|mount| {
        let depth = mount.point.components().count();
        (mount.root != Path::new("/"), depth, Reverse(mount.id))
    });
    let mut seen = BTreeSet::new();
    candidates.retain(|mount| {
        let first = seen.insert(mount.device.clone());
        left_out.same_device += usize::from(!first);
        first
    });
    candidates.sort_by(|one, other| {
        let key = |mount: &Mount| (rank(mount), mount.point.as_os_str().as_bytes().to_vec());
        key(one).cmp(&key(other))
    });
    left_out.beyond = candidates.len().saturating_sub(limit);
    candidates.truncate(limit);
    Chosen {
        mounts: candidates,
        left_out,
    }
}

fn rank(mount: &Mount) -> u8 {
    let kind = mount.kind.as_str();
    if mount.point == Path::new("/") {
        0
    } else if SECONDARY.contains(&kind) {
        3
    } else if REMOTE.contains(&kind) || kind.starts_with("fuse.") {
        2
    } else {
        1
    }
}

/// The mounts that no path leads to any more, because others lie over them.
fn covered(mounts: &[Mount]) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<&Mount>> = BTreeMap::new();
    for mount in mounts {
        // The root of a table is its own parent in some kernels.
        if mount.parent != mount.id {
            children.entry(mount.parent).or_default().push(mount);
        }
    }
    let of = |id: u32| children.get(&id).map_or(&[][..], Vec::as_slice);
    let mut covered: BTreeSet<u32> = BTreeSet::new();
    for mount in mounts {
        let over_it = of(mount.id).iter().any(|over| over.point == mount.point);
        let over_its_place = mount.parent != mount.id
            && of(mount.parent).iter().any(|sibling| {
                sibling.id != mount.id
                    && sibling.point != mount.point
                    && mount.point.starts_with(&sibling.point)
            });
        if over_it || over_its_place {
            covered.insert(mount.id);
        }
    }
    // What is mounted on a place that is gone is gone as well; what covers a mount at its very point is not.
    loop {
        let more: Vec<u32> = mounts
            .iter()
            .filter(|mount| !covered.contains(&mount.id))
            .filter(|mount| {
                mounts.iter().any(|below| {
                    below.id == mount.parent
                        && below.id != mount.id
                        && covered.contains(&below.id)
                        && below.point != mount.point
                })
            })
            .map(|mount| mount.id)
            .collect();
        if more.is_empty() {
            return covered;
        }
        covered.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw - proc proc rw
24 22 0:22 / /sys rw shared:7 - sysfs sysfs rw
25 24 0:23 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw
30 22 8:1 / /sysvol rw - ext4 /dev/sda1 rw
31 22 8:2 / /processed rw master:1 shared:9 - xfs /dev/sda2 rw
32 22 8:3 / /runtime rw - btrfs /dev/sda3 rw
33 22 0:24 / /run rw - tmpfs tmpfs rw
40 22 254:0 /srv/one /bind/one rw - ext4 /dev/vda1 rw
41 22 254:0 /srv/two /bind/two rw - ext4 /dev/vda1 rw
42 22 0:50 / /mnt/gr\xfc\\040n rw - nfs4 server:/x rw
43 22 7:0 / /snap/core/1 ro - squashfs /dev/loop0 ro
not a line
";

    fn points(chosen: &Chosen) -> Vec<String> {
        let shown = |mount: &Mount| crate::host::printable(mount.point.as_os_str());
        chosen.mounts.iter().map(shown).collect()
    }

    #[test]
    fn every_disk_is_there_once_the_important_ones_first_and_the_rest_is_counted() {
        let (mounts, unreadable) = parse(TABLE);
        assert_eq!(unreadable, 1);
        let chosen = choose(mounts.clone(), 64);
        assert_eq!(
            points(&chosen),
            [
                "/",
                "/processed",
                "/runtime",
                "/sysvol",
                r"/mnt/gr\xfc n",
                "/run"
            ]
        );
        let expected = LeftOut {
            same_device: 2,
            images: 1,
            ..LeftOut::default()
        };
        assert_eq!(chosen.left_out, expected);
        let few = choose(mounts, 2);
        assert_eq!(points(&few), ["/", "/processed"]);
        assert_eq!(few.left_out.beyond, 4);
    }

    #[test]
    fn a_disk_that_is_only_mounted_in_part_is_still_there() {
        let (mounts, _unreadable) = parse(b"1 0 8:1 /a/b /data rw - ext4 /dev/sda1 rw\n");
        assert_eq!(points(&choose(mounts, 9)), ["/data"]);
    }

    #[test]
    fn what_lies_under_another_mount_is_not_asked_for() {
        let table = b"\
1 0 8:1 / / rw - ext4 a rw
2 1 8:2 / /mnt/x rw - ext4 b rw
3 1 8:3 / /mnt rw - ext4 c rw
4 2 8:4 / /mnt/x/y rw - ext4 d rw
5 3 8:5 / /mnt rw - ext4 e rw
6 5 8:6 / /mnt/z rw - ext4 f rw
";
        let (mounts, _unreadable) = parse(table);
        let chosen = choose(mounts, 9);
        assert_eq!(points(&chosen), ["/", "/mnt", "/mnt/z"]);
        assert_eq!(chosen.mounts[1].device, "8:5");
        assert_eq!(chosen.left_out.covered, 3);
    }

    proptest! {
        #[test]
        fn no_table_does_harm_and_nothing_is_lost_uncounted(table in prop::collection::vec(any::<u8>(), 0..400)) {
            let (mounts, unreadable) = parse(&table);
            let lines = table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
            prop_assert_eq!(mounts.len() + unreadable, lines);
        }

        #[test]
        fn a_path_is_what_it_was_before_it_was_escaped(path in prop::collection::vec(1_u8..=255, 1..40)) {
            let mut escaped = Vec::new();
            for byte in &path {
                if matches!(byte, b' ' | b'\t' | b'\n' | b'\\' | b'#') {
                    escaped.extend(format!("\\{byte:03o}").into_bytes());
                } else {
                    escaped.push(*byte);
                }
            }
            prop_assert_eq!(unescape(&escaped), path);
        }
    }
}
