//! The open files that the system allows one process.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets this process open as many files as the system allows: each connection is one, and shells start processes with a
/// limit of 1,024.
///
/// # Errors
/// When the system refuses; the limit then stays as it was.
pub fn raise_open_files() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}
