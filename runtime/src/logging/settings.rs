//! The section `[log]`, which is the same in every agent.

use super::{Format, WAITING_BYTES_DEFAULT, check_filter};
use crate::config::Section;

crate::settings! {
    /// The log on the standard error output.
    [log]
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct LogConfig from section {
        /// For eyes or for machines.
        format: Format = one_of("human", &[("human", Format::Human), ("json", Format::Json)]),
        /// What is logged: a level, or levels for parts, such as `info,hyper=debug`.
        filter: String = str("info"),
        /// Bytes of lines that may wait for whoever takes the log; those that find no room are dropped and counted, and
        /// nothing waits for them.
        waiting_bytes_max: usize = integer(WAITING_BYTES_DEFAULT, 16_384..=67_108_864),
    }
    check LogConfig::check
}

impl LogConfig {
    fn check(&self, section: &mut Section<'_>) {
        if let Err(error) = check_filter(&self.filter) {
            section.problem(
                "filter",
                error.to_string(),
                "use a level (error, warn, info, debug, trace) or target=level pairs",
            );
        }
    }
}
