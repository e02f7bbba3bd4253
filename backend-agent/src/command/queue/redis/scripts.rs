//! What is done inside Redis in one step, and what the keys are called.
//!
//! The keys of one gateway share a hash tag, so that a cluster keeps them together. `PUBLISH` reaches every node of a
//! cluster, from inside a script as well.

use std::sync::LazyLock;

use redis::Script;
use viworks_common::id::InstanceId;

use super::super::QueueKey;

/// What the entries of a stream are read by.
const GROUP: &str = "d";

/// The stream with a gateway's hints.
pub(super) fn stream(key: &QueueKey) -> String {
    format!("vw:{{{}:{}}}:q", key.tenant, key.agent_id)
}

/// The instance that has a gateway's session, and since which epoch: `instance|epoch`.
pub(super) fn route(key: &QueueKey) -> String {
    format!("vw:{{{}:{}}}:r", key.tenant, key.agent_id)
}

/// The channel by which an instance is called.
pub(super) fn channel(instance: InstanceId) -> String {
    format!("{CHANNEL}{instance}")
}

/// Where such a name begins.
pub(super) const CHANNEL: &str = "vw:i:";

/// The channel on which instances say which runs are watched: `run instance`.
pub(super) const WATCH_CHANNEL: &str = "vw:w";

/// Where the channels begin on which changes of a run are told.
pub(super) const RUN_CHANNEL: &str = "vw:o:";

/// Where an instance sees whether what it wrote is still there.
pub(super) fn beat(instance: InstanceId) -> String {
    format!("vw:{{i:{instance}}}:b")
}

/// Hints are of no use any more once the deadline of any command has passed.
pub(super) const HINTS_LAST_SECONDS: u64 = 8 * 24 * 3_600;

/// Adds hints unless they are too many, and calls the instance with the session. Streams are never trimmed.
///
/// `KEYS`: stream, route. `ARGV`: bound, own instance, channel prefix, message, seconds to keep, then the hints.
/// Answers -1: refused; 0: nobody has a session; 1: another instance was called; 2: the session is our own.
pub(super) static OFFER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&with_group(
        r"
local route = redis.call('GET', KEYS[2])
local holder = route and string.match(route, '^([^|]*)|')
if holder == ARGV[2] then return 2 end
local full = redis.call('XLEN', KEYS[1]) + #ARGV - 5 > tonumber(ARGV[1])
if not full then
  if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('XGROUP', 'CREATE', KEYS[1], '$GROUP', '0', 'MKSTREAM')
  end
  for i = 6, #ARGV do redis.call('XADD', KEYS[1], '*', 'c', ARGV[i]) end
  redis.call('EXPIRE', KEYS[1], ARGV[5])
end
if holder then redis.call('PUBLISH', ARGV[3] .. holder, ARGV[4]) end
if full then return -1 end
return holder and 1 or 0
",
    ))
});

/// Hands out hints: first those that somebody took and left for so long, then new ones. What was deleted beneath a
/// reader is nothing to hand out: the database is asked in any case.
///
/// `KEYS`: stream. `ARGV`: consumer, most hints, milliseconds of being left. Answers entry, command, entry, command …
pub(super) static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&with_group(
        r"
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
local found, left = {}, tonumber(ARGV[2])
local function add(entries)
  for _, entry in ipairs(entries) do
    if entry and entry[2] then
      found[#found + 1] = entry[1]
      found[#found + 1] = entry[2][2]
      left = left - 1
    end
  end
end
local claimed = redis.pcall('XAUTOCLAIM', KEYS[1], '$GROUP', ARGV[1], ARGV[3], '0', 'COUNT', left)
if claimed.err then
  if not string.find(claimed.err, 'NOGROUP', 1, true) then return claimed end
  redis.call('XGROUP', 'CREATE', KEYS[1], '$GROUP', '0')
else
  add(claimed[2])
end
if left > 0 then
  local read = redis.call('XREADGROUP', 'GROUP', '$GROUP', ARGV[1], 'COUNT', left, 'STREAMS', KEYS[1], '>')
  if read then add(read[1][2]) end
end
return found
",
    ))
});

/// Removes hints that were dealt with, and the stream once it is empty. `KEYS`: stream. `ARGV`: entries.
pub(super) static DONE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&with_group(
        r"
redis.call('XACK', KEYS[1], '$GROUP', unpack(ARGV))
redis.call('XDEL', KEYS[1], unpack(ARGV))
if redis.call('XLEN', KEYS[1]) == 0 then redis.call('DEL', KEYS[1]) end
return 0
",
    ))
});

/// Says who has the session, unless a later one is known: what is written late must not win. Epochs are compared as
/// text, because numbers of Lua are not exact that far.
///
/// `KEYS`: route. `ARGV`: instance, epoch, milliseconds. Answers 1: said; 0: a later one is known.
pub(super) static ATTACH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local route = redis.call('GET', KEYS[1])
local known = route and string.match(route, '|(%d+)$')
if known and (#known > #ARGV[2] or (#known == #ARGV[2] and known > ARGV[2])) then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. '|' .. ARGV[2], 'PX', ARGV[3])
return 1
",
    )
});

/// Whether what this instance wrote is still there, which it writes again. `KEYS`: beat. `ARGV`: milliseconds.
pub(super) static BEAT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local known = redis.call('EXISTS', KEYS[1])
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
return known
",
    )
});

fn with_group(text: &str) -> String {
    text.replace("$GROUP", GROUP)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use viworks_common::id::{AgentId, Tenant};

    use super::*;

    #[test]
    fn the_keys_of_a_gateway_are_in_one_slot_of_a_cluster() {
        let key = QueueKey {
            tenant: Tenant::default_tenant(),
            agent_id: AgentId::from_uuid(Uuid::from_u128(7)),
        };
        let tag = "{default:00000000-0000-0000-0000-000000000007}";
        assert_eq!(stream(&key), format!("vw:{tag}:q"));
        assert_eq!(route(&key), format!("vw:{tag}:r"));
    }
}
