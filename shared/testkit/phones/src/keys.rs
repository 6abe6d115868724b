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

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use aws_lc_rs::{rand, rsa};
use jsonwebtoken::DecodingKey;
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::error::StartError;

/// The project that the service account belongs to.
pub const PROJECT: &str = "naru-demo";
/// The service account.
pub const CLIENT_EMAIL: &str = "naru@naru-demo.iam.gserviceaccount.com";
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
    dir: PathBuf,
    authority: KeyPair,
    service_account: rsa::KeyPair,
    service_account_key: Pem,
    service_account_key_id: String,
    apns: EcdsaKeyPair,
}

impl Keys {
    /// Reads the existing files and makes the missing ones.
    pub(crate) fn open(dir: &Path) -> Result<Self, StartError> {
        fs::create_dir_all(dir).map_err(|source| StartError::File { path: dir.to_owned(), source })?;
        let dir = dir.canonicalize().map_err(|source| StartError::File { path: dir.to_owned(), source })?;
        let authority = authority(&dir)?;
        let apns = apns(&dir)?;
        let (service_account, service_account_key, service_account_key_id) = service_account(&dir)?;
        Ok(Self { dir, authority, service_account, service_account_key, service_account_key_id, apns })
    }

    /// The certificate of the authority, to be trusted.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    pub(crate) fn service_account_file(&self) -> PathBuf {
        self.dir.join("service-account.json")
    }

    pub(crate) fn apns_file(&self) -> PathBuf {
        apns_file(&self.dir)
    }

    pub(crate) fn service_account_key_id(&self) -> &str {
        &self.service_account_key_id
    }

    /// Verifies the service account's signatures.
    pub(crate) fn service_account_verifier(&self) -> DecodingKey {
        DecodingKey::from_rsa_der(self.service_account.public_key().as_ref())
    }

    /// Verifies the APNs key's signatures.
    pub(crate) fn apns_verifier(&self) -> DecodingKey {
        DecodingKey::from_ec_der(self.apns.public_key().as_ref())
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
        let issuer = Issuer::new(authority_params(), &self.authority);
        let certificate = params.signed_by(&key, &issuer)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((vec![certificate.der().clone()], key.into()))
    }

    /// Writes the service account's file, if it does not name this `token_uri` already.
    pub(crate) fn name_token_uri(&self, token_uri: &str) -> Result<(), StartError> {
        let account = json!({
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": self.service_account_key_id,
            "private_key": encode(&self.service_account_key),
            "client_email": CLIENT_EMAIL,
            "client_id": "100000000000000000001",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": token_uri,
            "auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",
            "universe_domain": "googleapis.com",
        });
        let path = self.service_account_file();
        let written = read(&path)?.and_then(|text| serde_json::from_str::<Value>(&text).ok());
        if written.as_ref() == Some(&account) {
            return Ok(());
        }
        write(&path, &format!("{account:#}\n"), PRIVATE)
    }
}

/// The authority's key. Its certificate follows from the key, and is written beside it.
fn authority(dir: &Path) -> Result<KeyPair, StartError> {
    let path = dir.join("ca.key");
    let key = match read(&path)? {
        Some(text) => KeyPair::try_from(private_key(&path, &text)?.into_contents())
            .map_err(|_| StartError::Unusable { path: path.clone() })?,
        None => {
            let key = KeyPair::generate()?;
            write(&path, &encode(&Pem::new("PRIVATE KEY", key.serialize_der())), PRIVATE)?;
            key
        }
    };
    let certificate = dir.join("ca.pem");
    // A certificate without its key is useless; a key without one, as after a crash here, gets a new one.
    if read(&certificate)?.is_none_or(|text| !is_of(&text, &key)) {
        let made: Certificate = authority_params().self_signed(&key)?;
        write(&certificate, &encode(&Pem::new("CERTIFICATE", made.der().to_vec())), PUBLIC)?;
    }
    Ok(key)
}

/// Whether a certificate is for this key.
fn is_of(certificate: &str, key: &KeyPair) -> bool {
    use rcgen::PublicKeyData as _;

    let key = key.subject_public_key_info();
    pem::parse(certificate).is_ok_and(|pem| pem.contents().windows(key.len()).any(|window| window == key))
}

/// The same at every start: the issuer in the server's certificate is made from these.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Naru's push provider emulator: its authority");
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2124, 1, 1);
    params
}

fn apns_file(dir: &Path) -> PathBuf {
    dir.join(format!("AuthKey_{KEY_ID}.p8"))
}

fn apns(dir: &Path) -> Result<EcdsaKeyPair, StartError> {
    let path = apns_file(dir);
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    if let Some(text) = read(&path)? {
        let key = private_key(&path, &text)?;
        return EcdsaKeyPair::from_pkcs8(algorithm, key.contents())
            .map_err(|_| StartError::Unusable { path });
    }
    let key = EcdsaKeyPair::generate(algorithm).map_err(|_| StartError::Key)?;
    let der = key.to_pkcs8v1().map_err(|_| StartError::Key)?;
    write(&path, &encode(&Pem::new("PRIVATE KEY", der.as_ref())), PRIVATE)?;
    Ok(key)
}

/// The service account's key, its PEM, and its identifier. A new key is written when the `token_uri` is known.
fn service_account(dir: &Path) -> Result<(rsa::KeyPair, Pem, String), StartError> {
    let path = dir.join("service-account.json");
    if let Some(text) = read(&path)? {
        let unusable = || StartError::Unusable { path: path.clone() };
        let account: Value = serde_json::from_str(&text).map_err(|_| unusable())?;
        let field = |name: &str| account[name].as_str().ok_or_else(unusable);
        let written = private_key(&path, field("private_key")?)?;
        let key = rsa::KeyPair::from_pkcs8(written.contents()).map_err(|_| unusable())?;
        return Ok((key, written, field("private_key_id")?.to_owned()));
    }
    let key = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).map_err(|_| StartError::Key)?;
    let der = key.as_der().map_err(|_| StartError::Key)?;
    let mut id = [0; 20];
    rand::fill(&mut id).map_err(|_| StartError::Key)?;
    let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((key, Pem::new("PRIVATE KEY", der.as_ref()), id))
}

fn private_key(path: &Path, text: &str) -> Result<Pem, StartError> {
    let pem = pem::parse(text).ok().filter(|pem| pem.tag() == "PRIVATE KEY");
    pem.ok_or_else(|| StartError::Unusable { path: path.to_owned() })
}

fn encode(pem: &Pem) -> String {
    pem::encode_config(pem, EncodeConfig::new().set_line_ending(LineEnding::LF))
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_account_is_written_again_only_for_another_token_uri() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path()).unwrap();
        let file = || fs::metadata(keys.service_account_file()).unwrap().ino();
        keys.name_token_uri("https://localhost:1/token").unwrap();
        let first = file();
        keys.name_token_uri("https://localhost:1/token").unwrap();
        assert_eq!(file(), first);
        // A new file replaces the old one: a process that has the old one open continues to read it.
        let open = fs::File::open(keys.service_account_file()).unwrap();
        keys.name_token_uri("https://localhost:2/token").unwrap();
        assert_ne!(file(), first);
        assert!(io::read_to_string(open).unwrap().contains("https://localhost:1/token"));
    }
}
