//! Judges catalogues one after another, on a thread that yields to all others, and stops where nobody waits any more.
//!
//! A catalogue of a few hundred bytes can name thousands of patterns, and each must be compiled to find the one that is
//! wrong. So however many gateways report at once, one catalogue is judged at a time, and beside it one that names few
//! patterns, as most do: those who report much wait for each other. A gateway that has gone, or has reported another
//! meanwhile, gives its turn back. What names no pattern takes no longer than it took to be read: it waits for nobody
//! and needs no thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::nice;
use tokio::sync::{Semaphore, oneshot};
use viworks_common::catalogue::{ArgumentType, CatalogueEntry, RefusedEntry, take_report_while};
use viworks_runtime::blocking;

/// How long one catalogue may take. The largest takes seconds; what takes longer is given up, not waited for.
const JUDGING_TIME: Duration = Duration::from_secs(60);

/// Patterns of a catalogue that is judged soon.
const FEW_PATTERNS: usize = 64;

/// How much the thread yields: as far as it goes.
const NICE: i32 = 19;

/// The entries as they are kept, and which of them were refused.
pub type Judged = (Vec<CatalogueEntry>, Vec<RefusedEntry>);

/// Whose turn it is. Clones share it.
#[derive(Debug, Clone)]
pub struct Judge {
    /// Of catalogues with few patterns.
    short: Arc<Semaphore>,
    /// Of all others.
    long: Arc<Semaphore>,
}

/// Tells the thread that nobody waits any more, when it is dropped.
struct Given(Arc<AtomicBool>);

impl Drop for Given {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Judge {
    /// Nothing is judged yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            short: Arc::new(Semaphore::new(1)),
            long: Arc::new(Semaphore::new(1)),
        }
    }

    /// Judges `entries` when it is their turn and sends what came of it; nothing when it took too long. Ends early when
    /// nobody receives it any more.
    pub async fn run(self, entries: Vec<CatalogueEntry>, mut verdict: oneshot::Sender<Judged>) {
        let judged = tokio::select! {
            biased;
            () = verdict.closed() => return,
            judged = self.judge(entries) => judged,
        };
        if let Some(judged) = judged {
            drop(verdict.send(judged));
        }
    }

    async fn judge(&self, entries: Vec<CatalogueEntry>) -> Option<Judged> {
        let turn = match patterns(&entries) {
            0 => return take_report_while(entries, || true),
            1..=FEW_PATTERNS => &self.short,
            _ => &self.long,
        };
        let Ok(turn) = Arc::clone(turn).acquire_owned().await else {
            // It is never closed.
            return None;
        };
        let given_up = Arc::new(AtomicBool::new(false));
        let _given = Given(Arc::clone(&given_up));
        let work = move || {
            // Of this thread only; one that may not yield judges all the same.
            let _refused = nice(NICE).err();
            let judged = take_report_while(entries, || !given_up.load(Ordering::Relaxed));
            // The turn lasts as long as the work: whoever gives it up does not stop the thread at once.
            (judged, turn)
        };
        match blocking::call("catalogue", JUDGING_TIME, work).await {
            Ok((judged, _turn)) => judged,
            Err(error) => {
                tracing::warn!(%error, "a gateway's catalogue could not be judged");
                None
            }
        }
    }
}

/// How many patterns have to be compiled.
fn patterns(entries: &[CatalogueEntry]) -> usize {
    let arguments = entries.iter().flat_map(|entry| &entry.arguments);
    let patterns =
        arguments.filter(|argument| matches!(argument.value, ArgumentType::String { .. }));
    patterns.count()
}

impl Default for Judge {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use viworks_common::catalogue::{Argument, Risk};
    use viworks_runtime::lifecycle::Lifecycle;

    use super::*;

    fn costly() -> Vec<CatalogueEntry> {
        let arguments = (0..32)
            .map(|number| Argument {
                name: format!("a{number}").parse().unwrap(),
                description: String::new(),
                value: ArgumentType::String {
                    pattern: "(?:[a-z]{1,95}|[0-9]{1,95})".to_owned(),
                },
                default: None,
            })
            .collect::<Vec<_>>();
        (0..64)
            .map(|number| CatalogueEntry {
                name: format!("a.c{number}").parse().unwrap(),
                title: "a title".to_owned(),
                risk: Risk::Read,
                idempotent: true,
                arguments: arguments.clone(),
                timeout_ms: 1_000,
                output_bytes_max: 1_000,
                unavailable: None,
            })
            .collect()
    }

    /// Until so many threads judge a catalogue. They may be quick, so nothing rests between two looks.
    async fn until_judged_by(wanted: Option<usize>) {
        let threads = || blocking::under_way().get("catalogue").copied();
        let comes = async {
            while threads() != wanted {
                tokio::task::yield_now().await;
            }
        };
        let come = tokio::time::timeout(Duration::from_secs(20), comes).await;
        assert!(
            come.is_ok(),
            "judged by {:?} and never by {wanted:?}",
            threads()
        );
    }

    #[tokio::test]
    async fn a_catalogue_with_few_patterns_does_not_wait_for_those_with_many() {
        let judge = Judge::new();
        let large = judge.long.acquire().await.unwrap();
        let mut few = costly();
        few.truncate(2);
        let (verdict, answer) = oneshot::channel();
        judge.clone().run(few, verdict).await;
        assert_eq!(answer.await.unwrap().0.len(), 2);
        let (verdict, mut answer) = oneshot::channel();
        let mut waiting = Box::pin(judge.clone().run(costly(), verdict));
        tokio::select! {
            biased;
            () = &mut waiting => panic!("two are judged at once"),
            () = tokio::task::yield_now() => {}
        }
        assert!(answer.try_recv().is_err());
        drop(large);
    }

    #[tokio::test]
    async fn a_catalogue_without_patterns_waits_for_nobody() {
        let judge = Judge::new();
        let _short = judge.short.acquire().await.unwrap();
        let _long = judge.long.acquire().await.unwrap();
        let mut plain = costly();
        for entry in &mut plain {
            entry.arguments.clear();
        }
        let (verdict, mut answer) = oneshot::channel();
        let mut judged = Box::pin(judge.clone().run(plain.clone(), verdict));
        tokio::select! {
            biased;
            () = &mut judged => {}
            () = tokio::task::yield_now() => panic!("it waits"),
        }
        assert_eq!(answer.try_recv().unwrap(), (plain, Vec::new()));
    }

    #[tokio::test]
    async fn whoever_has_gone_gives_the_turn_back_and_leaves_no_work_behind() {
        let judge = Judge::new();
        let lifecycle = Lifecycle::new();
        let mut tasks = Vec::new();
        for _gone in 0..20 {
            let (verdict, gone) = oneshot::channel();
            drop(gone);
            tasks.push(lifecycle.spawn("gone", judge.clone().run(costly(), verdict)));
        }
        let (verdict, answer) = oneshot::channel();
        let waiting = lifecycle.spawn("goes", judge.clone().run(costly(), verdict));
        // It has begun, and then its gateway goes.
        until_judged_by(Some(1)).await;
        drop(answer);
        waiting.await.unwrap();
        until_judged_by(None).await;
        for task in tasks {
            task.await.unwrap();
        }
        let (verdict, answer) = oneshot::channel();
        judge.run(Vec::new(), verdict).await;
        assert_eq!(answer.await.unwrap(), (Vec::new(), Vec::new()));
    }
}
