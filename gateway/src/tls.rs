//! TLS on the gateway's own address, for deployments without a proxy that ends it.
//!
//! TLS 1.2 and 1.3, HTTP/1.1 by ALPN. The files are read again when they change, as certificates are renewed every few weeks;
//! connections keep the certificate that they began with.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::digest::{self, SHA256};
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

/// A client that has not finished its handshake by then is disconnected.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Why TLS can't be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One of the two keys is missing.
    #[error("tls_certificate and tls_key go together: set both or none")]
    Half,
    /// A file can't be read.
    #[error("can't read {path}")]
    Unreadable { path: PathBuf, source: io::Error },
    /// A file does not hold what it should.
    #[error("{path} holds no {what} in PEM")]
    NotPem { path: PathBuf, what: &'static str },
    /// They don't belong together, or are of a kind that can't be served.
    #[error("the certificate in {certificate} can't be served with the key in {key}: {source}")]
    Unfit { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

pub(crate) struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    served: RwLock<Served>,
}

#[derive(Clone)]
struct Served {
    acceptor: TlsAcceptor,
    /// Of both files, so that a change is noticed.
    digest: digest::Digest,
}

impl Tls {
    /// None when TLS is not configured.
    ///
    /// # Errors
    /// When the files can't be used.
    pub(crate) fn configured(
        certificate: Option<&Path>,
        key: Option<&Path>,
    ) -> Result<Option<Self>, TlsError> {
        let (certificate, key) = match (certificate, key) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate.to_owned(), key.to_owned()),
            _ => return Err(TlsError::Half),
        };
        let served = RwLock::new(load(&certificate, &key)?);
        Ok(Some(Self { certificate, key, served }))
    }

    /// The handshake.
    ///
    /// # Errors
    /// When it fails, or takes too long.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        timeout(HANDSHAKE_WITHIN, self.served().acceptor.accept(stream)).await?
    }

    /// Looks at the files from time to time, and serves what they hold.
    pub(crate) async fn reload(&self) {
        let mut looks = interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            let (certificate, key) = (self.certificate.clone(), self.key.clone());
            let Ok(loaded) = tokio::task::spawn_blocking(move || load(&certificate, &key)).await else {
                return;
            };
            match loaded {
                Ok(new) if new.digest.as_ref() == self.served().digest.as_ref() => {}
                Ok(new) => {
                    *self.served.write().unwrap_or_else(PoisonError::into_inner) = new;
                    tracing::info!("new connections get the certificate that tls_certificate now holds");
                }
                // A file may be half written; the next look finds it whole.
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the TLS files can't be used; the certificate of before is served");
                }
            }
        }
    }

    fn served(&self) -> Served {
        self.served.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn load(certificate: &Path, key: &Path) -> Result<Served, TlsError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
    };
    let (certificates, private) = (read(certificate)?, read(key)?);
    let mut both = digest::Context::new(&SHA256);
    both.update(&certificates);
    both.update(&private);
    let not_pem = |path: &Path, what| TlsError::NotPem { path: path.to_owned(), what };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificates).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or(not_pem(certificate, "certificate"))?;
    let private = PrivateKeyDer::from_pem_slice(&private).map_err(|_| not_pem(key, "private key"))?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|source| TlsError::Unfit {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Served { acceptor: Arc::new(config).into(), digest: both.finish() })
}
