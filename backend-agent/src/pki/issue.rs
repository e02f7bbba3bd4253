//! A new gateway: its row, its certificate and its first secrets, by the one intent that every way of joining uses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use uuid::Uuid;
use viworks_common::catalogue::SHIPPED;
use viworks_common::enrolment::{Home, configuration, identity_file};
use viworks_common::id::{AgentId, GatewayName, Tenant, TrustDomain};
use viworks_common::key::{BindingMode, Identity, MasterKey, Secret};
use viworks_common::pin::{PinSet, SpkiPin};
use viworks_common::time::Timestamp;
use viworks_runtime::clock::Timeline;
use viworks_runtime::config::check_url;
use viworks_runtime::files::Owners;
use viworks_runtime::{files, random, tls};
use zeroize::Zeroizing;

use super::authority::{Authority, Issued, Standby};
use super::{PkiError, Room, Secrecy, private_folder, write_new};
use crate::agent::authorities::Authorities;
use crate::config::{AgentsConfig, Config, KeysConfig};
use crate::data::{
    Actor, AuthorityBundle, GatewayRef, NewCertificate, NewGateway, OwnPins, Store, StoreError,
};

/// How long a gateway's certificate lives when nobody says: a stolen one is worth something for one season at most.
pub const GATEWAY_LIFE: Duration = Duration::from_secs(90 * 24 * 3_600);

/// The generation of a gateway's first key.
pub const FIRST_GENERATION: u32 = 1;

/// Everything that is written for a gateway.
const NAMES: &[&str] = &[
    "gateway.crt",
    "gateway.key",
    "ca.crt",
    "identity.json",
    "gateway.toml",
];

/// The folder of the catalogue.
const CATALOGUE: &str = "commands.d";

/// Marks a folder whose files are not all written, or whose gateway is not registered; holds its id.
const UNFINISHED: &str = ".unfinished";

/// Who joins.
#[derive(Debug, Clone)]
pub struct IssueRequest {
    /// Its name.
    pub name: GatewayName,
    /// Labels for it.
    pub labels: BTreeMap<String, String>,
    /// How long its certificate lives.
    pub life: Duration,
}

/// What the new gateway needs to know about itself.
#[derive(Debug)]
pub struct Material {
    /// Who it is.
    pub identity: Identity,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Its certificate and key.
    pub certificate: Issued,
    /// The authority's certificate, PEM.
    pub authority: String,
    /// The generation of its key.
    pub key_generation: u32,
    /// The key it shares with the backend.
    pub agent_key: Secret,
    /// The ratchet token of epoch 0.
    pub token: Secret,
}

/// What issuing needs: of the files that the configuration names, or as far as a running backend has taken those over.
#[derive(Debug)]
pub struct Office {
    /// The authority.
    pub authority: Arc<Authority>,
    /// The master key.
    pub master: MasterKey,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The pins of the server's key and of its successor.
    pub pins: Vec<SpkiPin>,
    /// The version of their set, before a rotation is begun.
    pub pin_set_version: u64,
    /// What sessions are bound to.
    pub binding: BindingMode,
    /// Where machines reach the door, if there is one and that is known.
    pub door: Option<String>,
}

impl Office {
    /// Opens it by the files of this moment.
    ///
    /// # Errors
    ///
    /// When this backend has no authority, or a file is not what it should be.
    pub fn open(config: &Config) -> Result<Self, PkiError> {
        let authority = open_authority(config)?;
        let pins = server_pins(&config.agents)?;
        let master = load_masters(&config.keys)?;
        Ok(Self::of(config, authority, master, pins))
    }

    /// That of a backend with this configuration, with an authority, a master key and pins that were read before.
    #[must_use]
    pub fn of(
        config: &Config,
        authority: Authority,
        master: MasterKey,
        pins: Vec<SpkiPin>,
    ) -> Self {
        let door = &config.enrolment;
        let door = door.listen.and_then(|_listens| door.public_url.clone());
        Self {
            authority: Arc::new(authority),
            master,
            trust_domain: config.agents.trust_domain.clone(),
            pins,
            pin_set_version: config.agents.pin_set_version,
            binding: config.agents.binding,
            door,
        }
    }

