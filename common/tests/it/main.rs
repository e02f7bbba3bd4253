//! Tests of the pure core through its public interface.

mod documents;
mod hostile;
mod legality;
mod pair;
mod support;
mod vectors;
