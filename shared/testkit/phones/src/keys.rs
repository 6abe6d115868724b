//! The keys and certificates, made once and kept in a folder.
//!
//! | file | holds | read by |
//! |---|---|---|
//! | `ca.pem` | the certificate of the authority that signs the server's | all |
//! | `ca.key` | its private key | the owner |
//! | `service-account.json` | Google's file for a service account, with an RSA key of 2,048 bits | the owner |
//! | `AuthKey_NARUDEMO01.p8` | Apple's file for a signing key, P-256 | the owner |
//!
//! The server's own certificate is made at every start and is not stored.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jsonwebtoken::DecodingKey;
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256,
};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::error::StartError;

/// The project that the service account belongs to.
pub const PROJECT: &str = "naru-demo";
/// The service account.
pub(crate) const CLIENT_EMAIL: &str = "naru@naru-demo.iam.gserviceaccount.com";
/// The identifier of its key.
pub(crate) const SERVICE_ACCOUNT_KEY_ID: &str = "naru-demo-key";
/// The identifier of the APNs key.
pub const KEY_ID: &str = "NARUDEMO01";
/// The team that the key belongs to.
pub const TEAM_ID: &str = "NARUTEAM01";
/// The app's bundle identifier.
pub const TOPIC: &str = "com.example.naru";

/// Readable by the owner only.
const PRIVATE: u32 = 0o600;
/// Readable by all users.
const PUBLIC: u32 = 0o644;

/// The content of the folder.
pub(crate) struct Keys {
    /// The certificate of the authority, to be trusted.
    pub(crate) ca_file: PathBuf,
    pub(crate) service_account_file: PathBuf,
    pub(crate) apns_key_file: PathBuf,
    authority: KeyPair,
    service_account: KeyPair,
    apns: KeyPair,
}

impl Keys {
    /// Reads the existing keys and makes the missing ones.
    pub(crate) fn open(dir: &Path) -> Result<Self, StartError> {
        let of_dir = |source| StartError::File { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(of_dir)?;
        let dir = dir.canonicalize().map_err(of_dir)?;
        let (ca_file, service_account_file) = (dir.join("ca.pem"), dir.join("service-account.json"));
        let apns_key_file = dir.join(format!("AuthKey_{KEY_ID}.p8"));
        let authority = key(&dir.join("ca.key"))?;
        // A client that trusts an earlier certificate of this key trusts this one, too.
        let certificate = authority_params().self_signed(&authority)?;
        write(&ca_file, &encode("CERTIFICATE", certificate.der().to_vec()), PUBLIC)?;
        let (service_account, apns) = (service_account(&service_account_file)?, key(&apns_key_file)?);
        Ok(Self { ca_file, service_account_file, apns_key_file, authority, service_account, apns })
    }

    /// Verifies the service account's signatures.
    pub(crate) fn service_account_verifier(&self) -> DecodingKey {
        DecodingKey::from_rsa_der(self.service_account.public_key_raw())
    }

    /// Verifies the APNs key's signatures.
    pub(crate) fn apns_verifier(&self) -> DecodingKey {
        DecodingKey::from_ec_der(self.apns.public_key_raw())
    }

    /// A new certificate for a server of this name, of `localhost` and of the loopback addresses; for 397 days.
    pub(crate) fn server(
        &self,
        host: &str,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), StartError> {
        const DAY: Duration = Duration::from_secs(86_400);
        let names = [host, "localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name.push(DnType::CommonName, "Naru's push provider emulator");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // A client whose clock is a day behind trusts it, too.
        params.not_before = (SystemTime::now() - DAY).into();
        params.not_after = (SystemTime::now() + 397 * DAY).into();
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &Issuer::new(authority_params(), &self.authority))?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((vec![certificate.der().clone()], key.into()))
    }

    /// Writes the service account's file.
    pub(crate) fn write_service_account(&self, token_uri: &str) -> Result<(), StartError> {
        let account = json!({
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": SERVICE_ACCOUNT_KEY_ID,
            "private_key": encode("PRIVATE KEY", self.service_account.serialize_der()),
            "client_email": CLIENT_EMAIL,
            "token_uri": token_uri,
        });
        write(&self.service_account_file, &format!("{account:#}\n"), PRIVATE)
    }
}

/// The same at every start: the issuer in the server's certificate is made from these.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Naru's push provider emulator: its authority");
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2124, 1, 1);
    params
}

/// The P-256 key of a file; a new one if there is none.
fn key(path: &Path) -> Result<KeyPair, StartError> {
    if let Some(text) = read(path)? {
        return decode(path, &text);
    }
    let key = KeyPair::generate()?;
    write(path, &encode("PRIVATE KEY", key.serialize_der()), PRIVATE)?;
    Ok(key)
}

/// The RSA key of the service account's file. A new one is written when the `token_uri` is known.
fn service_account(path: &Path) -> Result<KeyPair, StartError> {
    let Some(text) = read(path)? else {
        return Ok(KeyPair::generate_for(&PKCS_RSA_SHA256)?);
    };
    let account: Value = serde_json::from_str(&text).unwrap_or_default();
    decode(path, account["private_key"].as_str().unwrap_or_default())
}

fn decode(path: &Path, text: &str) -> Result<KeyPair, StartError> {
    let key = pem::parse(text).ok().and_then(|pem| KeyPair::try_from(pem.into_contents()).ok());
    key.ok_or_else(|| StartError::Unusable { path: path.to_owned() })
}

fn encode(tag: &str, der: Vec<u8>) -> String {
    pem::encode_config(&Pem::new(tag, der), EncodeConfig::new().set_line_ending(LineEnding::LF))
}

/// The whole file; `None` if it does not exist.
fn read(path: &Path) -> Result<Option<String>, StartError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StartError::File { path: path.to_owned(), source }),
    }
}

/// Writes the file atomically: a process that reads it meanwhile, or after a crash, finds the old file or the new one.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), StartError> {
    let attempt = || {
        let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        // Readable by the owner only until its mode is set.
        let mut file = NamedTempFile::new_in(dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok::<(), io::Error>(())
    };
    attempt().map_err(|source| StartError::File { path: path.to_owned(), source })
}
