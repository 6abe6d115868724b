//! Users as identity providers name them, their tokens, and the way to them: TLS and proxies.

use std::path::Path;
use std::time::Duration;

use naru::PROGRAM;
use naru::token::Signer;
use naru_client::{Answer, Claims, Client, Http, Webhook, token};
use naru_runtime::Settings;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::support::{Naru, SECRET, token_of};

/// Ids of Auth0 and of a mail address with a tag, and one of each sign that an id may hold.
const ODD: [&str; 3] = ["auth0|5f7c8ec7", "alice+chat@example.com", "$-._~!&'()*+,;=:@|"];

fn escaped(id: &str) -> String {
    id.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn users_of_any_identity_provider_chat_and_are_pushed_to() {
    let mut naru = Naru::start(&[]).await;
    let [auth0, mail, odd] = ODD;
    let http = naru.http(auth0);
    let room = http.create_room(&[mail, auth0]).await;
    assert_eq!(room, "alice+chat@example.com_auth0|5f7c8ec7");
    let mut alice = naru.phone(mail).await;
    let mut phone = naru.phone(auth0).await;
    phone.chat(&room, "안녕하세요", "c-1").await;
    assert_eq!(phone.expect("ACK").await["seq"], 1);
    let chat = alice.expect("CHAT").await;
    assert_eq!((&chat["senderId"], &chat["chatRoomId"]), (&json!(auth0), &json!(room)));

    // In paths as they are, and percent-encoded.
    for path in [room.clone(), escaped(&room)] {
        let (status, found) = http.get(&format!("/api/rooms/{path}")).await;
        assert_eq!((status, &found["lastSeq"], &found["id"]), (200, &json!(1), &json!(room)));
        assert_eq!(http.history(&path, "").await.len(), 1);
    }
    let group = http.create_room(&ODD).await;
    for (id, path) in [(odd, escaped(odd)), (mail, mail.to_owned())] {
        let (status, _) = http.delete(&format!("/api/rooms/{group}/members/{path}")).await;
        let (_, now) = http.get(&format!("/api/rooms/{group}")).await;
        let members = now["memberIds"].as_array().expect("members").clone();
        assert!(status == 204 && !members.contains(&json!(id)), "{status} {members:?}");
    }

    // A cursor goes into a URL as it is.
    let odd_room = http.create_room(&[auth0, odd]).await;
    let (mut found, mut query) = (Vec::new(), "limit=1".to_owned());
    loop {
        let (status, page) = http.get(&format!("/api/rooms?{query}")).await;
        assert_eq!(status, 200, "{page}");
        found.extend(page["rooms"].as_array().expect("rooms").iter().map(|room| room["id"].clone()));
        let Some(cursor) = page["nextCursor"].as_str() else { break };
        query = format!("limit=1&cursor={cursor}");
    }
    found.sort_by_key(Value::to_string);
    let mut wanted = [json!(room), json!(group), json!(odd_room)];
    wanted.sort_by_key(Value::to_string);
    assert_eq!(found, wanted);

    // An id with a comma can't be one of a list.
    for (query, wanted) in [
        (format!("userIds={mail}"), vec![mail]),
        (format!("userIds={}", escaped(mail)), vec![mail]),
        (format!("userId={}&userId={mail}", escaped(odd)), vec![odd, mail]),
    ] {
        let (status, seen) = http.get(&format!("/api/presence?{query}")).await;
        let users: Vec<_> = seen.as_array().expect("a list").iter().map(|seen| &seen["userId"]).collect();
        assert_eq!(
            (status, users),
            (200, wanted.iter().map(|id| json!(id)).collect::<Vec<_>>().iter().collect())
        );
    }

    phone.chat(&odd_room, "hello", "c-2").await;
    phone.expect("ACK").await;
    assert_eq!(naru.backend.next().await.json["userId"], odd);
    naru.stop().await;
}

/// Whatever is asked: the answer holds what one caller may see, and ids and names that clients have chosen.
#[tokio::test]
async fn no_answer_is_kept_by_a_cache_or_read_as_another_type() {
    let naru = Naru::start(&["--demo", "on"]).await;
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let (get, post, options) = (reqwest::Method::GET, reqwest::Method::POST, reqwest::Method::OPTIONS);
    for (method, path, token, wanted) in [
        (&get, "/api/rooms", token_of("A"), 200),
        (&get, "/api/rooms/none", token_of("A"), 404),
        (&get, "/api/rooms", String::new(), 401),
        (&get, "/nothing", String::new(), 404),
        (&post, "/api/rooms", token_of("A"), 400),
        (&options, "/api/rooms", String::new(), 204),
        (&get, "/ws", String::new(), 401),
        (&get, "/readyz", String::new(), 200),
        (&get, "/metrics", String::new(), 200),
        (&get, "/", String::new(), 200),
        (&get, "/demo/pushes?userId=ada", String::new(), 200),
    ] {
        let request = client.request(method.clone(), format!("{}{path}", naru.url)).bearer_auth(token);
        let answer = request.send().await.expect("an answer");
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let seen = (answer.status().as_u16(), header("cache-control"), header("x-content-type-options"));
        assert_eq!(seen, (wanted, Some("no-store"), Some("nosniff")), "{method} {path}");
    }
    naru.stop().await;
}

/// A key set that can't be had: tokens are not judged, and it is said where operators look.
#[tokio::test]
async fn without_its_key_set_a_gateway_is_not_ready_and_tokens_are_unavailable() {
    let identity_provider = Webhook::start().await;
    identity_provider.script((0..1_000).map(|_| Answer::status(500)));
    let url = identity_provider.url("/jwks");
    let naru = Naru::start_with_keys(&["--jwt-jwks-url", &url]).await;
    // Signed with a key that may be in the set.
    let token = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJBIiwiZXhwIjo0MTAyNDQ0ODAwfQ.AAAA";
    let (status, body) = Http::new(&naru.url, token).get("/api/rooms").await;
    assert_eq!((status, &body["code"]), (503, &json!("UNAVAILABLE")));
    let refused = Client::connect(&naru.url, token).await.expect_err("no keys");
    assert_eq!(refused.status(), Some(503));
    let (status, ready) = Http::without_token(&naru.url).get("/readyz").await;
    assert_eq!(status, 503);
    assert_eq!(ready["failing"]["token keys"], "the key set for tokens can't be fetched");
    assert!(ready["degraded"]["token keys"].as_str().is_some_and(|why| why.contains("500")), "{ready}");
    naru.stop().await;
}

/// The product's own tokens are for the configured issuer and audience, too.
#[tokio::test]
async fn an_issuer_and_an_audience_are_asked_of_every_token() {
    let flags = ["--jwt-issuer", "https://id.example/", "--jwt-audience", "chat"];
    let naru = Naru::start(&flags).await;
    let matches = Settings::command(&PROGRAM).get_matches_from(["naru"].iter().chain(&flags));
    let settings = Settings::load(&PROGRAM, &matches, []).expect("flags that are right");
    let signer = Signer::new(&settings, SECRET.to_owned().into()).expect("a signer");
    let user = "A".parse().expect("a user id");
    let exp = naru::token::expiry(Duration::from_secs(60)).as_millis() / 1000;
    let own = signer.sign(&naru::token::Claims { sub: &user, name: None, device: None, scope: None, exp });
    assert_eq!(Http::new(&naru.url, &own.expect("a token")).get("/api/rooms").await.0, 200);

    let good = Claims::user("A").with("iss", "https://id.example/").with("aud", vec!["shop", "chat"]);
    let http = Http::new(&naru.url, &token(SECRET.as_bytes(), &good));
    assert_eq!(http.get("/api/rooms").await.0, 200);
    for bad in [Claims::user("A"), good.clone().with("aud", "shop"), good.without("iss")] {
        let http = Http::new(&naru.url, &token(SECRET.as_bytes(), &bad));
        assert_eq!(http.get("/api/rooms").await.0, 401, "{bad:?}");
    }
    naru.stop().await;
}

/// The certificate and the key of `localhost`, written into this folder.
fn certificate(dir: &Path) -> (String, String, reqwest::Certificate) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let write = |name: &str, tag: &str, der: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, pem::encode(&pem::Pem::new(tag, der))).expect("a file can be written");
        path.to_str().expect("a plain name").to_owned()
    };
    let certificate = write("certificate.pem", "CERTIFICATE", made.cert.der());
    let key = write("key.pem", "PRIVATE KEY", &made.signing_key.serialize_der());
    let root = reqwest::Certificate::from_der(made.cert.der()).expect("a certificate");
    (certificate, key, root)
}

