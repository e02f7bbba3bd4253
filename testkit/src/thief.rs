//! A proxy in front of a PostgreSQL server that lets one commit happen and takes its answer away.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::proxy::{Ear, Heard, Proxy};

/// The question of the simple protocol that commits.
const COMMIT: &[u8] = b"COMMIT\0";

/// How statements begin that write outside of a transaction and commit by themselves.
const AT_ONCE: &[u8] = b"WITH held AS MATERIALIZED";

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
                unread: Vec::new(),
                opened: false,
                statements: BTreeMap::new(),
                at_once: false,
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
    /// The beginning of a message whose end has not come.
    unread: Vec<u8>,
    /// The first message has no kind.
    opened: bool,
    /// The texts of prepared statements, by their names.
    statements: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A statement that commits by itself is on its way.
    at_once: bool,
    said: Vec<u8>,
}

impl Ear for Transaction {
    fn heard(&mut self, said: &[u8]) -> Heard {
        self.unread.extend_from_slice(said);
        let mut heard = Heard::Pass;
        while let Some((kind, body)) = self.message() {
            if self.commits(kind, &body) && self.steals() {
                heard = Heard::Last;
            }
        }
        heard
    }
}

impl Transaction {
    /// The next message that is whole.
    fn message(&mut self) -> Option<(u8, Vec<u8>)> {
        let start = usize::from(self.opened);
        let length = self.unread.get(start..start + 4)?;
        let length = u32::from_be_bytes(length.try_into().ok()?);
        let end = start + usize::try_from(length).ok()?;
        let body = self.unread.get(start + 4..end)?.to_vec();
        let kind = if self.opened { self.unread[0] } else { 0 };
        self.opened = true;
        self.unread.drain(..end);
        Some((kind, body))
    }

    /// Whether a message commits what was said.
    fn commits(&mut self, kind: u8, body: &[u8]) -> bool {
        let mut words = body.split(|byte| *byte == 0);
        match kind {
            b'Q' => {
                self.said.extend_from_slice(body);
                body == COMMIT
            }
            // Parse: a name, and a text.
            b'P' => {
                if let (Some(name), Some(text)) = (words.next(), words.next()) {
                    self.statements.insert(name.to_vec(), text.to_vec());
                }
                false
            }
            // Bind: a portal, and the name of a statement.
            b'B' => {
                let text = words.nth(1).and_then(|name| self.statements.get(name));
                self.said.extend_from_slice(body);
                if let Some(text) = text {
                    self.said.extend_from_slice(text);
                    self.at_once = text.starts_with(AT_ONCE);
                }
                false
            }
            b'S' => std::mem::take(&mut self.at_once),
            _ => false,
        }
    }

    fn steals(&mut self) -> bool {
        let steals = self.plan.holds(&self.said) && self.plan.armed.swap(false, Ordering::SeqCst);
        self.said.clear();
        if steals {
            self.plan.stolen.fetch_add(1, Ordering::SeqCst);
        }
        steals
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
