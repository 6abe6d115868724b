//! What is not in the log, however much of it is asked for: what people write, tokens, keys and secrets.

use std::fs::File;
use std::process::{Command, Stdio};

use naru_client::{Answer, Claims, Client, Connect, Http, TEST_TIMEOUT, Webhook, token};
use naru_phones::{Answer as ProviderAnswer, FcmError};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::output::ready;
use crate::phones::{Emulator, apns_token};
use crate::programs::{Running, unused_address};
use crate::support::SECRET;

/// In all that may not be in the log, for those who wrote it don't expect it there.
const MARK: &str = "Geheimnis";
const WEBHOOK_SECRET: &str = "the webhook's Geheimnis";

/// A whole journey: sessions and calls, good and refused; messages, pushes taken, refused and parked; a drain.
#[tokio::test]
async fn no_content_and_no_secret_is_in_the_log() {
    for format in ["text", "json"] {
        is_in_no_log(format, &[]).await;
    }
}

/// The same with these variables.
pub async fn is_in_no_log(format: &str, variables: &[(&str, &str)]) {
    let data = tempfile::tempdir().expect("a folder for the data");
    let (emulator, mut backend) = (Emulator::new().await, Webhook::start().await);
    let (address, path) = (unused_address(), data.path().join("output"));
    let output = File::create(&path).expect("a file for the output");
    let mut command = Command::new(env!("CARGO_BIN_EXE_naru"));
    command
        .env_clear()
        .env("NARU_LISTEN", address.to_string())
        .env("NARU_DATA_DIR", data.path())
        .env("NARU_JWT_SECRET", SECRET)
        .env("NARU_PUSH_WEBHOOK_URL", backend.url(&format!("/push?key={MARK}")))
        .env("NARU_PUSH_WEBHOOK_SECRET", WEBHOOK_SECRET)
        .env("NARU_LOG", "trace")
        .env("NARU_LOG_FORMAT", format)
        .envs(emulator.phones.environment())
        .envs(variables.iter().copied())
        .stdout(Stdio::from(output.try_clone().expect("another writer")))
        .stderr(Stdio::from(output));
    let mut running = Running(command.spawn().expect("it can be run"));
    ready(address).await;
    let url = format!("http://{address}");

    // Whoever writes a log line with a name in it writes two.
    let name = format!("{MARK}\r\nX-Injected: yes\n\u{1b}[31mERROR injected");
    let claims = |user: &str| Claims::user(user).name(&name).device(&format!("{MARK}-{user}"));
    let signed = |claims: &Claims| token(SECRET.as_bytes(), claims);
    let (ada_token, ben_token) = (signed(&claims("A")), signed(&claims("B")));
    let (ada, ben) = (Http::new(&url, &ada_token), Http::new(&url, &ben_token));
    let (status, room) = ada.post("/api/rooms", json!({"memberIds": ["A", "B", "C"], "name": name})).await;
    assert_eq!(status, 201, "{room}");
    let room = room["id"].as_str().expect("an id").to_owned();
    let fcm_token = format!("fcm-{MARK}");
    let fcm = json!({"platform": "fcm", "token": fcm_token, "locale": "ko"});
    assert_eq!(ben.put("/api/devices/pixel", fcm).await.0, 200);
    let apns = json!({"platform": "apns", "token": apns_token(0xbe), "environment": "sandbox"});
    assert_eq!(ben.put("/api/devices/iphone", apns).await.0, 200);

    // The backend refuses one push for good, and one device is gone: both are logged.
    let handle = emulator.handle();
    let mut phone = Connect::to(&url, &ada_token).as_browser().client().await.expect("a welcome");
    phone.welcome().await;
    for number in 1..=2 {
        if number == 2 {
            handle.answer(&fcm_token, ProviderAnswer::fcm(FcmError::Unregistered));
            backend.script([Answer::body(400, MARK), Answer::body(400, MARK)]);
        }
        phone.chat(&room, &format!("{MARK} {number}"), &format!("{MARK}-{number}")).await;
        phone.expect("ACK").await;
        // B and C are told, B on two devices besides.
        for _ in 0..2 {
            let post = backend.next().await;
            assert!(!post.headers.contains_key("x-injected"), "{:?}", post.headers);
        }
        timeout(TEST_TIMEOUT, handle.wait_for(number + 1)).await.expect("the phones buzz");
    }

    // Refused handshakes, calls and frames.
    let expired = signed(&claims("A").expired_since(TEST_TIMEOUT));
    for bad in [
        &expired,
        &format!("{MARK}.{MARK}.{MARK}"),
        &token(b"another secret of thirty-two bytes", &claims("A")),
    ] {
        assert_eq!(Client::connect(&url, bad).await.expect_err("no session").status(), Some(401));
        assert_eq!(Http::new(&url, bad).get(&format!("/api/rooms?key={MARK}")).await.0, 401);
    }
    let foreign = Connect::to(&url, &ada_token).header("origin", "https://evil.example\tX");
    assert_eq!(foreign.client().await.expect_err("no session").status(), Some(403));
    for text in [
        format!("{{{MARK}"),
        json!({"type": MARK}).to_string(),
        json!({"type": "CHAT", "chatRoomId": 5, "content": MARK}).to_string(),
    ] {
        phone.send_text(&text).await;
        assert_eq!(phone.expect("ERROR").await["code"], "INVALID_FRAME");
    }
    phone.chat("elsewhere", MARK, "c-1").await;
    assert_eq!(phone.expect("ERROR").await["code"], "ROOM_NOT_FOUND");
    assert_eq!(
        ada.put(&format!("/api/devices/{MARK}"), json!({"platform": "web", "token": MARK})).await.0,
        400
    );

    let mut phone_of_ben = Client::connect(&url, &ben_token).await.expect("a welcome");
    phone_of_ben.send_json(&json!({"type": "SYNC"})).await;
    phone_of_ben.expect("SYNCED").await;
    phone_of_ben.send_json(&json!({"type": "READ", "chatRoomId": room, "seq": 2})).await;
    phone.expect("READ").await;
    let service = Http::new(&url, &signed(&Claims::user("backend").service()));
    let event = timeout(TEST_TIMEOUT, async {
        loop {
            let (_, page) = service.get("/api/parked").await;
            let parked =
                page["parked"].as_array().expect("a list").iter().find(|push| push["lane"] == "webhook");
            if let Some(event) = parked.and_then(|push| push["eventId"].as_str()) {
                return event.to_owned();
            }
            tokio::task::yield_now().await;
        }
    });
    let event = event.await.expect("one that was refused");
    assert_eq!(service.get(&format!("/api/parked/{event}")).await.0, 200);
    assert_eq!(service.post(&format!("/api/parked/{event}/replay"), Value::Null).await.0, 202);
    assert_eq!(service.delete("/api/users/B/sessions?notBefore=2020-01-01T00:00:00Z").await.0, 204);
    assert_eq!(phone_of_ben.closed().await.0, 4401);

    running.signal(Signal::TERM);
    let ended = tokio::task::spawn_blocking(move || running.0.wait().expect("a child"));
    assert!(timeout(TEST_TIMEOUT, ended).await.expect("it stops").expect("no panic").success());
    let log = std::fs::read_to_string(&path).expect("what it said");
    for said in ["TRACE", "not pushed", "a handshake was refused", "disconnected", "draining"] {
        assert!(log.contains(said), "the log is not whole: {said}");
    }
    let service_account = std::fs::read_to_string(emulator.phones.service_account_file()).expect("its keys");
    let service_account: Value = serde_json::from_str(&service_account).expect("JSON");
    let private_key =
        service_account["private_key"].as_str().expect("a key").lines().nth(1).expect("its first line");
    let signature = |token: &str| token.rsplit('.').next().expect("a signature").to_owned();
    let secrets = [
        MARK.to_owned(),
        SECRET.to_owned(),
        WEBHOOK_SECRET.to_owned(),
        apns_token(0xbe),
        private_key.to_owned(),
        signature(&ada_token),
        signature(&ben_token),
        signature(&expired),
    ];
    let lines: Vec<_> =
        log.lines().filter(|line| secrets.iter().any(|secret| line.contains(secret))).collect();
    assert!(lines.is_empty(), "in the log as {format}:\n{}", lines.join("\n"));
    let injected: Vec<_> = log
        .lines()
        .filter(|line| line.starts_with("X-Injected") || line.contains("ERROR injected"))
        .collect();
    assert!(injected.is_empty(), "{injected:?}");
}
