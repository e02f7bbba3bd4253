//! How busy the processors were between two readings of the kernel's counters.

/// Ticks since boot, as the first line of `/proc/stat` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticks {
    total: u64,
    idle: u64,
    /// How many processors are online.
    pub cores: u64,
}

impl Ticks {
    /// Reads the counters out of `/proc/stat`.
    #[must_use]
    pub fn parse(stat: &str) -> Option<Self> {
        let mut numbers = stat
            .lines()
            .find_map(|line| line.strip_prefix("cpu "))?
            .split_ascii_whitespace()
            .map_while(|number| number.parse::<u64>().ok());
        // user nice system idle iowait irq softirq steal; guests are counted in user and nice already.
        let mut next = || numbers.next();
        let busy_first = [next()?, next()?, next()?];
        let idle = next()?.saturating_add(next().unwrap_or_default());
        let busy_rest = [next(), next(), next()].map(Option::unwrap_or_default);
        let total = busy_first
            .into_iter()
            .chain(busy_rest)
            .fold(idle, u64::saturating_add);
        let cores = stat
            .lines()
            .filter_map(|line| line.strip_prefix("cpu"))
            .filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            .count();
        Some(Self {
            total,
            idle,
            cores: u64::try_from(cores).unwrap_or(u64::MAX),
        })
    }

    /// The share of the time since `earlier` in which something ran, in percent of all processors; `None` when no time
    /// has passed. One reading alone says nothing: it is the average since boot.
    #[must_use]
    pub fn used_percent_since(&self, earlier: &Self) -> Option<f64> {
        let total = self.total.checked_sub(earlier.total).filter(|t| *t > 0)?;
        // The time spent waiting for disks may run backwards.
        let idle = self.idle.saturating_sub(earlier.idle).min(total);
        // In hundredths of a percent, in whole numbers as far as possible.
        let hundredths = u128::from(total - idle) * 10_000 / u128::from(total);
        u32::try_from(hundredths).ok().map(|h| f64::from(h) / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "cpu  100 0 50 800 50 0 0 0 10 0\ncpu0 50 0 25 400 25 0 0 0\ncpu1 50 0 25 400 25 0 0 0\nintr 5\n";

    #[test]
    fn use_is_the_difference_of_two_readings_and_never_the_average_since_boot() {
        let before = Ticks::parse(BEFORE).unwrap();
        assert_eq!((before.total, before.idle, before.cores), (1000, 850, 2));
        let after = Ticks::parse("cpu  160 0 65 820 55 0 0 0 10 0\ncpu0 1 1 1 1\n").unwrap();
        assert_eq!(after.used_percent_since(&before), Some(75.0));
        assert_eq!(before.used_percent_since(&before), None);
        assert_eq!(before.used_percent_since(&after), None, "never backwards");
    }

    #[test]
    fn something_else_is_no_reading() {
        for text in ["", "cpu", "cpu  1 2", "cpu  a b c d", "cpu0 1 2 3 4"] {
            assert_eq!(Ticks::parse(text), None, "{text:?}");
        }
    }
}
