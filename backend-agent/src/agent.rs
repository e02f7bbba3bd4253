//! Gateways as the backend knows them: who exists, and who is connected.

pub mod authorities;
pub mod blocked;
pub mod doors;
pub mod given_up;
pub mod instance;
pub mod manager;
pub mod openings;
pub mod pins;
pub mod postman;
pub mod prober;
pub mod rates;
pub mod reach;
pub mod registry;
pub mod shelf;
pub mod shown;
pub mod signers;
pub mod strays;
