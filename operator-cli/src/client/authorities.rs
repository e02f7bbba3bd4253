//! The authorities that gateways are given.

use viworks_api::AuthorityStatus;

use super::Client;
use crate::failure::Failure;

impl Client {
    /// Which gateways have which.
    pub async fn authorities(&self) -> Result<AuthorityStatus, Failure> {
        self.get("/v1/authorities", &[]).await
    }
}
