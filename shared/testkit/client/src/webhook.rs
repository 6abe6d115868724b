//! An app's main backend that takes pushes: it records every request, and answers by script.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use aws_lc_rs::hmac;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, Response, body::Incoming, header::RETRY_AFTER, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::TEST_TIMEOUT;

/// How one request is answered.
#[derive(Debug, Clone)]
pub enum Answer {
    Response(Response<Bytes>),
    /// No answer: the connection stays open.
    Hang,
    /// The connection is closed without a response.
    Close,
}

impl Answer {
    /// An empty response with this status.
    pub fn status(status: u16) -> Self {
        Self::body(status, "")
    }

    /// A response with a body.
    pub fn body(status: u16, body: &str) -> Self {
        let body = Bytes::copy_from_slice(body.as_bytes());
        Self::Response(Response::builder().status(status).body(body).expect("a legal status"))
    }

    /// A response with `Retry-After`: seconds or an HTTP date.
    pub fn retry_after(status: u16, value: &str) -> Self {
        let response = Response::builder().status(status).header(RETRY_AFTER, value).body(Bytes::new());
        Self::Response(response.expect("a legal status and header"))
    }
}

/// One recorded request, with its whole body.
#[derive(Debug, Clone)]
pub struct Post {
    /// Path and query.
    pub path: String,
    pub headers: HeaderMap,
    /// The body as received.
    pub body: Bytes,
    /// The body as JSON; `null` where it is not JSON.
    pub json: Value,
    /// When the body was complete.
    pub arrived: Instant,
}

impl Post {
    /// A header as text; empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or_default())
    }

    /// Whether `X-Naru-Signature` is `sha256=<hex HMAC-SHA256(secret, body)>`.
    pub fn is_signed_with(&self, secret: &[u8]) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let signature = hmac::sign(&key, &self.body);
        let hex: String = signature.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        self.header("x-naru-signature") == format!("sha256={hex}")
    }
}

/// A running backend. Dropping it closes its port and its connections soon, [`Webhook::stop`] at once.
#[derive(Debug)]
pub struct Webhook {
    address: SocketAddr,
    script: Script,
    posts: mpsc::UnboundedReceiver<Post>,
    server: AbortOnDropHandle<()>,
}

type Script = Arc<Mutex<VecDeque<Answer>>>;

impl Webhook {
    /// Starts on a free port of loopback. Answers 200 unless [`Webhook::script`] sets other answers.
    pub async fn start() -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into()).await.expect("loopback has free ports")
    }

    /// Starts at the address of an earlier one, to end an outage.
    pub async fn start_at(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let script = Script::default();
        let (sender, posts) = mpsc::unbounded_channel();
        let server = tokio::spawn(serve(listener, script.clone(), sender));
        Ok(Self { address, script, posts, server: AbortOnDropHandle::new(server) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path on it (`"/api/notifications/push"`).
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Begins an outage: returns when the port is closed, and can be taken again by [`Webhook::start_at`].
    pub async fn stop(self) {
        self.server.abort();
        let _ = self.server.await;
    }

    /// Answers the next requests with these, in the order in which the requests arrive, and those after with 200.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().unwrap_or_else(PoisonError::into_inner).extend(answers);
    }

    pub async fn next(&mut self) -> Post {
        let next = timeout(TEST_TIMEOUT, self.posts.recv()).await;
        let next = next.unwrap_or_else(|_| panic!("waited {TEST_TIMEOUT:?} for a push: none came"));
        next.expect("the server task lives as long as this value")
    }

    /// Asserts that every recorded request was read.
    pub fn none_waiting(&mut self) {
        if let Ok(post) = self.posts.try_recv() {
            panic!("wanted no push, got {} {}", post.path, String::from_utf8_lossy(&post.body));
        }
    }
}

async fn serve(listener: TcpListener, script: Script, posts: mpsc::UnboundedSender<Post>) {
    // Owns the connections, so that they end with this task.
    let mut connections = JoinSet::new();
    loop {
        let Ok((tcp, _)) = listener.accept().await else {
            continue;
        };
        let (script, posts) = (script.clone(), posts.clone());
        let service = service_fn(move |request| answer(request, script.clone(), posts.clone()));
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(tcp), service));
    }
}

/// An error makes hyper close the connection without a response.
async fn answer(
    request: Request<Incoming>,
    script: Script,
    posts: mpsc::UnboundedSender<Post>,
) -> Result<Response<Full<Bytes>>, &'static str> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| "the request ended early")?.to_bytes();
    let answer = script.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let path = head.uri.path_and_query().map_or("", |path| path.as_str()).to_owned();
    let json = serde_json::from_slice(&body).unwrap_or_default();
    let _ = posts.send(Post { path, headers: head.headers, body, json, arrived: Instant::now() });
    match answer.unwrap_or_else(|| Answer::status(200)) {
        Answer::Response(response) => Ok(response.map(Full::new)),
        Answer::Hang => std::future::pending().await,
        Answer::Close => Err("closed by script"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn post(address: &SocketAddr) -> reqwest::Result<reqwest::Response> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_millis(200)).build()?;
        let request = client.post(format!("http://{address}/push?a=1")).body(r#"{"userId":"B"}"#);
        // Made with `printf '{"userId":"B"}' | openssl dgst -sha256 -hmac secret`.
        let signature = "sha256=d956b7d071fbf9a8f83d61892572d8b08ba5edcf91a8599ad782dba91d863707";
        request.header("X-Naru-Signature", signature).send().await
    }

    #[tokio::test]
    async fn it_records_what_comes_and_answers_by_script() {
        let mut webhook = Webhook::start().await;
        webhook.script([Answer::retry_after(429, "7"), Answer::Hang, Answer::Close]);

        let refused = post(&webhook.address()).await.expect("an answer");
        assert_eq!(
            (refused.status().as_u16(), &refused.headers()["retry-after"]),
            (429, &"7".parse().unwrap())
        );
        assert!(post(&webhook.address()).await.expect_err("silence").is_timeout());
        assert!(!post(&webhook.address()).await.expect_err("a closed connection").is_timeout());
        assert_eq!(post(&webhook.address()).await.expect("an answer").status(), 200);

        let first = webhook.next().await;
        assert_eq!((first.path.as_str(), &first.json["userId"]), ("/push?a=1", &"B".into()));
        assert!(first.is_signed_with(b"secret"));
        assert!(!first.is_signed_with(b"another"));
        for _ in 0..3 {
            webhook.next().await;
        }
        webhook.none_waiting();
    }

    #[tokio::test]
    async fn an_outage_begins_and_ends() {
        let webhook = Webhook::start().await;
        let address = webhook.address();
        post(&webhook.address()).await.expect("an answer");
        webhook.stop().await;
        assert!(post(&address).await.expect_err("an outage").is_connect());
        let mut webhook = Webhook::start_at(address).await.expect("the port is free again");
        post(&webhook.address()).await.expect("an answer");
        webhook.next().await;
    }
}