    /// The authorities that a new gateway gets together with its identity, as it would report them; none where they
    /// are more than gateways are given.
    #[must_use]
    pub fn given(&self) -> Option<AuthorityBundle> {
        let handed = self.authority.certificate().as_bytes();
        let handed: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(handed).collect();
        Authorities::of(&handed.ok()?).noted()
    }
}

/// The pins of the server's key and of the one that will follow it.
///
/// # Errors
///
/// When a file is not what it should be.
pub fn server_pins(agents: &AgentsConfig) -> Result<Vec<SpkiPin>, PkiError> {
    let mut pins = Vec::new();
    if let Some(leaf) = tls::load_certificates(&agents.certificate_file)?.first() {
        pins.push(SpkiPin::from_digest(tls::spki_sha256(leaf)?));
    }
    if let Some(next) = &agents.next_key_file {
        // First for what it says of a file that holds no key, or an encrypted one.
        tls::load_key(next)?;
        let standby = Standby::load(&read_secret(next)?);
        pins.push(standby.map_err(|error| unusable(next, &error))?.pin);
    }
    Ok(pins)
}

/// Whether the server's certificate is for this host, as gateways verify it.
///
/// # Errors
///
/// When the file is not what it should be.
pub fn is_for(certificate_file: &Path, host: &str) -> Result<bool, PkiError> {
    let certificates = tls::load_certificates(certificate_file)?;
    let (Some(leaf), Ok(name)) = (certificates.first(), ServerName::try_from(host)) else {
        return Ok(false);
    };
    let leaf = ParsedCertificate::try_from(leaf);
    Ok(leaf.is_ok_and(|leaf| verify_server_name(&leaf, &name).is_ok()))
}

/// The authority of a configuration, by its key or by the program that has it.
///
/// # Errors
///
/// When there is none, or a file is not what it should be.
pub fn open_authority(config: &Config) -> Result<Authority, PkiError> {
    let certificate_file = &config.agents.client_ca_file;
    if let Some(key_file) = &config.keys.ca_key_file {
        return load_authority(certificate_file, key_file);
    }
    let command = signing_program(&config.keys)?;
    // First for what it says of a file that holds no certificate.
    tls::load_certificates(certificate_file)?;
    Authority::asking(&read(certificate_file)?, command)
}

/// The authority of a backend that runs: by the certificates that it took over last, that of the one that signs first.
/// Their file may be half written, or have what a reload refused, and whoever is signed for by an authority that is not
/// in force is let in by nobody. The key, which is kept nowhere else, is read now.
///
/// # Errors
///
/// When there is none, or its key cannot be used or is another one's.
pub fn authority_in_force(config: &Config, certificates: &str) -> Result<Authority, PkiError> {
    let Some(key_file) = &config.keys.ca_key_file else {
        return Authority::asking(certificates, signing_program(&config.keys)?);
    };
    let (key, pin) = signing_key(key_file)?;
    let first = CertificateDer::from_pem_slice(certificates.as_bytes());
    let first = first.map_err(|_unreadable| rcgen::Error::CouldNotParseCertificate)?;
    if pin != SpkiPin::from_digest(tls::spki_sha256(&first)?) {
        return Err(PkiError::NotInForce {
            key: key_file.clone(),
        });
    }
    Authority::load(certificates, &key).map_err(|error| unusable(key_file, &error))
}

/// The program that has the authority's key, with its arguments.
fn signing_program(keys: &KeysConfig) -> Result<&[String], PkiError> {
    let command = &keys.ca_sign_command;
    let program = command.first().ok_or(PkiError::NoAuthority)?;
    // Found out at the start, and not when the first gateway asks.
    files::examine_program(Path::new(program), Owners::RootAndOwn)?;
    Ok(command)
}

