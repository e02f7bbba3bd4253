//! The gathering reader: takes the reads that wait, carries out those of one kind as one, answers everybody.

use std::sync::Arc;

use sqlx::SqliteConnection;
use tokio::sync::{Mutex, mpsc};

use super::job::{Job, Verdict, gather};
use super::readers::Readers;
use crate::lifecycle::Lifecycle;

pub(super) struct GatheringReader {
    readers: Arc<Readers>,
    queue: mpsc::Receiver<Box<dyn Job>>,
    turn: Arc<Mutex<()>>,
    batch_jobs_max: usize,
}

impl GatheringReader {
    pub(super) const fn new(
        readers: Arc<Readers>,
        queue: mpsc::Receiver<Box<dyn Job>>,
        turn: Arc<Mutex<()>>,
        batch_jobs_max: usize,
    ) -> Self {
        Self {
            readers,
            queue,
            turn,
            batch_jobs_max,
        }
    }

    pub(super) async fn run(mut self, lifecycle: Lifecycle) {
        loop {
            let first = tokio::select! {
                () = lifecycle.stopping() => return,
                first = self.queue.recv() => first,
            };
            let Some(first) = first else { return };
            // While somebody else has the turn, more of them come together here.
            let turn = Arc::clone(&self.turn).lock_owned().await;
            let mut batch = Vec::new();
            gather(&mut batch, first);
            for _job in 1..self.batch_jobs_max {
                match self.queue.try_recv() {
                    Ok(job) => gather(&mut batch, job),
                    Err(_empty) => break,
                }
            }
            self.answer(batch).await;
            drop(turn);
        }
    }

    async fn answer(&self, batch: Vec<Box<dyn Job>>) {
        match self.readers.lend().await {
            Ok(mut reader) => {
                for job in batch {
                    read(&mut reader, job).await;
                }
            }
            Err(error) => {
                for job in batch {
                    job.answer(Err(error.clone()));
                }
            }
        }
    }
}

/// Answers what waits for one job. Where the whole failed, each question is asked by itself: one that cannot be answered
/// spoils no other.
pub(super) async fn read(connection: &mut SqliteConnection, mut job: Box<dyn Job>) {
    if job.run(connection, false).await != Verdict::Split {
        return job.answer(Ok(()));
    }
    for mut part in job.split() {
        part.run(connection, false).await;
        part.answer(Ok(()));
    }
}
