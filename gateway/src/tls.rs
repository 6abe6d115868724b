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
    #[error("the certificate in {certificate} can't be served with the key in {key}")]
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
            self.look().await;
        }
    }

    async fn look(&self) {
        let (certificate, key) = (self.certificate.clone(), self.key.clone());
        match tokio::task::spawn_blocking(move || load(&certificate, &key)).await {
            Ok(Ok(new)) if new.digest.as_ref() == self.served().digest.as_ref() => {}
            Ok(Ok(new)) => {
                *self.served.write().unwrap_or_else(PoisonError::into_inner) = new;
                tracing::info!("new connections get the certificate that tls_certificate now holds");
            }
            // A file may be half written; the next look finds it whole.
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the TLS files can't be used; the certificate of before is served");
            }
            Err(error) => tracing::warn!(%error, "the TLS files were not looked at"),
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion};

    use super::*;

    /// A certificate for `chat.example` and its key, in files.
    struct Files {
        dir: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            let files = Self { dir: tempfile::tempdir().unwrap() };
            files.renew();
            files
        }

        fn certificate(&self) -> PathBuf {
            self.dir.path().join("certificate.pem")
        }

        fn key(&self) -> PathBuf {
            self.dir.path().join("key.pem")
        }

        fn renew(&self) {
            let made = rcgen::generate_simple_self_signed(["chat.example".to_owned()]).unwrap();
            let write = |path: PathBuf, tag: &str, der: &[u8]| {
                std::fs::write(path, pem::encode(&pem::Pem::new(tag, der))).unwrap();
            };
            write(self.certificate(), "CERTIFICATE", made.cert.der());
            write(self.key(), "PRIVATE KEY", &made.signing_key.serialize_der());
        }

        fn tls(&self) -> Result<Option<Tls>, TlsError> {
            Tls::configured(Some(&self.certificate()), Some(&self.key()))
        }

        /// A client that trusts what the file holds now.
        fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
            let mut roots = RootCertStore::empty();
            let pem = std::fs::read(self.certificate()).unwrap();
            roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
            ClientConfig::builder_with_provider(Arc::new(default_provider()))
                .with_protocol_versions(versions)
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth()
        }
    }

    /// The protocol version and the application protocol of a handshake of these two, with a byte across it.
    async fn handshake(tls: &Tls, client: ClientConfig) -> io::Result<(ProtocolVersion, Option<Vec<u8>>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let tcp = TcpStream::connect(listener.local_addr()?).await?;
        let name = ServerName::try_from("chat.example").unwrap();
        let serve = async {
            let mut stream = tls.accept(listener.accept().await?.0).await?;
            stream.write_u8(7).await?;
            stream.flush().await
        };
        let call = async {
            let mut stream = TlsConnector::from(Arc::new(client)).connect(name, tcp).await?;
            assert_eq!(stream.read_u8().await?, 7);
            let connection = stream.get_ref().1;
            Ok((connection.protocol_version().unwrap(), connection.alpn_protocol().map(<[u8]>::to_vec)))
        };
        let (served, called) = tokio::join!(serve, call);
        served.and(called)
    }

    #[tokio::test]
    async fn both_versions_are_served_and_http_1_1_only() {
        let files = Files::new();
        let tls = files.tls().unwrap().unwrap();
        for (version, wanted) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
            let mut client = files.client(&[version]);
            assert_eq!(handshake(&tls, client.clone()).await.unwrap(), (wanted, None));
            client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            assert_eq!(handshake(&tls, client.clone()).await.unwrap().1.unwrap(), b"http/1.1");
            client.alpn_protocols = vec![b"h2".to_vec()];
            assert!(handshake(&tls, client).await.is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_takes_too_long_is_ended() {
        let files = Files::new();
        let tls = files.tls().unwrap().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let accepting = tls.accept(listener.accept().await.unwrap().0);
        let ended =
            timeout(HANDSHAKE_WITHIN * 2, accepting).await.expect("it is not waited for").unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_served_and_a_bad_one_is_not() {
        let files = Files::new();
        let tls = files.tls().unwrap().unwrap();
        let before = files.client(&[&TLS13]);
        std::fs::write(files.certificate(), "half a file").unwrap();
        tls.look().await;
        handshake(&tls, before.clone()).await.unwrap();
        files.renew();
        tls.look().await;
        handshake(&tls, files.client(&[&TLS13])).await.unwrap();
        assert!(handshake(&tls, before).await.is_err(), "the certificate of before is served");
    }

    #[test]
    fn files_that_cannot_be_served_are_refused_with_a_sentence() {
        let (files, other) = (Files::new(), Files::new());
        let configured = |certificate: Option<&Path>, key: Option<&Path>| {
            Tls::configured(certificate, key).map(|tls| tls.is_some()).map_err(|error| error.to_string())
        };
        let (certificate, key) = (files.certificate(), files.key());
        assert_eq!(configured(None, None), Ok(false));
        assert_eq!(configured(Some(&certificate), Some(&key)), Ok(true));
        for (certificate, key, wanted) in [
            (Some(&*certificate), None, "set both or none"),
            (None, Some(&*key), "set both or none"),
            (Some(Path::new("/nowhere")), Some(&*key), "can't read /nowhere"),
            (Some(&*key), Some(&*key), "holds no certificate in PEM"),
            (Some(&*certificate), Some(&*certificate), "holds no private key in PEM"),
            (Some(&*certificate), Some(&*other.key()), "can't be served with the key in"),
        ] {
            let refused = configured(certificate, key).unwrap_err();
            assert!(refused.contains(wanted), "{refused}");
        }
    }
}
