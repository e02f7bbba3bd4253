//! Everything on, or because of, the connection to the backend.

pub mod connection;
