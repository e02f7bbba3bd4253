//! Whom a launcher becomes: a user of this machine's own files, with all of that user's groups.

use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::process::{Gid, Signal, Uid, set_parent_process_death_signal};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::{Deserialize, Serialize};

/// A user, and what goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its number.
    pub user: u32,
    /// Its first group.
    pub group: u32,
    /// Its groups, the first among them.
    pub groups: Vec<u32>,
    /// Its home.
    pub home: PathBuf,
}

impl Account {
    /// The user of this name in `/etc/passwd`, with its groups in `/etc/group`.
    ///
    /// # Errors
    ///
    /// In words, when there is none, or the files say nothing clear of it.
    pub fn find(name: &str) -> Result<Self, String> {
        let read = |path: &str| {
            fs::read(path)
                .map(|text| String::from_utf8_lossy(&text).into_owned())
                .map_err(|error| format!("{path} cannot be read: {error}"))
        };
        Self::of(name, &read("/etc/passwd")?, &read("/etc/group")?)
    }

    fn of(name: &str, passwd: &str, group: &str) -> Result<Self, String> {
        let mut fitting = entries(passwd).filter(|fields| fields.first() == Some(&name));
        let unclear = || format!("the entry of {name} in /etc/passwd is not a clear one");
        let found = match (fitting.next(), fitting.next()) {
            (None, _) => return Err(format!("there is no user {name} in /etc/passwd")),
            (Some(found), None) => found,
            // Who comes first is who it is to others, and not to everybody.
            (Some(_), Some(_)) => return Err(unclear()),
        };
        let [_name, _password, user, first, _gecos, home, _shell] = found[..] else {
            return Err(unclear());
        };
        let (Some(user), Some(first)) = (number(user), number(first)) else {
            return Err(unclear());
        };
        let mut groups = vec![first];
        for fields in entries(group) {
            if let [_name, _password, number, members] = fields[..]
                && members.split(',').any(|member| member.trim() == name)
                && let Some(number) = self::number(number)
                && !groups.contains(&number)
            {
                groups.push(number);
            }
        }
        Ok(Self {
            name: name.to_owned(),
            user,
            group: first,
            groups,
            home: PathBuf::from(home),
        })
    }

    /// Whether this process runs as that user already.
    #[must_use]
    pub fn is_own(&self) -> bool {
        rustix::process::geteuid().as_raw() == self.user
    }

    /// What programs ask their environment about the user.
    #[must_use]
    pub fn environment(&self) -> [(String, String); 3] {
        let home = self.home.to_string_lossy().into_owned();
        [
            ("HOME", home),
            ("USER", self.name.clone()),
            ("LOGNAME", self.name.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }

    /// Becomes that user, and to end with its parent, which is the process `starter`. For good, and whatever programs
    /// the user has to become somebody else; but root is still whoever it wants to be. For a process of one thread.
    ///
    /// # Errors
    ///
    /// When this process may not, or its parent has ended already. It must end then: it may be half of two users.
    pub(super) fn take_on(&self, starter: u32) -> io::Result<()> {
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
        set_thread_groups(&groups)?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
        set_no_new_privs(true)?;
        // A change of user would clear it.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get());
        if parent.and_then(|parent| u32::try_from(parent).ok()) != Some(starter) {
            return Err(io::Error::other("whoever started this has ended"));
        }
        Ok(())
    }
}

/// A number of a user or a group. The highest is none: to the kernel it means that nothing changes.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with(['#', '+', '-']))
        .map(|line| line.split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# ann:x:1:1::/:/bin/sh\n+ann\n\
                          ann:x:1000:1000:Ann:/home/ann:/bin/sh\nben:x:many:1::/:/bin/sh\n\
                          cai:x:1002:1002::/:/bin/sh\ncai:x:0:0::/:/bin/sh\ndan:x:1003\n\
                          fay:x:4294967295:1::/:/bin/sh\ngus:x:1:4294967295::/:/bin/sh\n";
    const GROUP: &str =
        "root:x:0:\nann:x:1000:ann\ndocker:x:998:ben,ann\nadm:x:4:anna, ann\nodd:x:y:ann\n";

    #[test]
    fn a_user_has_the_groups_that_name_it() {
        let ann = Account::of("ann", PASSWD, GROUP).unwrap();
        assert_eq!((ann.user, ann.group), (1000, 1000));
        assert_eq!(ann.groups, [1000, 998, 4]);
        let home = ann.environment()[0].clone();
        assert_eq!(home, ("HOME".to_owned(), "/home/ann".to_owned()));
        assert!(Account::find("root").unwrap().groups.contains(&0));
    }

    #[test]
    fn who_is_not_clear_is_nobody() {
        for (name, said) in [
            ("eve", "there is no user eve"),
            ("", "there is no user"),
            ("ben", "not a clear one"),
            ("cai", "not a clear one"),
            ("dan", "not a clear one"),
            // Nobody's number: taken on, it would leave root root.
            ("fay", "not a clear one"),
            ("gus", "not a clear one"),
        ] {
            let refused = Account::of(name, PASSWD, GROUP).unwrap_err();
            assert!(refused.contains(said), "{name}: {refused}");
        }
    }
}
