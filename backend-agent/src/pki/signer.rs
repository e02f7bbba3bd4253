//! An authority whose key is elsewhere: a program is given what is to be signed, and answers the signature.

use std::fmt;
use std::io::{Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData, SignatureAlgorithm,
    SigningKey,
};
use rustix::process::{Pid, Signal, kill_process_group};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{AlgorithmIdentifier, alg_id};
use viworks_common::text;
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_runtime::files::{self, Owners};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, Oid};

/// How long a signature may take, the wait for a turn included.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How long whoever asks from elsewhere waits for it.
pub const WAIT: Duration = ANSWER_TIME.saturating_add(Duration::from_secs(5));

/// The most that is read of an answer: signatures have a hundred bytes or less.
const ANSWER_BYTES_MAX: u64 = 16_384;

/// The most that is kept of what the program says of a failure.
const SAID_BYTES_MAX: u64 = 512;

/// Programs that run at a time; more wait for their turn.
const AT_ONCE: usize = 4;

/// A key that such a program has.
pub(super) struct AskedKey {
    command: Vec<String>,
    /// The public key as it stands in the authority's certificate.
    public: Vec<u8>,
    kind: &'static Kind,
    /// Why the last signature did not come.
    failed: Mutex<Option<Unsigned>>,
}

/// Why a signature did not come.
#[derive(Debug)]
pub(super) enum Unsigned {
    /// None comes before somebody puts this right.
    Lasting(String),
    /// The program failed or was late, as where the module that has the key is away: the next one may come.
    Attempt(String),
}

/// A kind of key that such a program may have.
struct Kind {
    curve: Oid<'static>,
    algorithm: &'static SignatureAlgorithm,
    key: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
}

static KINDS: [Kind; 2] = [
    Kind {
        curve: OID_EC_P256,
        algorithm: &PKCS_ECDSA_P256_SHA256,
        key: alg_id::ECDSA_P256,
        signature: alg_id::ECDSA_SHA256,
    },
    Kind {
        curve: OID_NIST_EC_P384,
        algorithm: &PKCS_ECDSA_P384_SHA384,
        key: alg_id::ECDSA_P384,
        signature: alg_id::ECDSA_SHA384,
    },
];

/// What signs for an authority.
#[derive(Debug)]
pub(super) enum Signer {
    /// Its key is in a file here.
    Held(Box<KeyPair>),
    /// A program has it.
    Asked(AskedKey),
}

impl Signer {
    /// Why the last signature did not come.
    pub(super) fn failed(&self) -> Option<Unsigned> {
        match self {
            Self::Held(_) => None,
            Self::Asked(key) => lock(&key.failed).take(),
        }
    }
}

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        match self {
            Self::Held(key) => key.der_bytes(),
            Self::Asked(key) => &key.public,
        }
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self {
            Self::Held(key) => PublicKeyData::algorithm(&**key),
            Self::Asked(key) => key.kind.algorithm,
        }
    }
}

impl SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match self {
            Self::Held(key) => key.sign(message),
            Self::Asked(key) => key.sign(message).map_err(|why| {
                *lock(&key.failed) = Some(why);
                rcgen::Error::RemoteKeyError
            }),
        }
    }
}

impl fmt::Debug for AskedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AskedKey")
            .field("command", &self.command)
            .finish_non_exhaustive()
    }
}

