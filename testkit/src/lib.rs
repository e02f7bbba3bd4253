//! Never shipped: what tests share. Throw-away systems on free ports, the simulation, conformance suites.

pub mod binaries;
pub mod corpus;
pub mod deployment;
pub mod door;
pub mod dump;
pub mod few_files;
pub mod foreign;
pub mod gateway;
pub mod held_database;
pub mod http;
mod keeper;
pub mod machine;
pub mod network;
pub mod nginx;
pub mod packages;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod rogue;
pub mod sim;
pub mod size;
pub mod small_disk;
pub mod stand_in;
pub mod terminal;
pub mod thief;
pub mod websocket;
