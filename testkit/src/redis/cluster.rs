//! A Redis Cluster of several nodes, of which slots move from one to another.

use std::time::Instant;

use super::{Own, Place, START_TIME};

/// All slots of a cluster.
const SLOTS: usize = 16_384;

/// The nodes; gone when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Own>,
}

/// A slot on its way from one node to another.
#[derive(Debug)]
pub struct Move {
    slot: String,
    from: usize,
    to: usize,
}

impl Cluster {
    /// Starts so many nodes that share the slots; `None` where Redis is not installed.
    ///
    /// # Panics
    /// When Redis is installed and they do not become a cluster.
    #[must_use]
    pub fn start(count: usize) -> Option<Self> {
        let nodes: Option<Vec<_>> = (0..count).map(|_node| Own::start_node()).collect();
        Some(Self::of(nodes?))
    }

    fn of(nodes: Vec<Own>) -> Self {
        let own = Self { nodes };
        let count = own.nodes.len();
        for (index, node) in own.nodes.iter().enumerate() {
            let first = index * SLOTS / count;
            let last = (index + 1) * SLOTS / count - 1;
            let words = [
                "CLUSTER",
                "ADDSLOTSRANGE",
                &first.to_string(),
                &last.to_string(),
            ];
            let added = node.place.ask::<String>(&words);
            added.expect("the node takes its slots");
            if index > 0 {
                let port = node.place.port.to_string();
                let bus = node.bus.expect("a node of a cluster has one").to_string();
                let meet = ["CLUSTER", "MEET", "127.0.0.1", &port, &bus];
                let met = own.place(0).ask::<String>(&meet);
                met.expect("the first node meets it");
            }
        }
        own.wait();
        own
    }

    /// Waits until every node has all slots covered and knows every other one.
    #[expect(
        clippy::disallowed_methods,
        reason = "nodes that start can only be asked again and again, here where no runtime is"
    )]
    fn wait(&self) {
        let known = format!("cluster_known_nodes:{}", self.nodes.len());
        let begun = Instant::now();
        for node in &self.nodes {
            loop {
                let info = node.place.ask::<String>(&["CLUSTER", "INFO"]);
                let info = info.expect("the node answers");
                if info.contains("cluster_state:ok") && info.contains(&known) {
                    break;
                }
                assert!(begun.elapsed() < START_TIME, "no cluster: {info}");
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
    }

    /// Where a node listens.
    #[must_use]
    pub fn place(&self, node: usize) -> Place {
        self.nodes[node].place
    }

    /// kill -9 of a node.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts it again, with the part that it had.
    ///
    /// # Panics
    /// When it does not come back.
    pub fn start_again(&mut self, node: usize) {
        self.nodes[node].start_again();
        self.wait();
    }

    /// The node that has the slot of a key.
    ///
    /// # Panics
    /// When none has it.
    #[must_use]
    pub fn owner(&self, key: &str) -> usize {
        let has = |node: &Own| {
            let answer = node.place.ask::<redis::Value>(&["EXISTS", key]);
            answer.is_ok()
        };
        let owner = self.nodes.iter().position(has);
        owner.expect("a node has the slot")
    }

    /// Begins to move the slot of a key to another node: what is not there is looked for at the new one from here on.
    ///
    /// # Panics
    /// When the nodes refuse.
    #[must_use]
    pub fn begin_move(&self, key: &str, to: usize) -> Move {
        let from = self.owner(key);
        let slot = self.place(0).ask::<u16>(&["CLUSTER", "KEYSLOT", key]);
        let slot = slot.expect("the node says it").to_string();
        self.set_slot(to, &slot, "IMPORTING", from);
        self.set_slot(from, &slot, "MIGRATING", to);
        Move { slot, from, to }
    }

    /// Moves what is there, and tells everybody.
    ///
    /// # Panics
    /// When the nodes refuse.
    pub fn end_move(&self, moving: &Move) {
        let Move { slot, from, to } = moving;
        let source = self.place(*from);
        let words = ["CLUSTER", "GETKEYSINSLOT", slot, "1000"];
        let keys: Vec<String> = source.ask(&words).expect("the node says it");
        if !keys.is_empty() {
            let port = self.place(*to).port.to_string();
            let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            words.extend(keys.iter().map(String::as_str));
            let moved = source.ask::<String>(&words);
            moved.expect("the keys are moved");
        }
        // Those that lose and gain it first.
        let others = (0..self.nodes.len()).filter(|node| node != from && node != to);
        for node in [*to, *from].into_iter().chain(others) {
            self.set_slot(node, slot, "NODE", *to);
        }
    }

    fn set_slot(&self, node: usize, slot: &str, how: &str, other: usize) {
        let id: String = self
            .place(other)
            .ask(&["CLUSTER", "MYID"])
            .expect("the node says who it is");
        let words = ["CLUSTER", "SETSLOT", slot, how, &id];
        let set = self.place(node).ask::<String>(&words);
        set.expect("the node does it");
    }
}
