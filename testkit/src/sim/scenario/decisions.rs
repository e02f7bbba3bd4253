//! What operators decide about identities in one world: who of two holders keeps one, and when there is another agent
//! key.

use super::super::random::Random;
use super::Storage;

/// How much of it one seed draws. It draws by chance of its own: a world in which nothing is decided is to be what it
/// was before anybody could.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decisions {
    /// Whether an operator says which holder keeps an identity. Otherwise the one that is refused is given up.
    pub resolves: bool,
    /// How often that happens while things still go wrong.
    pub resolutions: u64,
    /// How often another machine takes the place of all that hold an identity.
    pub replacements: u64,
    /// Copies of gateways beyond the first one.
    pub copies: u64,
    /// How often another agent key is asked for.
    pub rotations: u64,
}

impl Decisions {
    pub(super) fn draw(fate: &mut Random, storage: Storage) -> Self {
        let resolves = match storage {
            Storage::GatewayCloned => fate.once_in(3),
            Storage::GatewayRestored => fate.once_in(4),
            Storage::Sound | Storage::BackendRestored => false,
        };
        let is_cloned = storage == Storage::GatewayCloned;
        let rotates = match storage {
            Storage::GatewayCloned => fate.once_in(2) && resolves,
            // A disk that went back to before a key that was used is nobody's fork: such a machine is issued anew.
            Storage::GatewayRestored => false,
            Storage::Sound | Storage::BackendRestored => fate.once_in(6),
        };
        let some = |fate: &mut Random, wanted: bool| u64::from(wanted) * (1 + fate.below(3));
        Self {
            resolves,
            resolutions: some(fate, resolves),
            replacements: u64::from(fate.once_in(4) && resolves),
            copies: u64::from(fate.once_in(3) && resolves && is_cloned),
            rotations: some(fate, rotates),
        }
    }
}