/// The authority's private key, PEM, and its pin.
fn signing_key(file: &Path) -> Result<(Zeroizing<String>, SpkiPin), PkiError> {
    // First for what it says of a file that holds no key, or an encrypted one.
    tls::load_key(file)?;
    let key = read_secret(file)?;
    let standby = Standby::load(&key).map_err(|error| unusable(file, &error))?;
    Ok((key, standby.pin))
}

/// Reads the authority: its certificate, the first in its file, and its private key.
///
/// # Errors
///
/// When a file is not what it should be, or one does not fit the other.
pub fn load_authority(certificate_file: &Path, key_file: &Path) -> Result<Authority, PkiError> {
    let certificates = tls::load_certificates(certificate_file)?;
    let (key, pin) = signing_key(key_file)?;
    let first = certificates.first().map(AsRef::as_ref).unwrap_or_default();
    if pin != SpkiPin::from_digest(tls::spki_sha256(first)?) {
        return Err(PkiError::Authority {
            certificate: certificate_file.to_owned(),
            key: key_file.to_owned(),
        });
    }
    Authority::load(&read(certificate_file)?, &key).map_err(|error| unusable(key_file, &error))
}

fn unusable(path: &Path, error: &PkiError) -> PkiError {
    let cause = std::error::Error::source(error);
    PkiError::Key {
        path: path.to_owned(),
        reason: cause.map_or_else(|| error.to_string(), ToString::to_string),
    }
}

/// Reads the master key.
///
/// # Errors
///
/// When the file is missing, readable by others, or holds something else.
pub fn load_master(path: &Path) -> Result<MasterKey, PkiError> {
    Secret::from_hex(&read_secret(path)?)
        .map(MasterKey::new)
        .ok_or_else(|| PkiError::MasterKey {
            path: path.to_owned(),
        })
}

/// Reads the master key, and the previous one where there is one beside it.
///
/// # Errors
///
/// As [`load_master`].
pub fn load_masters(keys: &KeysConfig) -> Result<MasterKey, PkiError> {
    let master = load_master(&keys.master_key_file)?;
    match &keys.previous_master_key_file {
        Some(previous) => Ok(master.beside(&load_master(previous)?)),
        None => Ok(master),
    }
}

