//! The data directory and its files: messages and keys, for their owner only.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The permissions of a directory and of a file: none for other users.
const DIRECTORY: u32 = 0o700;
const FILE: u32 = 0o600;
/// In a directory with this bit (`/tmp`), every user keeps files.
const SHARED: u32 = 0o1000;

/// Makes the data directory if it is absent, and takes it from all users but its owner.
///
/// # Errors
/// When it can't be made; when other users can enter it and that can't be changed, or must not be.
pub fn prepare(dir: &Path) -> io::Result<()> {
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => Err(ErrorKind::NotADirectory.into()),
        Ok(found) if found.permissions().mode() & SHARED != 0 => {
            Err(io::Error::other("it is shared by all users; choose a directory that holds nothing else"))
        }
        Ok(_) => restrict(dir, DIRECTORY),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(DIRECTORY).create(dir)?;
            // Synced, so that a power cut can't remove the directory with confirmed data in it.
            dir.canonicalize()?.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
        }
        Err(error) => Err(error),
    }
}

/// Opens a file for writing, made if it is absent. It is its owner's only, whatever it was.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).mode(FILE).open(path)?;
    restrict(path, FILE)?;
    Ok(file)
}

/// Takes a file from all users but its owner; one that is absent stays so.
///
/// # Errors
/// When other users can read it and that can't be changed.
pub fn restrict_file(path: &Path) -> io::Result<()> {
    match restrict(path, FILE) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        restricted => restricted,
    }
}

fn restrict(path: &Path, allowed: u32) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode & allowed)).map_err(|error| {
        let name = path.display();
        io::Error::new(
            error.kind(),
            format!(
                "other users can read {name}, and it can't be taken from them ({error}): chmod {allowed:o} it"
            ),
        )
    })
}
