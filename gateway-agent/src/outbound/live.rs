//! Which live output goes out: a command that writes much leaves room for those that begin after it.

use std::collections::VecDeque;

use viworks_common::id::CommandId;

/// What each command may send as long as there is any credit.
const FAIR_BYTES: u64 = 64 * 1024;
/// Beyond that, this part of the window is left to others.
const LEFT_TO_OTHERS: u64 = 4;
/// Commands that are remembered; a forgotten one has its fair part once more.
const COMMANDS_MAX: usize = 64;

/// How the window of live output is shared in one session.
#[derive(Debug, Default)]
pub(super) struct Shares {
    window: u64,
    sent: VecDeque<(CommandId, u64)>,
}

impl Shares {
    /// Whether `bytes` of a command may go out while `credit` is left. Then they count as sent.
    pub(super) fn take(&mut self, command: CommandId, bytes: u64, credit: u64) -> bool {
        self.window = self.window.max(credit);
        let known = self.sent.iter().position(|(id, _sent)| *id == command);
        let sent = known
            .and_then(|place| self.sent.get(place))
            .map_or(0, |(_id, sent)| *sent)
            .saturating_add(bytes);
        let left = credit.checked_sub(bytes);
        let allowed =
            left.is_some_and(|left| sent <= FAIR_BYTES || left >= self.window / LEFT_TO_OTHERS);
        if !allowed {
            return false;
        }
        match known.and_then(|place| self.sent.get_mut(place)) {
            Some(entry) => entry.1 = sent,
            None => {
                self.sent.push_back((command, sent));
                if self.sent.len() > COMMANDS_MAX {
                    // Whoever sent least: a flood is not forgotten because many small ones came after it.
                    let least = (0..self.sent.len() - 1)
                        .min_by_key(|place| self.sent.get(*place).map_or(0, |(_id, sent)| *sent));
                    least.and_then(|place| self.sent.remove(place));
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn who_comes_after_a_flood_is_still_heard() {
        let window = 1024 * 1024;
        let command = |number| CommandId::from_uuid(Uuid::from_u128(number));
        let mut shares = Shares::default();
        let mut credit = window;
        while shares.take(command(1), 8_192, credit) {
            credit -= 8_192;
        }
        assert_eq!(credit, window / 4);
        for number in 2..1_000 {
            assert!(shares.take(command(number), 200, credit), "{number}");
            credit -= 200;
        }
        // The flood goes on once there is room again, and not before.
        assert!(!shares.take(command(1), 8_192, credit));
        assert!(shares.take(command(1), 8_192, window));
        assert!(
            !shares.take(command(2_000), 200, 100),
            "nothing without credit"
        );
    }

    #[test]
    fn a_small_window_is_shared_as_well() {
        let command = |number| CommandId::from_uuid(Uuid::from_u128(number));
        let mut shares = Shares::default();
        let (window, mut credit, mut sent) = (128 * 1024, 128 * 1024, 0);
        for _heartbeat in 0..4 {
            while shares.take(command(1), 8_192, credit) {
                credit -= 8_192;
                sent += 8_192;
            }
            credit = window;
        }
        assert!(sent > 3 * 64 * 1024, "{sent}");
    }
}
