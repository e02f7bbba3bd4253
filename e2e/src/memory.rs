//! Whether memory stays flat: what the backend and the gateways hold, over one life of the backend.

use std::fmt;

/// Growth that is allowed on top of a tenth, in KiB: caches that fill slowly.
const ALLOWED_KIB: u64 = 8 * 1_024;

/// Samples of a life.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    backend: Vec<u64>,
    gateways: Vec<u64>,
}

/// Samples below which nothing is said.
const SAMPLES_MIN: usize = 40;

/// What became of it: nothing is known after a short run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    /// Too few samples.
    TooShort,
    /// Early and late, in KiB.
    Judged {
        /// The backend's.
        backend: (u64, u64),
        /// A gateway's, on the average.
        gateways: (u64, u64),
    },
}

impl Memory {
    /// Reads the resident memory of the backend, and that of the gateways on the average.
    pub(crate) fn sample(&mut self, backend: u32, gateways: impl Iterator<Item = u32>) {
        let (mut sum, mut count) = (0, 0);
        for kib in gateways.filter_map(resident_kib) {
            sum += kib;
            count += 1;
        }
        if let (Some(backend), true) = (resident_kib(backend), count > 0) {
            self.backend.push(backend);
            self.gateways.push(sum / count);
        }
    }

    /// Compares the second quarter of the samples, when everything is warm, with the last one.
    pub(crate) fn verdict(&self) -> Verdict {
        if self.backend.len() < SAMPLES_MIN {
            return Verdict::TooShort;
        }
        let compare = |samples: &[u64]| {
            let quarter = samples.len() / 4;
            let early = samples.get(quarter..2 * quarter).unwrap_or_default();
            let late = samples.get(samples.len() - quarter..).unwrap_or_default();
            (median(early), median(late))
        };
        Verdict::Judged {
            backend: compare(&self.backend),
            gateways: compare(&self.gateways),
        }
    }
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

impl Verdict {
    /// Whether it grew.
    pub(crate) const fn grew(&self) -> bool {
        const fn more((early, late): (u64, u64)) -> bool {
            late > early + early / 10 + ALLOWED_KIB
        }
        match *self {
            Self::TooShort => false,
            Self::Judged { backend, gateways } => more(backend) || more(gateways),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort => f.write_str("not judged: the run was too short"),
            Self::Judged { backend, gateways } => write!(
                f,
                "backend {} KiB, then {} KiB; a gateway {} KiB, then {} KiB",
                backend.0, backend.1, gateways.0, gateways.1
            ),
        }
    }
}

/// `VmRSS` of `status` (proc(5)).
fn resident_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}
