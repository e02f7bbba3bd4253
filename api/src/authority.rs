//! Authorities: which of them gateways are given, which gateways have them, and whose certificates they signed.

use serde::{Deserialize, Serialize};
use viworks_common::id::{AgentId, GatewayName};
use viworks_common::time::Timestamp;

use crate::page::Kind;

/// A gateway that does not have an authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuthorityGateway {
    /// Its id.
    pub id: AgentId,
    /// Its name.
    pub name: GatewayName,
    /// SHA-256 of the bundle that it has, 64 hexadecimal digits, by its last report, or before its first session that
    /// which it enrolled with; none where neither is known, and where its agent takes none.
    pub bundle: Option<String>,
    /// Since when it has that.
    pub since: Option<Timestamp>,
    /// Whether it is connected.
    pub online: bool,
    /// When it was last heard.
    pub last_seen: Option<Timestamp>,
}

/// One authority that gateways are given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Authority {
    /// SHA-256 of its certificate, 64 hexadecimal digits.
    pub authority: String,
    /// Whose it is, as the certificate says.
    pub subject: String,
    /// When it ends.
    pub not_after: Option<Timestamp>,
    /// Gateways that have it.
    pub known_to: u64,
    /// Gateways that do not, and are not connected.
    pub missing_off: u64,
    /// Gateways that do not: the first 50.
    pub missing: Vec<AuthorityGateway>,
    /// Gateways that would be refused if it alone were taken out of `client_ca_file`, because it signed the certificate
    /// with which they get in. A backend of an earlier version does not say.
    #[serde(default)]
    pub needed_by: Option<u64>,
    /// Those of them that are not connected.
    #[serde(default)]
    pub needed_by_off: Option<u64>,
    /// The first 50 of them, where there is more than one authority.
    #[serde(default)]
    pub needed_by_first: Vec<GatewayName>,
}

/// What is known of the authorities that signed the gateways' own certificates, beside those that gateways are given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuthoritySigners {
    /// Gateways that are refused, because an authority that is not in `client_ca_file` signed the certificate that is
    /// registered.
    pub cut_off: u64,
    /// The first 50 of them.
    pub cut_off_first: Vec<GatewayName>,
    /// Gateways of which it is not known until each next connects which authority signed the certificate.
    pub unknown: u64,
    /// The first 50 of them.
    pub unknown_first: Vec<GatewayName>,
}

/// Which authorities gateways are given, and who has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuthorityStatus {
    /// What this is.
    pub kind: Kind,
    /// SHA-256 of the bundle that gateways are given, 64 hexadecimal digits.
    pub bundle: String,
    /// Gateways that are not revoked.
    pub gateways: u64,
    /// Those of them that lack one of these.
    pub lacking: u64,
    /// Those of them that lack one and are not connected.
    pub lacking_off: u64,
    /// The authorities.
    pub authorities: Vec<Authority>,
    /// The other backends of the database that give gateways another bundle.
    #[serde(default)]
    pub backends: Vec<AuthorityBackend>,
    /// Whose own certificates are of none of these, or may be. A backend of an earlier version does not say.
    #[serde(default)]
    pub signers: Option<AuthoritySigners>,
}

/// A backend that gives gateways other authorities than the one that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuthorityBackend {
    /// Its machine and process.
    pub name: String,
    /// SHA-256 of the bundle that it gives, 64 hexadecimal digits.
    pub bundle: String,
}
