//! The all-in-one's own token secret: made once, kept in the data directory, readable by its owner only.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use naru_embedded::directory;
use naru_runtime::config::optional;
use naru_runtime::{Secret, Settings};
use serde::Deserialize;

/// The file's name in the data directory.
const FILE: &str = "jwt-secret";

#[derive(Deserialize)]
struct Config {
    data_dir: PathBuf,
    #[serde(deserialize_with = "optional")]
    jwt_secret: Option<Secret>,
}

/// The configured secret, or else the self-made one, which is made if it does not exist.
///
/// # Errors
/// When the data directory can't be used.
pub fn of(settings: &Settings) -> anyhow::Result<Secret> {
    let Config { data_dir, jwt_secret } = settings.pick()?;
    match jwt_secret {
        Some(secret) => Ok(secret),
        None => kept(&data_dir).with_context(|| format!("no token secret in {}", data_dir.display())),
    }
}

/// The same for a command that must not make a secret: no running Naru would accept a new one.
///
/// # Errors
/// When there is none, or it can't be read.
pub fn in_force(settings: &Settings) -> anyhow::Result<Secret> {
    let Config { data_dir, jwt_secret } = settings.pick()?;
    match jwt_secret {
        Some(secret) => Ok(secret),
        None => {
            read(&data_dir.join(FILE)).with_context(|| format!("no token secret in {}", data_dir.display()))
        }
    }
}

fn read(path: &Path) -> std::io::Result<Secret> {
    let text = fs::read_to_string(path)?;
    if text.trim().is_empty() {
        let why = format!("{} is empty: delete it, and a new secret is made", path.display());
        return Err(std::io::Error::new(ErrorKind::InvalidData, why));
    }
    Ok(text.trim().to_owned().into())
}

fn kept(dir: &Path) -> anyhow::Result<Secret> {
    let path = dir.join(FILE);
    directory::restrict_file(&path)?;
    match read(&path) {
        Ok(secret) => Ok(secret),
        Err(error) if error.kind() == ErrorKind::NotFound => make(dir, &path),
        Err(error) => Err(error.into()),
    }
}

/// The file appears whole or not at all; if two processes make it at the same time, the first one's file stays.
fn make(dir: &Path, path: &Path) -> anyhow::Result<Secret> {
    directory::prepare(dir)?;
    let secret: String = rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect();
    let draft = dir.join(format!("{FILE}.{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(secret.as_bytes())?;
    file.sync_all()?;
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    match linked {
        Ok(()) => {
            fs::File::open(dir)?.sync_all()?;
            Ok(secret.into())
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(read(path)?),
        Err(error) => Err(error.into()),
    }
}
