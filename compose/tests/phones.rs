//! Phones that buzz: FCM and APNs as their providers speak them, and the backend beside.

use std::collections::BTreeSet;
use std::sync::Arc;

use naru::pipeline::Changes;
use naru_client::{Http, TEST_TIMEOUT, Webhook};
use naru_faults::{Recorder, intercepted};
use naru_model::RoomId;
use naru_phones::{Handle, Options, Phones, Provider};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::{Naru, phone_on, token_of};

/// The two providers, and where their keys are.
pub struct Emulator {
    pub phones: Phones,
    _keys: TempDir,
}

impl Emulator {
    pub async fn new() -> Self {
        let keys = tempfile::tempdir().expect("a folder for the keys");
        let phones = Phones::start(Options::in_dir(keys.path())).await.expect("two providers");
        Self { phones, _keys: keys }
    }

    pub fn handle(&self) -> Handle {
        self.phones.handle()
    }

    /// The flags that lead a Naru here.
    pub fn flags(&self) -> Vec<String> {
        let flag =
            |name: &str| format!("--{}", name.trim_start_matches("NARU_").to_lowercase().replace('_', "-"));
        self.phones.environment().into_iter().flat_map(|(name, value)| [flag(name), value]).collect()
    }
}

/// A token of APNs' form.
pub fn apns_token(number: usize) -> String {
    format!("{number:064x}")
}

/// Ben has a phone of each kind; he is offline.
#[tokio::test]
async fn each_of_bens_phones_buzzes_once() {
    each_of_bens_phones_buzzes_once_in_one_process(&Emulator::new().await, &[]).await;
}

/// The same on whatever these flags say, and the push is enqueued before the message is published.
pub async fn each_of_bens_phones_buzzes_once_in_one_process(emulator: &Emulator, flags: &[&str]) {
    let calls = Arc::new(Recorder::default());
    let (of_emulator, interceptor) = (emulator.flags(), calls.clone());
    let flags: Vec<_> = of_emulator.iter().map(String::as_str).chain(flags.iter().copied()).collect();
    let changes = Changes {
        engines: Some(Box::new(move |engines| intercepted(engines, interceptor))),
        ..Changes::default()
    };
    let mut naru = Naru::start_with(&flags, changes).await;
    each_of_bens_phones_buzzes_once_on(&naru.url, &mut naru.backend, &emulator.handle()).await;
    let room = RoomId::new("A_B").expect("a room id");
    assert!(calls.came_before(&room, "offline.send", "live.publish"), "{:?}", calls.log());
    naru.stop().await;
}

/// The same on any Naru whose keys are those of the emulator.
pub async fn each_of_bens_phones_buzzes_once_on(url: &str, backend: &mut Webhook, emulator: &Handle) {
    let (ada, ben) = (Http::new(url, &token_of("A")), Http::new(url, &token_of("B")));
    ada.create_room(&["A", "B"]).await;
    for (device, platform, token) in
        [("pixel", "fcm", "token-of-bens-pixel".to_owned()), ("iphone", "apns", apns_token(0xbe))]
    {
        let body = json!({ "platform": platform, "token": token, "environment": "sandbox", "locale": "ko" });
        let (status, registered) = ben.put(&format!("/api/devices/{device}"), body).await;
        assert_eq!((status, &registered["deviceId"]), (200, &json!(device)), "{registered}");
    }

    let mut phone = phone_on(url, "A").await;
    let mut ids = Vec::new();
    for (number, content) in ["안녕하세요", "밥 먹었어?"].into_iter().enumerate() {
        phone.chat("A_B", content, &format!("a-{number}")).await;
        ids.push(phone.expect("ACK").await["id"].as_str().expect("an id").to_owned());
        // One after the other, so that the badge counts what was said before.
        timeout(TEST_TIMEOUT, emulator.wait_for(2 * (number as u64 + 1))).await.expect("both phones buzz");
        let post = backend.next().await;
        assert_eq!((&post.json["userId"], &post.json["body"]), (&json!("B"), &json!(content)));
    }
    backend.none_waiting();

    let pushes = emulator.received();
    let seen: BTreeSet<_> = pushes
        .iter()
        .map(|push| {
            assert_eq!((push.title.as_deref(), push.chat_room_id.as_deref()), (Some("Ada"), Some("A_B")));
            (push.provider == Provider::Fcm, push.message_id.clone().expect("an id"), push.badge)
        })
        .collect();
    let expected = [
        (true, ids[0].clone(), None),
        (true, ids[1].clone(), None),
        (false, ids[0].clone(), Some(1)),
        (false, ids[1].clone(), Some(2)),
    ];
    assert_eq!(seen, BTreeSet::from(expected));
    assert_eq!(pushes.len(), 4, "each once");

    // A member who muted the room gets no push, and a phone that changes its user belongs to its new user.
    let (status, _) = ben.put("/api/rooms/A_B/settings", json!({ "muted": true })).await;
    assert_eq!(status, 200);
    let body = json!({ "platform": "fcm", "token": "token-of-bens-pixel" });
    assert_eq!(Http::new(url, &token_of("C")).put("/api/devices/mine", body).await.0, 200);
    let (_, left) = ben.get("/api/devices").await;
    assert_eq!(left["devices"].as_array().expect("a list").len(), 1, "{left}");
}
