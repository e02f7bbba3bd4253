//! Tests of the pure core through its public interface.

#![expect(clippy::unwrap_used, reason = "a test whose preparation fails panics")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test looks at the few variants it is about"
)]

mod bodies;
mod credit;
mod documents;
mod hostile;
mod legality;
mod life_cycle;
mod opening;
mod pair;
mod rekeying;
mod strict;
mod support;
mod trust;
mod vectors;
