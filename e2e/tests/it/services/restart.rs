//! How long a gateway is away while its service is restarted.

use std::time::Duration;

use serde_json::Value;
use viworks_testkit::process::eventually;

use super::{GATEWAY, PATIENCE, Site};

/// From the stop of the service until the gateway is connected again.
const AWAY_MAX: Duration = Duration::from_secs(2);

/// How many restarts are tried, of which the one in the middle counts: others keep this machine busy as well.
const TRIES: usize = 5;

impl Site {
    /// By the times of systemd and its journal, which nobody has to wait for.
    pub(super) async fn a_gateway_whose_service_is_restarted_is_back_in_time(&self) {
        let mut all = Vec::new();
        for _try in 0..TRIES {
            self.machine.shell(&format!("systemctl restart {GATEWAY}"));
            let stopped = self
                .machine
                .property(GATEWAY, "ActiveExitTimestampMonotonic");
            let stopped: u64 = stopped.parse().unwrap();
            let connected = eventually("it is connected again", PATIENCE, async || {
                self.connected_after(stopped)
            })
            .await;
            all.push(Duration::from_micros(connected - stopped));
        }
        all.sort_unstable();
        assert!(all[TRIES / 2] < AWAY_MAX, "it was away for {all:?}");
    }

    /// When it said that it is, in microseconds of the machine's life.
    fn connected_after(&self, stopped: u64) -> Option<u64> {
        let line = format!("journalctl --unit={GATEWAY} --lines=50 --output=json");
        let said = self.machine.shell(&line);
        said.lines().find_map(|line| {
            let record: Value = serde_json::from_str(line).ok()?;
            let at: u64 = record["__MONOTONIC_TIMESTAMP"].as_str()?.parse().ok()?;
            let connected = record["MESSAGE"].as_str()?.contains(": connected epoch=");
            (connected && at > stopped).then_some(at)
        })
    }
}
