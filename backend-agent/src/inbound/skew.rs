//! Whose clock a measured skew speaks of: while the backend's own is off its time line, no gateway's is blamed.

/// How a gateway's clock differs from the backend's, as far as that can be known.
#[derive(Debug)]
pub(super) struct Skew {
    /// The backend's clock was off its time line when the gateway was told the time for the last time.
    told_apart: bool,
}

impl Skew {
    pub(super) const fn new(apart: bool) -> Self {
        Self { told_apart: apart }
    }

    /// What a heartbeat says, unless it was measured against a clock that somebody had set, or was set meanwhile.
    /// `apart` is whether the clock is off its line now, when the gateway is told the time again.
    pub(super) fn measured(&mut self, reported: Option<i64>, apart: bool) -> Option<i64> {
        let told_apart = std::mem::replace(&mut self.told_apart, apart);
        reported.filter(|_skew| !told_apart && !apart)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_against_a_clock_that_was_set_says_nothing_of_the_gateway() {
        let mut skew = Skew::new(false);
        assert_eq!(skew.measured(Some(90_000), false), Some(90_000));
        // The clock is set an hour ahead, and back before the next heartbeat.
        assert_eq!(skew.measured(Some(90_000), true), None);
        assert_eq!(skew.measured(Some(-3_510_000), false), None);
        assert_eq!(skew.measured(Some(90_000), false), Some(90_000));
        assert_eq!(Skew::new(true).measured(Some(1), false), None);
    }
}
