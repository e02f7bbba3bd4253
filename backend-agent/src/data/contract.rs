//! The store contract by feature: what callers ask of the system of record.

mod authorities;
mod dispatch;
mod enrolment;
mod gateways;
mod instances;
mod pins;
mod runs;
mod sessions;
mod telemetry;
mod upkeep;

pub use authorities::AuthorityStore;
pub use dispatch::DispatchStore;
pub use enrolment::EnrolmentStore;
pub use gateways::GatewayStore;
pub use instances::InstanceStore;
pub use pins::PinStore;
pub use runs::RunStore;
pub use sessions::SessionStore;
pub use telemetry::TelemetryStore;
pub use upkeep::UpkeepStore;

/// The system of record. Used as `Arc<dyn Store>`, which has all that its parts have.
pub trait Store:
    AuthorityStore
    + DispatchStore
    + EnrolmentStore
    + GatewayStore
    + InstanceStore
    + PinStore
    + RunStore
    + SessionStore
    + TelemetryStore
    + UpkeepStore
{
}

impl<
    T: AuthorityStore
        + DispatchStore
        + EnrolmentStore
        + GatewayStore
        + InstanceStore
        + PinStore
        + RunStore
        + SessionStore
        + TelemetryStore
        + UpkeepStore,
> Store for T
{
}
