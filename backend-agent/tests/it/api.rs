//! The operators' API, through its real router over a real store.

mod audit;
mod authorities;
mod bad_input;
mod contract;
mod dead_letters;
mod declared;
mod examples;
mod follow;
mod forks;
mod full_disk;
mod guards;
mod harness;
mod keys;
mod late;
mod pins;
mod reads;
mod revoke;
mod rotate;
mod schema;
mod serving;
mod submit;
