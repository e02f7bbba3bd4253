//! Black-box tests of the shipped programs: real processes, real sockets, real disks.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod busy_api;
mod causes;
mod checks;
mod cli;
mod clock;
mod dead_letters;
mod demo;
mod desk;
mod documents;
mod failover;
mod flood;
mod full_disk;
mod host;
mod hostile;
mod instance_faults;
mod instances;
mod limbo;
mod live;
mod local_flood;
mod newcomer;
mod old_database;
mod points;
mod postgres;
mod postgres_faults;
mod queue;
mod queue_faults;
mod reference_agent;
mod refusals;
mod reload;
mod renewals;
mod service_manager;
mod services;
mod shown;
mod silent_backend;
mod site;
mod soak;
mod state;
mod stop;
mod strict;
mod surroundings;
mod targets;
mod unread_api;
mod unread_log;
mod wrong_server;