impl AskedKey {
    /// The key of an authority's certificate (DER), which this command signs with.
    ///
    /// # Errors
    ///
    /// When the certificate cannot be read, or is for another kind of key.
    pub(super) fn of(certificate: &[u8], command: &[String]) -> Result<Self, String> {
        let (_rest, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|error| format!("its certificate cannot be read: {error}"))?;
        let key = &parsed.tbs_certificate.subject_pki;
        let curve = key.algorithm.parameters.as_ref();
        let curve = curve.and_then(|curve| curve.as_oid().ok());
        let is_elliptic = key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY;
        let kind = KINDS
            .iter()
            .find(|kind| is_elliptic && curve.as_ref() == Some(&kind.curve));
        let kind =
            kind.ok_or("its certificate is for another kind of key than ECDSA P-256 or P-384")?;
        Ok(Self {
            command: command.to_vec(),
            public: key.subject_public_key.data.to_vec(),
            kind,
            failed: Mutex::default(),
        })
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unsigned> {
        let [program, arguments @ ..] = &*self.command else {
            return Err(Unsigned::Lasting("no program is named".to_owned()));
        };
        let end = SystemClock.now().saturating_add(ANSWER_TIME);
        let late = || Unsigned::Attempt("others had every turn for 10 seconds".to_owned());
        let _turn = Turn::wait(end).ok_or_else(late)?;
        // Whoever could exchange it would sign.
        files::examine_program(Path::new(program), Owners::RootAndOwn)
            .map_err(|error| Unsigned::Lasting(error.cause()))?;
        let signature = ask(program, arguments, message, end).map_err(Unsigned::Attempt)?;
        if !self.is_signed(message, &signature) {
            return Err(Unsigned::Lasting(format!(
                "what it answered is no signature of the authority's key ({} bytes): it must be ECDSA in DER over what it \
                 is given, with {}; that key is the one of the first certificate in client_ca_file as it was read last, \
                 so send SIGHUP where another one is first there by now",
                signature.len(),
                if self.kind.key == alg_id::ECDSA_P256 {
                    "SHA-256"
                } else {
                    "SHA-384"
                }
            )));
        }
        Ok(signature)
    }

    /// Whether the authority's own key made it, over exactly this.
    fn is_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let known = aws_lc_rs::default_provider().signature_verification_algorithms;
        let known = known.all.iter().find(|known| {
            known.public_key_alg_id() == self.kind.key
                && known.signature_alg_id() == self.kind.signature
        });
        known.is_some_and(|known| {
            known
                .verify_signature(&self.public, message, signature)
                .is_ok()
        })
    }
}

/// Runs the program once: no shell, nothing of our environment, and no longer than until `end`.
fn ask(
    program: &str,
    arguments: &[String],
    message: &[u8],
    end: Monotonic,
) -> Result<Vec<u8>, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // What it starts ends with it.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    let group = Pid::from_child(&child);
    let heard = hear(&mut child, message.to_vec(), end);
    let (answer, said) = match heard {
        Ok(heard) => heard,
        Err(why) => {
            end_all(group);
            drop(child.wait());
            return Err(why);
        }
    };
    let Some(status) = ended(child, end) else {
        end_all(group);
        return Err("it did not end within 10 seconds".to_owned());
    };
    if !status.success() {
        let said = String::from_utf8_lossy(&said);
        return Err(format!(
            "it ended with {status}: {}",
            text::line(said.trim())
        ));
    }
    Ok(answer)
}

/// Gives it what is to be signed, and hears its answer and what it says beside it.
fn hear(child: &mut Child, message: Vec<u8>, end: Monotonic) -> Result<(Vec<u8>, Vec<u8>), String> {
    let (Some(mut input), Some(output), Some(errors)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err("it has no standard input and output".to_owned());
    };
    let no_thread = |error: std::io::Error| format!("it cannot be talked to: {error}");
    thread::Builder::new()
        .name("signer input".to_owned())
        .spawn(move || {
            // One that does not read all of it is told by what it answers.
            drop(input.write_all(&message));
        })
        .map_err(no_thread)?;
    let answer = reader("signer output", output, ANSWER_BYTES_MAX + 1).map_err(no_thread)?;
    let said = reader("signer errors", errors, SAID_BYTES_MAX).map_err(no_thread)?;
    let left = || end.saturating_since(SystemClock.now());
    let Ok(answer) = answer.recv_timeout(left()) else {
        return Err("it did not answer within 10 seconds".to_owned());
    };
    if u64::try_from(answer.len()).unwrap_or(u64::MAX) > ANSWER_BYTES_MAX {
        return Err(format!("it answered more than {ANSWER_BYTES_MAX} bytes"));
    }
    let said = said.recv_timeout(left()).unwrap_or_default();
    Ok((answer, said))
}

