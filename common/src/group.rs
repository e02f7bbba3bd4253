//! Whether a group is one user's own, from the texts in which a system keeps its users and groups.
//!
//! Many systems give each user a group of the same number and let new folders be writable by it (`umask 002`). Nobody
//! is in such a group but that user, so it opens nothing that the user could not open. Only what is certain counts:
//! where other sources than the local files may know of further members, nothing is.

/// Sources of users and groups that are those files, or add no members to them.
const LOCAL_SOURCES: [&str; 4] = ["files", "compat", "systemd", "altfiles"];

/// The texts of `/etc/passwd`, `/etc/group` and `/etc/nsswitch.conf`; the last is empty where there is none.
#[derive(Debug, Clone, Copy)]
pub struct Accounts<'t> {
    /// The users.
    pub passwd: &'t str,
    /// The groups.
    pub group: &'t str,
    /// Where the system looks for both.
    pub nsswitch: &'t str,
}

impl Accounts<'_> {
    /// Whether the group with the number of this user is for certain nobody else's: it has no other member, is no other
    /// user's first group, and shares its number with no other group.
    #[must_use]
    pub fn are_private(&self, user: u32) -> bool {
        self.are_local()
            && self
                .belongs_to(user)
                .is_some_and(|name| self.has_no_other(user, name))
    }

    /// The name of the user with this number, when it is the only user whose first group has that number.
    fn belongs_to(&self, user: u32) -> Option<&str> {
        let mut found = None;
        for line in entries(self.passwd) {
            // What is no entry may be one for the system.
            let [name, _password, id, first] = fields::<4>(line)?;
            if first.parse::<u32>().ok()? == user && id.parse() != Ok(user) {
                return None;
            }
            if id.parse() == Ok(user) && found.replace(name).is_some() {
                return None;
            }
        }
        found
    }

    fn has_no_other(&self, group: u32, user: &str) -> bool {
        let mut found = 0;
        for line in entries(self.group) {
            let Some([_name, _password, id, members]) = fields::<4>(line) else {
                return false;
            };
            if id.parse() == Ok(group) {
                found += 1;
                let mut members = members.split(',').filter(|member| !member.is_empty());
                if members.any(|member| member.trim() != user) {
                    return false;
                }
            }
        }
        found == 1
    }

    fn are_local(&self) -> bool {
        let sources = |line: &str| {
            let line = line.split('#').next().unwrap_or_default();
            let (database, sources) = line.split_once(':')?;
            matches!(database.trim(), "passwd" | "group" | "initgroups").then(|| {
                sources
                    .split_whitespace()
                    .all(|source| LOCAL_SOURCES.contains(&source))
            })
        };
        self.nsswitch.lines().filter_map(sources).all(|local| local)
    }
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The first `N` fields of an entry.
fn fields<const N: usize>(line: &str) -> Option<[&str; N]> {
    let mut all = line.split(':');
    let mut taken = [""; N];
    for field in &mut taken {
        *field = all.next()?;
    }
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n\
                          ben:x:1001:100::/home/ben:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:ann\nann:x:1000:\n";

    fn is_private(passwd: &str, group: &str, nsswitch: &str, user: u32) -> bool {
        let accounts = Accounts {
            passwd,
            group,
            nsswitch,
        };
        accounts.are_private(user)
    }

    #[test]
    fn a_group_of_ones_own_is_private() {
        assert!(is_private(PASSWD, GROUP, "", 1_000));
        let named = GROUP.replace("ann:x:1000:", "ann:x:1000:ann");
        let local = "passwd: files systemd # as ever\ngroup:\tfiles\nhosts: files dns\n";
        assert!(is_private(PASSWD, &named, local, 1_000));
    }

    #[test]
    fn whatever_lets_somebody_else_in_or_is_not_certain_makes_it_common() {
        let with = |line: &str| format!("{PASSWD}{line}\n");
        let changed = |from: &str, to: &str| GROUP.replace(from, to);
        for (what, passwd, group, nsswitch) in [
            (
                "a member",
                PASSWD.to_owned(),
                changed("ann:x:1000:", "ann:x:1000:ben"),
                "",
            ),
            (
                "members",
                PASSWD.to_owned(),
                changed("ann:x:1000:", "ann:x:1000:ann,ben"),
                "",
            ),
            (
                "first group",
                with("eve:x:1002:1000::/:/bin/sh"),
                GROUP.to_owned(),
                "",
            ),
            (
                "same number",
                with("eve:x:1000:1000::/:/bin/sh"),
                GROUP.to_owned(),
                "",
            ),
            (
                "second group",
                PASSWD.to_owned(),
                format!("{GROUP}more:x:1000:ben\n"),
                "",
            ),
            (
                "no group",
                PASSWD.to_owned(),
                changed("ann:x:1000:\n", ""),
                "",
            ),
            (
                "a directory",
                PASSWD.to_owned(),
                GROUP.to_owned(),
                "group: files ldap\n",
            ),
            (
                "a directory",
                PASSWD.to_owned(),
                GROUP.to_owned(),
                "passwd: files sss\n",
            ),
            ("no entry", with("+"), GROUP.to_owned(), ""),
            (
                "no user",
                PASSWD.replace("ann:x:1000", "ann:x:1009"),
                GROUP.to_owned(),
                "",
            ),
        ] {
            assert!(!is_private(&passwd, &group, nsswitch, 1_000), "{what}");
        }
        assert!(!is_private(PASSWD, GROUP, "", 1_001));
        assert!(!is_private("", "", "", 1_000));
    }
}
