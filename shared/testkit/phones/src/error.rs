//! Why the emulator did not start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the emulator did not start. None of these is temporary.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file of keys or certificates could not be read or written.
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    /// An existing file does not hold what the emulator writes. It is not replaced: remove it.
    #[error("{path} does not hold what the emulator writes there; remove it to have a new one")]
    Unusable { path: PathBuf },
    /// An address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    /// A key or a certificate could not be made.
    #[error("a key or a certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    /// The certificate could not be used for TLS.
    #[error("the certificate cannot be used")]
    Tls(#[from] tokio_rustls::rustls::Error),
}
