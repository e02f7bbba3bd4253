//! Who may fill how much of a gateway's spool, and whose records go when there is too much.
//!
//! What local programs hand in has a share that it never exceeds; what they leave, and the rest, is the agent's own. So
//! however much local programs hand in, the newest readings of the agent itself always have their room.

/// Who appended a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The agent, such as its collectors.
    Agent,
    /// A local program.
    Local,
}

/// How much may be there, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    all: u64,
    local: u64,
}

/// How much is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// Pages that hold something.
    pub pages: u64,
    /// About so many bytes of records.
    pub bytes: u64,
    /// Those of local programs among them.
    pub local_bytes: u64,
}

impl Filled {
    /// Pages that local programs fill: by their bytes, because pages are not told apart.
    #[must_use]
    pub fn local_pages(self) -> u64 {
        let local = u128::from(self.pages) * u128::from(self.local_bytes);
        let pages = local.checked_div(self.bytes.into()).unwrap_or_default();
        u64::try_from(pages).unwrap_or(u64::MAX).min(self.pages)
    }
}

/// Which records are to be given up next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// The oldest that a local program handed in.
    OldestLocal,
    /// The oldest of all.
    Oldest,
}

impl Room {
    /// Of a file of at most `pages`, of which an eighth is kept free for what is being written; local programs have so
    /// many in a hundred of the rest.
    #[must_use]
    pub const fn new(pages: u64, local_percent: u8) -> Self {
        let all = pages - pages / 8;
        let percent = if local_percent < 100 {
            local_percent
        } else {
            100
        };
        // Divided first, so that no number is too large.
        let local = all / 100 * percent as u64 + all % 100 * percent as u64 / 100;
        Self { all, local }
    }

    /// Pages that local programs may fill.
    #[must_use]
    pub const fn local(self) -> u64 {
        self.local
    }

    /// What has to go, if anything has.
    #[must_use]
    pub fn gives_up(self, filled: Filled) -> Option<GivenUp> {
        if filled.local_bytes > 0 && filled.local_pages() > self.local {
            Some(GivenUp::OldestLocal)
        } else if filled.pages > self.all {
            Some(GivenUp::Oldest)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn local_programs_give_up_their_own_beyond_their_share_and_everybody_at_the_bound() {
        let room = Room::new(800, 75);
        assert_eq!((room.all, room.local()), (700, 525));
        let filled = |pages, bytes, local_bytes| Filled {
            pages,
            bytes,
            local_bytes,
        };
        assert_eq!(room.gives_up(filled(525, 1_000, 1_000)), None);
        let local = Some(GivenUp::OldestLocal);
        assert_eq!(room.gives_up(filled(526, 1_000, 1_000)), local);
        assert_eq!(room.gives_up(filled(700, 1_000, 752)), local);
        assert_eq!(room.gives_up(filled(700, 1_000, 751)), None);
        assert_eq!(
            room.gives_up(filled(701, 1_000, 700)),
            Some(GivenUp::Oldest)
        );
        assert_eq!(room.gives_up(filled(701, 0, 0)), Some(GivenUp::Oldest));
        assert_eq!(room.gives_up(filled(0, 0, 0)), None);
    }

    proptest! {
        /// Whoever appends what, each page at a time: local programs never have more than their share afterwards, and
        /// the agent's own records go only while it has more than what that share leaves.
        #[test]
        fn a_flood_of_local_records_takes_nothing_of_the_agents_part(
            percent in 5_u8..=95,
            appended in prop::collection::vec((any::<bool>(), 1_usize..40), 1..60),
        ) {
            let room = Room::new(400, percent);
            let mut queue: Vec<Origin> = Vec::new();
            for (local, pages) in appended {
                let origin = if local { Origin::Local } else { Origin::Agent };
                queue.extend(std::iter::repeat_n(origin, pages));
                loop {
                    let pages = u64::try_from(queue.len()).unwrap();
                    let of_local = queue.iter().filter(|origin| **origin == Origin::Local).count();
                    let local_bytes = u64::try_from(of_local).unwrap();
                    let gone = match room.gives_up(Filled { pages, bytes: pages, local_bytes }) {
                        None => break,
                        Some(GivenUp::Oldest) => 0,
                        Some(GivenUp::OldestLocal) => {
                            queue.iter().position(|origin| *origin == Origin::Local).unwrap()
                        }
                    };
                    if queue.remove(gone) == Origin::Agent {
                        prop_assert!(pages - local_bytes > room.all - room.local);
                    }
                }
                let of_local = queue.iter().filter(|origin| **origin == Origin::Local).count();
                prop_assert!(u64::try_from(of_local).unwrap() <= room.local);
                prop_assert!(u64::try_from(queue.len()).unwrap() <= room.all);
            }
        }
    }
}