#[tokio::test]
async fn with_a_certificate_the_api_and_websockets_are_served_over_tls() {
    let dir = tempfile::tempdir().expect("a folder");
    let (certificate, key, root) = certificate(dir.path());
    let naru = Naru::start(&["--tls-certificate", &certificate, "--tls-key", &key]).await;
    let address = naru.url.strip_prefix("https://").expect("an https URL").to_owned();
    let url = format!("https://{}", address.replace("127.0.0.1", "localhost"));
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([root]).build().expect("a client");
    let call = |path: &str| client.get(format!("{url}{path}")).bearer_auth(token_of("A"));
    assert_eq!(call("/api/rooms").send().await.expect("an answer").status(), 200);

    let handshake = call("/ws")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let switched = handshake.send().await.expect("an answer");
    assert_eq!(switched.status(), 101);
    let mut socket = switched.upgrade().await.expect("a WebSocket");
    let mut frame = [0; 64];
    socket.read_exact(&mut frame).await.expect("a frame");
    assert!(String::from_utf8_lossy(&frame).contains(r#"{"type":"WELCOME","userId":"A""#), "{frame:?}");

    // Neither plain HTTP nor an idle TCP connection is served, and neither delays the end.
    let plain = reqwest::Client::builder().no_proxy().build().expect("a client");
    assert!(plain.get(format!("http://{address}/healthz")).send().await.is_err());
    let _idle = tokio::net::TcpStream::connect(&address).await.expect("a connection");
    naru.stop().await;
}
