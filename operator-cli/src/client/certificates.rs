//! The certificates of one gateway.

use reqwest::Method;
use viworks_api::{CertificateList, CertificateRef, CertificateRevoked, RevokeRequest};

use super::{ALL, Client, segment};
use crate::failure::Failure;

impl Client {
    /// The latest certificates of a gateway, the last one first.
    pub async fn certificates(&self, gateway: &str) -> Result<CertificateList, Failure> {
        let path = format!("/v1/gateways/{}/certificates", segment(gateway)?);
        self.list(&path, &[], ALL).await
    }

    /// Revokes one of them.
    pub async fn revoke_certificate(
        &self,
        gateway: &str,
        certificate: &CertificateRef,
        reason: &str,
    ) -> Result<CertificateRevoked, Failure> {
        let path = format!(
            "/v1/gateways/{}/certificates/{certificate}/revoke",
            segment(gateway)?
        );
        let reason = reason.to_owned();
        let builder = self.request(Method::POST, &path);
        let revoked = self.answer(builder.json(&RevokeRequest { reason })).await;
        let unknown =
            "whether it was revoked is not known: revoke it again, which changes nothing more";
        revoked.map_err(|failure: Failure| failure.if_unanswered(unknown))
    }
}
