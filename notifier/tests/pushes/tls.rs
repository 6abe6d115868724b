//! The backend behind a certificate of the operator's own root. (`tls/` is made for this test: its root's key was thrown
//! away, its server is `localhost`.)

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;

/// A server that takes every push, and the port it is on.
async fn backend() -> (u16, JoinHandle<()>) {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("tls/server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key")).unwrap();
    let config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            // A client that does not trust the certificate ends the handshake.
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            let _ = tls.read(&mut [0; 4096]).await;
            let _ = tls.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
            let _ = tls.shutdown().await;
        }
    });
    (port, server)
}

#[tokio::test]
async fn the_operators_own_root_is_trusted_when_it_is_configured() {
    let (port, _server) = backend().await;
    let trusting = |file: Option<&str>| Config {
        extra_ca_file: file.map(|file| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file)),
        ..config(Some(format!("https://localhost:{port}/push")))
    };
    let fixture = Fixture::new().await;
    fixture.missed(&fixture.says("hello").await, &["B"]).await;

    let stranger = Running::start(&fixture, trusting(None), []);
    stranger.counts_at_least("retries_total{lane=\"webhook\"}", 1).await;
    stranger.finished().await;

    let friend = Running::start(&fixture, trusting(Some("tests/pushes/tls/ca.pem")), []);
    friend.counts("pushes_total{lane=\"webhook\",outcome=\"pushed\"} 1").await;
    friend.finished().await;
}