fn read(path: &Path) -> Result<String, PkiError> {
    let bytes = files::read_trusted(path, 1024 * 1024)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn read_secret(path: &Path) -> Result<Zeroizing<String>, PkiError> {
    let bytes = files::read_private(path)?;
    Ok(Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Makes what a new gateway needs, and what the store must be told before any of it is worth something. Nothing of its
/// secrets is stored there; they follow from the master key. Which pins are handed to the gateway, the caller knows.
///
/// # Errors
///
/// When the certificate cannot be made.
pub fn make(
    tenant: &Tenant,
    office: &Office,
    request: IssueRequest,
    now: Timestamp,
) -> Result<(Material, NewGateway), PkiError> {
    let agent_id = AgentId::from_uuid(random::uuid_v7(now));
    let identity = Identity {
        tenant: tenant.clone(),
        agent_id,
    };
    let certificate = office.authority.gateway(
        &office.trust_domain,
        &identity,
        &request.name,
        now,
        request.life,
    )?;
    let gateway = NewGateway {
        agent_id,
        name: request.name,
        labels: request.labels,
        key_generation: FIRST_GENERATION,
        pins: None,
        authorities: office.given(),
        certificate: Some(NewCertificate {
            agent_id,
            spki: certificate.facts.spki,
            serial: certificate.facts.serial.clone(),
            not_after: certificate.facts.not_after,
            fingerprint: certificate.facts.fingerprint,
            issuer: Some(certificate.facts.issuer),
        }),
    };
    let agent_key = office.master.agent_key(&identity, FIRST_GENERATION);
    let material = Material {
        agent_key: agent_key.secret().clone(),
        token: office.master.token(&identity, 0),
        key_generation: FIRST_GENERATION,
        authority: office.authority.certificate().to_owned(),
        trust_domain: office.trust_domain.clone(),
        certificate,
        identity,
    };
    Ok((material, gateway))
}

/// Lets a gateway join whose files are written to a folder: the files first, then its row and its key in one
/// transaction, its configuration last. A folder that an interrupted call left is finished or begun again, so that no
/// name is used up by a gateway that nobody has.
///
/// # Errors
///
/// When another gateway has its name and is not revoked, a file is in the way or cannot be written, or the store is
/// away.
pub async fn issue(
    store: &dyn Store,
    tenant: &Tenant,
    office: &Office,
    request: IssueRequest,
    delivery: &Delivery,
    actor: &Actor,
    clock: &Timeline,
) -> Result<AgentId, PkiError> {
    delivery.check()?;
    // Before anything is registered: without them nobody could connect.
    let set = pins_in_force(store, tenant, office, office.pin_set_version, clock.line()).await?;
    let pins = shown_first(office, &set);
    if let Some(agent_id) = delivery.unfinished()? {
        let known = store.gateway(tenant, &GatewayRef::Id(agent_id)).await?;
        if known.is_some_and(|known| known.name == request.name) {
            delivery.complete(office, &pins)?;
            return Ok(agent_id);
        }
        delivery.clear()?;
    }
    let (material, mut gateway) = make(tenant, office, request, clock.wall())?;
    gateway.pins = Some(set);
    let _room = delivery.begin(&material)?;
    let now = clock.line();
    if let Err(error) = store.create_gateway(tenant, gateway, actor, now).await {
        // Nobody else knows of them.
        delivery.clear()?;
        return Err(error.into());
    }
    delivery.complete(office, &pins)?;
    Ok(material.identity.agent_id)
}

/// The pins that a gateway gets, as the door would give them: those that the database has, if a rotation was begun, and
/// the key that is shown. Nobody is told that it is shown here: nothing listens.
pub(super) async fn pins_in_force(
    store: &dyn Store,
    tenant: &Tenant,
    office: &Office,
    version: u64,
    now: Timestamp,
) -> Result<PinSet, StoreError> {
    let configured = PinSet {
        version,
        pins: office.pins.iter().copied().collect(),
    };
    let Some(live) = office.pins.first().copied() else {
        return Ok(configured);
    };
    let known = store
        .pins(tenant, OwnPins { configured, live }, now)
        .await?;
    Ok(known.for_newcomers(&office.pins))
}

/// The pins of a set in the order in which they are written: those of the files as there, and then the others.
fn shown_first(office: &Office, set: &PinSet) -> Vec<SpkiPin> {
    let of_files = office.pins.iter().filter(|pin| set.contains(pin));
    let others = set.pins.iter().filter(|pin| !office.pins.contains(pin));
    of_files.chain(others).copied().collect()
}

/// Where and how the files for a gateway are written.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The folder.
    pub folder: PathBuf,
    /// Where the backend listens for agents, as the gateway sees it.
    pub url: String,
    /// Where the gateway is to run.
    pub home: Home,
}

impl Delivery {
    /// Refuses what the gateway would refuse, before anything is written or registered.
    ///
    /// # Errors
    ///
    /// When its address is none that a gateway can use.
    pub fn check(&self) -> Result<(), PkiError> {
        check_url(&self.url, &["wss"]).map_err(|(message, help)| PkiError::Url { message, help })
    }

    /// The gateway whose files were begun here and not finished.
    fn unfinished(&self) -> Result<Option<AgentId>, PkiError> {
        let path = self.folder.join(UNFINISHED);
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        // An empty one was made in vain: nothing was registered yet.
        Ok(Some(
            read(&path)?
                .trim()
                .parse()
                .unwrap_or(AgentId::from_uuid(Uuid::nil())),
        ))
    }

    /// Removes what was begun.
    fn clear(&self) -> Result<(), PkiError> {
        if self.home != Home::Demo {
            self.clear_catalogue()?;
        }
        // The mark goes last: without it the others would be somebody's.
        for name in NAMES.iter().copied().chain([UNFINISHED]) {
            remove(&self.folder.join(name))?;
        }
        Ok(())
    }

    /// Writes everything but the configuration into a folder that holds nothing of it yet, or nothing.
    fn begin(&self, material: &Material) -> Result<Room, PkiError> {
        let room = private_folder(&self.folder, NAMES)?;
        let agent_id = material.identity.agent_id.to_string();
        let mark = self.folder.join(UNFINISHED);
        write_new(&mark, agent_id.as_bytes(), Secrecy::Secret)?;
        if let Err(error) = self.write(material) {
            // Best effort: what stays is begun again by the next call.
            drop(self.clear());
            return Err(error);
        }
        Ok(room)
    }

    fn write(&self, material: &Material) -> Result<(), PkiError> {
        let path = |name: &str| self.folder.join(name);
        let chain = format!("{}{}", material.certificate.certificate, material.authority);
        write_new(&path("gateway.crt"), chain.as_bytes(), Secrecy::Public)?;
        write_new(
            &path("gateway.key"),
            material.certificate.key.as_bytes(),
            Secrecy::Secret,
        )?;
        write_new(
            &path("ca.crt"),
            material.authority.as_bytes(),
            Secrecy::Public,
        )?;
        let identity = identity_file(
            &material.identity.tenant,
            material.identity.agent_id,
            &material.trust_domain,
            material.key_generation,
            &material.agent_key,
            (0, &material.token),
        );
        write_new(&path("identity.json"), &identity, Secrecy::Secret)?;
        // A demo's gateway fills its own.
        if self.home != Home::Demo {
            self.write_catalogue()?;
        }
        files::sync_folder(&self.folder)?;
        Ok(())
    }

    /// What the gateway may run: the shipped catalogue, where there is none yet. What somebody wrote stays as it is.
    fn write_catalogue(&self) -> Result<(), PkiError> {
        let folder = self.folder.join(CATALOGUE);
        if folder.symlink_metadata().is_ok() {
            return Ok(());
        }
        files::create_private_folder(&folder)?;
        for (name, contents) in SHIPPED {
            write_new(&folder.join(name), contents.as_bytes(), Secrecy::Public)?;
        }
        files::sync_folder(&folder)?;
        Ok(())
    }

    /// Removes what `write_catalogue` wrote and nobody changed.
    fn clear_catalogue(&self) -> Result<(), PkiError> {
        let folder = self.folder.join(CATALOGUE);
        for (name, contents) in SHIPPED {
            let path = folder.join(name);
            // Whole, or as far as an interrupted call came.
            let as_written = files::read_trusted(&path, 1024 * 1024)
                .is_ok_and(|found| contents.as_bytes().starts_with(&found));
            if as_written {
                remove(&path)?;
            }
        }
        // With somebody's files in it, it stays.
        drop(std::fs::remove_dir(&folder));
        Ok(())
    }

    /// The last step, and what to do when it fails: the gateway is registered by then.
    fn complete(&self, office: &Office, pins: &[SpkiPin]) -> Result<(), PkiError> {
        let finished = self.finish(office, pins);
        finished.map_err(|error| PkiError::Unfinished {
            folder: self.folder.clone(),
            source: Box::new(error),
        })
    }

    /// Writes the configuration, with which the gateway can start.
    fn finish(&self, office: &Office, pins: &[SpkiPin]) -> Result<(), PkiError> {
        let path = self.folder.join("gateway.toml");
        remove(&path)?;
        let door = office.door.as_deref();
        let toml = configuration(&self.url, door, pins, office.binding, self.home);
        write_new(&path, toml.as_bytes(), Secrecy::Secret)?;
        remove(&self.folder.join(UNFINISHED))?;
        files::sync_folder(&self.folder)?;
        Ok(())
    }
}

/// Removes a file, where it is there.
pub(super) fn remove(path: &Path) -> Result<(), PkiError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(PkiError::Write {
            path: path.to_owned(),
            source,
        }),
    }
}
