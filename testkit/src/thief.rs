//! A proxy in front of a PostgreSQL server that lets one commit happen and takes its answer away.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::proxy::{Ear, Heard, Proxy};

/// The message of the simple protocol that commits.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

/// The proxy with what it looks for.
#[derive(Debug)]
pub struct Thief {
    proxy: Proxy,
    plan: Arc<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    armed: AtomicBool,
    wanted: Mutex<String>,
    stolen: AtomicU64,
}

impl Thief {
    /// Starts it before the server on `port` of this machine.
    ///
    /// # Errors
    /// When there is no port for it.
    pub async fn before(port: u16) -> io::Result<Self> {
        let plan = Arc::<Plan>::default();
        let shared = Arc::clone(&plan);
        let ears = move || -> Box<dyn Ear> {
            Box::new(Transaction {
                plan: Arc::clone(&shared),
                said: Vec::new(),
            })
        };
        let proxy = Proxy::listening(format!("127.0.0.1:{port}"), ears).await?;
        Ok(Self { proxy, plan })
    }

    /// Where clients connect.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.proxy.port()
    }

    /// Takes away the answer to the next commit.
    pub fn arm(&self) {
        self.arm_for("");
    }

    /// Takes away the answer to the next commit of a transaction in which this text was said.
    pub fn arm_for(&self, text: &str) {
        let mut wanted = self
            .plan
            .wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        text.clone_into(&mut wanted);
        drop(wanted);
        self.plan.armed.store(true, Ordering::SeqCst);
    }

    /// How many answers it has taken.
    #[must_use]
    pub fn stolen(&self) -> u64 {
        self.plan.stolen.load(Ordering::SeqCst)
    }
}

/// What one client has said since its last commit.
struct Transaction {
    plan: Arc<Plan>,
    said: Vec<u8>,
}

impl Ear for Transaction {
    fn heard(&mut self, said: &[u8]) -> Heard {
        self.said.extend_from_slice(said);
        if !said.ends_with(COMMIT) {
            return Heard::Pass;
        }
        let steals = self.plan.holds(&self.said) && self.plan.armed.swap(false, Ordering::SeqCst);
        self.said.clear();
        if !steals {
            return Heard::Pass;
        }
        self.plan.stolen.fetch_add(1, Ordering::SeqCst);
        Heard::Last
    }
}

impl Plan {
    /// Whether the wanted text was said.
    fn holds(&self, transaction: &[u8]) -> bool {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.is_empty()
            || transaction
                .windows(wanted.len())
                .any(|said| said == wanted.as_bytes())
    }
}