/// Reads so much of a pipe, and the rest for nobody, so that its writer does not wait.
fn reader(
    name: &str,
    mut pipe: impl Read + Send + 'static,
    most: u64,
) -> std::io::Result<Receiver<Vec<u8>>> {
    let (told, heard) = sync_channel(1);
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let mut bytes = Vec::new();
            drop(pipe.by_ref().take(most).read_to_end(&mut bytes));
            drop(told.send(bytes));
            drop(std::io::copy(&mut pipe, &mut std::io::sink()));
        })?;
    Ok(heard)
}

/// How it ended, if it does in time.
fn ended(mut child: Child, end: Monotonic) -> Option<ExitStatus> {
    let (told, heard) = sync_channel(1);
    let waiting = thread::Builder::new()
        .name("signer end".to_owned())
        .spawn(move || {
            if let Ok(status) = child.wait() {
                let _told = told.send(status);
            }
        });
    waiting.ok()?;
    let left = end.saturating_since(SystemClock.now());
    heard.recv_timeout(left).ok()
}

fn end_all(group: Pid) {
    let _nobody_left = kill_process_group(group, Signal::KILL);
}

/// One of the programs that may run at a time; given back when dropped.
struct Turn;

static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

impl Turn {
    /// `None` when nobody gave one back in time.
    fn wait(end: Monotonic) -> Option<Self> {
        let mut taken = lock(&TAKEN);
        while *taken >= AT_ONCE {
            let left = end.saturating_since(SystemClock.now());
            if left.is_zero() {
                return None;
            }
            let waited = GIVEN_BACK.wait_timeout(taken, left);
            taken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *taken += 1;
        Some(Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *lock(&TAKEN) -= 1;
        GIVEN_BACK.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(program: &str, arguments: &[&str], limit: Duration) -> Result<Vec<u8>, String> {
        let arguments: Vec<String> = arguments.iter().copied().map(str::to_owned).collect();
        let end = SystemClock.now().saturating_add(limit);
        ask(program, &arguments, b"to be signed", end)
    }

    #[test]
    fn a_program_is_given_what_is_to_be_signed_and_nothing_of_our_environment() {
        let patient = Duration::from_secs(60);
        assert_eq!(asked("/bin/cat", &[], patient).unwrap(), b"to be signed");
        let environment = asked("/usr/bin/env", &[], patient).unwrap();
        let environment = String::from_utf8(environment).unwrap();
        assert!(environment.starts_with("PATH="), "{environment}");
        assert_eq!(environment.lines().count(), 1, "{environment}");
    }

    #[test]
    fn as_many_programs_sign_at_a_time_as_may_and_the_next_waits_its_turn() {
        let soon = || SystemClock.now().saturating_add(Duration::from_millis(50));
        let late = || SystemClock.now().saturating_add(Duration::from_secs(60));
        let mut taken: Vec<Turn> = (0..AT_ONCE).map(|_| Turn::wait(late()).unwrap()).collect();
        assert!(Turn::wait(soon()).is_none());
        let waiting = thread::spawn(move || Turn::wait(late()).is_some());
        drop(taken.pop());
        assert!(waiting.join().unwrap());
        drop(taken);
        assert!(Turn::wait(soon()).is_some());
    }

    #[test]
    fn a_program_that_fails_hangs_or_says_too_much_is_told_of_and_ended() {
        let patient = Duration::from_secs(60);
        let script = |script: &str, limit| asked("/bin/sh", &["-c", script], limit).unwrap_err();
        let said = script("cat >/dev/null; echo no such key >&2; exit 3", patient);
        assert!(said.contains("exit status: 3: no such key"), "{said}");
        let said = script("head -c 20000 /dev/zero", patient);
        assert!(said.contains("more than 16384 bytes"), "{said}");
        // What it started holds its output open: all of it ends.
        let short = Duration::from_millis(300);
        let said = script("sleep 600 & sleep 600", short);
        assert!(said.contains("did not answer"), "{said}");
        let said = script("exec >&- 2>&-; sleep 600", short);
        assert!(said.contains("did not end"), "{said}");
        let said = asked("/nowhere/at/all", &[], patient).unwrap_err();
        assert!(said.contains("cannot be started"), "{said}");
    }
}
