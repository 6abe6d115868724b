//! FCM and APNs over real HTTP/2 and TLS: what the providers are sent, and what follows from what they answer.

use naru_engines::store::Advance;
use naru_phones::{Answer, ApnsReason, Behaviour, FcmError, Handle, Options, Phones, Provider as At, Push};
use serde_json::json;

use super::*;

/// An installation whose keys are those of the two providers.
struct DeviceFixture {
    fixture: Fixture,
    phones: Phones,
    _keys: TempDir,
}

impl DeviceFixture {
    async fn new() -> Self {
        let keys = tempfile::tempdir().unwrap();
        let phones = Phones::start(Options::in_dir(keys.path())).await.unwrap();
        Self { fixture: Fixture::new().await, phones, _keys: keys }
    }

    fn handle(&self) -> Handle {
        self.phones.handle()
    }

    fn config(&self) -> Config {
        with_phones(config(None), &self.phones)
    }

    fn start(&self, config: Config) -> Running {
        Running::start(&self.fixture, config, [])
    }

    /// The push that came after so many others.
    async fn push(&self, after: u64) -> Arc<Push> {
        timeout(TEST_TIMEOUT, self.handle().next(after)).await.expect("a push")
    }

    /// B has this token.
    async fn registers(&self, device: &str, platform: Platform, token: &str) -> Device {
        let device = Device {
            token: token.into(),
            id: DeviceId::new(device).unwrap(),
            ..self.fixture.registers("B", device, platform).await
        };
        self.fixture.engines.store.devices.claim(device.clone()).await.unwrap();
        device
    }

    async fn devices(&self) -> Vec<Device> {
        self.fixture.engines.store.devices.of_users(&[user("B")]).await.unwrap()
    }

    /// B misses this.
    async fn misses(&self, content: &str) -> Message {
        let message = self.fixture.says(content).await;
        self.fixture.missed(&message, &["B"]).await;
        message
    }

    /// B misses so many.
    async fn misses_many(&self, count: usize) {
        for number in 0..count {
            self.misses(&format!("message {number}")).await;
        }
    }
}

/// A configuration with these phones' keys.
pub(crate) fn with_phones(config: Config, phones: &Phones) -> Config {
    let environment: std::collections::HashMap<_, _> = phones.environment().into_iter().collect();
    let text = |name: &str| environment.get(name).cloned();
    Config {
        fcm_service_account_file: text("NARU_FCM_SERVICE_ACCOUNT_FILE").map(Into::into),
        fcm_base_url: text("NARU_FCM_BASE_URL"),
        apns_key_file: text("NARU_APNS_KEY_FILE").map(Into::into),
        apns_key_id: text("NARU_APNS_KEY_ID"),
        apns_team_id: text("NARU_APNS_TEAM_ID"),
        apns_topic: text("NARU_APNS_TOPIC"),
        apns_base_url: text("NARU_APNS_BASE_URL"),
        extra_ca_file: text("NARU_EXTRA_CA_FILE").map(Into::into),
        ..config
    }
}

/// A token of APNs' form.
fn hex(start: &str) -> String {
    format!("{start:0<64}")
}

fn of_lane(lane: &str, outcome: &str, count: usize) -> String {
    format!("pushes_total{{lane=\"{lane}\",outcome=\"{outcome}\"}} {count}")
}

#[tokio::test]
async fn what_fcm_is_sent() {
    let fixture = DeviceFixture::new().await;
    let notifier = fixture.start(fixture.config());
    fixture.registers("pixel", Platform::Fcm, "token-of-the-pixel").await;
    let message = fixture.misses("안녕하세요").await;
    let push = fixture.push(0).await;

    let ttl = push.json["message"]["android"]["ttl"].as_str().unwrap().to_owned();
    let seconds: u64 = ttl.strip_suffix('s').unwrap().parse().unwrap();
    assert!((86_300..=86_400).contains(&seconds), "{ttl} is what is left of a day");
    let id = message.id.to_string();
    let expected = json!({ "message": {
        "token": "token-of-the-pixel",
        "notification": { "title": "Ada", "body": "안녕하세요" },
        "data": { "chatRoomId": "A_B", "messageId": id },
        "android": {
            "priority": "HIGH",
            "ttl": ttl,
            "notification": { "tag": id, "channel_id": "messages", "default_sound": true },
        },
        // An iPhone whose app is reached through FCM.
        "apns": {
            "headers": {
                "apns-collapse-id": id,
                "apns-expiration": (message.timestamp.as_millis() / 1000 + 24 * 3600).to_string(),
                "apns-priority": "10",
            },
            "payload": {
                "aps": { "badge": 1, "sound": "default", "thread-id": "A_B", "mutable-content": 1 },
            },
        },
    } });
    assert_eq!(push.json, expected);
    assert_eq!(push.headers["user-agent"], concat!("naru/", env!("CARGO_PKG_VERSION")));
    notifier.counts(&of_lane("fcm", "pushed", 1)).await;
    notifier.finished().await;
    assert_eq!(fixture.handle().taken(), 1);
}

#[tokio::test]
async fn what_apns_is_sent() {
    let fixture = DeviceFixture::new().await;
    let notifier = fixture.start(fixture.config());
    let token = hex("abc");
    fixture.registers("iphone", Platform::Apns, &token).await;
    fixture.fixture.says("before").await;
    let message = fixture.fixture.says("안녕하세요").await;
    fixture.fixture.missed(&message, &["B"]).await;
    let push = fixture.push(0).await;

    let id = message.id.to_string();
    let expected = json!({
        "aps": {
            "alert": { "title": "Ada", "body": "안녕하세요" },
            "badge": 2,
            "sound": "default",
            "thread-id": "A_B",
            "mutable-content": 1,
        },
        "chatRoomId": "A_B",
        "messageId": id,
    });
    assert_eq!(push.json, expected);
    assert_eq!(push.token, token);
    let header = |name: &str| push.headers.get(name).map(String::as_str).unwrap_or_default();
    assert_eq!(header("apns-topic"), naru_phones::TOPIC);
    assert_eq!((header("apns-push-type"), header("apns-priority")), ("alert", "10"));
    assert_eq!(header("apns-collapse-id"), id);
    assert_eq!(header("apns-id").len(), 36);
    let expiration: i64 = header("apns-expiration").parse().unwrap();
    assert_eq!(expiration, message.timestamp.as_millis() / 1000 + 24 * 3600);
    notifier.finished().await;
    assert_eq!(fixture.handle().taken(), 1);
}

#[tokio::test]
async fn a_groups_push_names_the_group() {
    let (fixture, mut backend) = (Fixture::of_group("Project X").await, Webhook::start().await);
    let fixture = DeviceFixture { fixture, ..DeviceFixture::new().await };
    let config = Config { push_webhook_url: Some(backend.url("/push").into()), ..fixture.config() };
    let notifier = fixture.start(config);
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    fixture.registers("iphone", Platform::Apns, &hex("1")).await;
    fixture.misses("hello").await;
    timeout(TEST_TIMEOUT, fixture.handle().wait_for(2)).await.unwrap();
    for push in fixture.handle().received() {
        assert_eq!(push.body.as_deref(), Some("hello"));
        if push.token == "pixel" {
            assert_eq!(push.title.as_deref(), Some("Ada · Project X"));
            assert_eq!(push.json["message"]["data"]["chatRoomName"], "Project X");
        } else {
            let alert = json!({ "title": "Ada", "subtitle": "Project X", "body": "hello" });
            assert_eq!(push.json["aps"]["alert"], alert);
        }
    }
    let post = backend.next().await.json;
    assert_eq!((&post["title"], &post["data"]["chatRoomName"]), (&json!("Ada"), &json!("Project X")));
    notifier.finished().await;

    let title = "{group} ({sender}, {x})".to_owned();
    let notifier = fixture.start(Config { push_group_title: title, ..fixture.config() });
    fixture.misses("again").await;
    timeout(TEST_TIMEOUT, fixture.handle().wait_for(4)).await.unwrap();
    let titles: Vec<_> =
        fixture.handle().received_after(2).iter().map(|push| push.title.clone().unwrap()).collect();
    assert!(titles.contains(&"Project X (Ada, {x})".to_owned()), "{titles:?}");
    notifier.finished().await;
}

#[tokio::test]
async fn a_muted_room_does_not_count_in_the_badge() {
    let fixture = DeviceFixture::new().await;
    let muted = Fixture::of_group("Noise").await;
    // The same data, with both rooms.
    let noise = NewRoom {
        id: muted.room.clone(),
        kind: RoomKind::Group,
        name: None,
        member_ids: sorted_members([user("A"), user("B"), user("C")]),
        maker_id: None,
    };
    fixture.fixture.engines.store.rooms.create(noise).await.unwrap();
    let noisy = Message { chat_room_id: muted.room.clone(), ..muted.says("noise").await };
    fixture.fixture.engines.store.messages.append_run(&[noisy]).await.unwrap();
    let settings = naru_engines::store::MemberSettings { muted: true, muted_until: None };
    fixture.fixture.engines.store.rooms.configure(&muted.room, &user("B"), settings).await.unwrap();
    let notifier = fixture.start(fixture.config());
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    fixture.registers("iphone", Platform::Apns, &hex("1")).await;
    fixture.misses("hello").await;
    timeout(TEST_TIMEOUT, fixture.handle().wait_for(2)).await.unwrap();
    for push in fixture.handle().received() {
        let aps = if push.token == "pixel" {
            &push.json["message"]["apns"]["payload"]["aps"]
        } else {
            &push.json["aps"]
        };
        assert_eq!(aps["badge"], 1, "{}", push.token);
    }
    notifier.finished().await;
}

#[tokio::test]
async fn every_device_and_the_backend_get_one_push_each() {
    let (fixture, mut backend) = (DeviceFixture::new().await, Webhook::start().await);
    let config = Config {
        push_webhook_url: Some(backend.url("/push").into()),
        push_webhook_secret: Some(SECRET.to_owned().into()),
        ..fixture.config()
    };
    let notifier = fixture.start(config);
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    fixture.registers("iphone", Platform::Apns, &hex("1")).await;
    let message = fixture.misses("hello").await;
    // Handed over again, as after a crash of its sender.
    fixture.fixture.missed(&message, &["B"]).await;
    for lane in ["fcm", "apns", "webhook"] {
        notifier.counts(&of_lane(lane, "pushed", 1)).await;
    }
    notifier.counts("offline_events_total 2").await;
    fixture.fixture.nothing_is_queued().await;
    notifier.finished().await;

    let post = backend.next().await;
    assert_eq!(post.json["body"], "hello");
    backend.none_waiting();
    let tokens: HashSet<_> = fixture.handle().received().iter().map(|push| push.token.clone()).collect();
    assert_eq!(tokens, HashSet::from(["pixel".to_owned(), hex("1")]));
    assert_eq!(fixture.handle().taken(), 2);
    // Each is recorded, with the id that its provider gave it.
    let by_webhook = (post.header("x-naru-event-id").replace('-', ""), "status 200".to_owned());
    let recorded = fixture.fixture.recorded();
    let by_apns = |(event, id): &&(String, String)| id.replace('-', "") == *event;
    assert_eq!(recorded.len(), 3);
    assert!(recorded.contains(&by_webhook), "{recorded:?}");
    assert_eq!(recorded.iter().filter(by_apns).count(), 1, "{recorded:?}");
    assert_eq!(recorded.iter().filter(|(_, id)| id.starts_with("projects/")).count(), 1, "{recorded:?}");
}

#[tokio::test]
async fn what_is_hidden_is_not_sent() {
    let fixture = DeviceFixture::new().await;
    let notifier = fixture.start(fixture.config());
    for (name, platform, token) in
        [("pixel", Platform::Fcm, "pixel".to_owned()), ("iphone", Platform::Apns, hex("1"))]
    {
        let device = fixture.registers(name, platform, &token).await;
        let shy = Device { hides_content: true, ..device };
        fixture.fixture.engines.store.devices.claim(shy).await.unwrap();
    }
    fixture.registers("tablet", Platform::Fcm, "tablet").await;
    fixture.misses("a secret").await;
    timeout(TEST_TIMEOUT, fixture.handle().wait_for(3)).await.unwrap();
    for push in fixture.handle().received() {
        let text = push.json.to_string();
        if push.token == "tablet" {
            assert_eq!(push.body.as_deref(), Some("a secret"));
            continue;
        }
        assert!(!text.contains("a secret") && !text.contains("Ada"), "{text}");
        assert_eq!(push.loc_key.as_deref(), Some("NARU_NEW_MESSAGE"));
        assert_eq!((push.title.as_deref(), push.body.as_deref()), (None, None));
    }
    notifier.finished().await;

    let strict = Config { push_hide_content: true, push_loc_key: "NEW".to_owned(), ..fixture.config() };
    let notifier = fixture.start(strict);
    fixture.misses("another").await;
    timeout(TEST_TIMEOUT, fixture.handle().wait_for(6)).await.unwrap();
    for push in fixture.handle().received_after(3) {
        assert_eq!((push.loc_key.as_deref(), push.body.as_deref()), (Some("NEW"), None));
    }
    notifier.finished().await;
}

#[tokio::test]
async fn a_long_message_is_cut_between_two_characters() {
    let fixture = DeviceFixture::new().await;
    let notifier = fixture.start(fixture.config());
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    fixture.registers("iphone", Platform::Apns, &hex("1")).await;
    let families = "👨‍👩‍👧‍👦".repeat(320);
    assert!(families.len() <= 8192, "what the gateway takes");
    fixture.misses(&families).await;
    timeout(TEST_TIMEOUT, fixture.handle().wait_for(2)).await.unwrap();
    for push in fixture.handle().received() {
        let body = push.body.as_deref().unwrap();
        let kept = body.strip_suffix('…').expect("an ellipsis");
        assert!(
            families.starts_with(kept) && kept.len().is_multiple_of(25) && kept.len() > 3500,
            "{}",
            kept.len()
        );
    }
    notifier.finished().await;
}

#[tokio::test]
async fn a_message_that_was_read_when_its_turn_comes_is_not_pushed() {
    let fixture = DeviceFixture::new().await;
    let (handle, read) = (fixture.handle(), fixture.fixture.engines.store.positions.clone());
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    handle.answer("pixel", Answer::fcm(FcmError::Unavailable));
    let notifier = fixture.start(fixture.config());
    let message = fixture.misses("hello").await;
    notifier.counts_at_least("retries_total{lane=\"fcm\"}", 2).await;
    let step = Advance {
        room: message.chat_room_id.clone(),
        user: user("B"),
        device: None,
        received: message.seq,
        read: message.seq,
    };
    read.advance(&[step]).await.unwrap();
    notifier.counts("spared_total{reason=\"read\"} 1").await;
    fixture.fixture.nothing_is_queued().await;
    handle.answer_as_usual("pixel");
    notifier.finished().await;
    assert_eq!(handle.taken(), 0);
}

#[tokio::test]
async fn a_dead_token_is_forgotten_and_another_one_stays() {
    let fixture = DeviceFixture::new().await;
    let notifier = fixture.start(fixture.config());
    fixture.registers("pixel", Platform::Fcm, "x~unregistered").await;
    fixture.registers("iphone", Platform::Apns, &hex("00000410")).await;
    let kept = fixture.registers("tablet", Platform::Fcm, "tablet").await;
    // It was registered again after Apple found out that it was gone.
    let back = fixture.registers("watch", Platform::Apns, &hex("2")).await;
    let before = u64::try_from(back.registered_at.as_millis()).unwrap() - 1;
    fixture.handle().answer(&back.token, Answer::apns(ApnsReason::Unregistered).since(before));
    fixture.misses("hello").await;
    let parked = fixture.fixture.parked(3).await;
    assert!(parked.iter().all(|push| push.reason == "the token is dead"));
    let left: HashSet<_> = fixture.devices().await.into_iter().map(|device| device.id).collect();
    assert_eq!(left, HashSet::from([kept.id, back.id]));
    notifier.counts("tokens_removed_total{lane=\"apns\"} 1").await;
    notifier.counts("tokens_removed_total{lane=\"fcm\"} 1").await;
    notifier.finished().await;
}

#[tokio::test]
async fn our_own_fault_costs_no_token_and_no_push() {
    let fixture = DeviceFixture::new().await;
    let handle = fixture.handle();
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    fixture.registers("iphone", Platform::Apns, &hex("1")).await;
    let unauthenticated =
        Answer::raw(401, r#"{"error":{"code":401,"message":"","status":"UNAUTHENTICATED"}}"#);
    let no_such_project = Answer::raw(404, r#"{"error":{"code":404,"message":"","status":"NOT_FOUND"}}"#);
    let fcm = [FcmError::SenderIdMismatch, FcmError::ThirdPartyAuthError].map(Answer::fcm);
    handle.answer_once("pixel", fcm.into_iter().chain([unauthenticated, no_such_project]));
    let apns = [
        ApnsReason::DeviceTokenNotForTopic,
        ApnsReason::TopicDisallowed,
        ApnsReason::ExpiredProviderToken,
        ApnsReason::InvalidProviderToken,
    ];
    handle.answer_once(&hex("1"), apns.map(Answer::apns));
    let notifier = fixture.start(fixture.config());
    fixture.misses("hello").await;
    timeout(TEST_TIMEOUT, handle.wait_for(2)).await.unwrap();
    notifier.counts("configuration_refused_total{lane=\"fcm\"} 4").await;
    notifier.counts("configuration_refused_total{lane=\"apns\"} 4").await;
    notifier.finished().await;
    assert_eq!(fixture.devices().await.len(), 2);
    // The access token that was refused was not used again.
    assert_eq!(handle.counts(At::Fcm).oauth_tokens_issued, 2);
}

#[tokio::test]
async fn tokens_that_are_all_of_another_environment_are_our_fault() {
    let fixture = DeviceFixture::new().await;
    for number in 0..9 {
        fixture
            .registers(&format!("phone{number}"), Platform::Apns, &hex(&format!("00000400{number}")))
            .await;
    }
    let notifier = fixture.start(Config { push_concurrency: NonZeroUsize::MIN, ..fixture.config() });
    fixture.misses("hello").await;
    notifier.counts("tokens_removed_total{lane=\"apns\"} 5").await;
    notifier.counts_at_least("configuration_refused_total{lane=\"apns\"}", 4).await;
    assert_eq!(fixture.devices().await.len(), 4, "no more than five go");

    // Once Apple takes a push, a bad token is a bad token again.
    fixture.registers("good", Platform::Apns, &hex("a")).await;
    fixture.misses("are you there?").await;
    timeout(TEST_TIMEOUT, fixture.handle().wait_for(1)).await.unwrap();
    until(|| async { (fixture.devices().await.len() == 1).then_some(()) }).await;
    notifier.finished().await;
}

#[tokio::test]
async fn a_provider_that_asks_to_wait_is_not_called_before() {
    let fixture = DeviceFixture::new().await;
    let handle = fixture.handle();
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    fixture.registers("iphone", Platform::Apns, &hex("1")).await;
    handle.answer_once("pixel", [Answer::fcm(FcmError::QuotaExceeded).retry_after(1)]);
    handle.answer_once(&hex("1"), [Answer::apns(ApnsReason::TooManyRequests).retry_after(1)]);
    let notifier = fixture.start(fixture.config());
    let begun = std::time::Instant::now();
    fixture.misses("hello").await;
    timeout(TEST_TIMEOUT, handle.wait_for(2)).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(999), "{:?}", begun.elapsed());
    notifier.finished().await;
    assert_eq!((handle.counts(At::Fcm).refused, handle.counts(At::Apns).refused), (1, 1));
}

#[tokio::test]
async fn an_answer_that_was_lost_makes_a_push_that_can_be_recognised() {
    let fixture = DeviceFixture::new().await;
    let handle = fixture.handle();
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    fixture.registers("iphone", Platform::Apns, &hex("1")).await;
    for token in ["pixel".to_owned(), hex("1")] {
        handle.answer_once(&token, [Answer::TakenUnanswered]);
    }
    let notifier = fixture.start(fixture.config());
    fixture.misses("hello").await;
    timeout(TEST_TIMEOUT, handle.wait_for(4)).await.unwrap();
    notifier.counts(&of_lane("fcm", "pushed", 1)).await;
    notifier.counts(&of_lane("apns", "pushed", 1)).await;
    notifier.finished().await;
    // By its tag, and by its apns-id, the second is the first once more.
    assert_eq!((handle.counts(At::Fcm).repeated, handle.counts(At::Apns).repeated), (1, 1));
}

#[tokio::test]
async fn a_burst_goes_through_one_connection_with_one_token() {
    let fixture = DeviceFixture::new().await;
    let handle = fixture.handle();
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    fixture.registers("iphone", Platform::Apns, &hex("1")).await;
    fixture.misses_many(200).await;
    // As far away as Apple is.
    handle.set(At::Apns, Behaviour::Slow(20 * MS)).await;
    let notifier =
        fixture.start(Config { push_concurrency: NonZeroUsize::new(64).unwrap(), ..fixture.config() });
    timeout(TEST_TIMEOUT, handle.wait_for(400)).await.unwrap();
    notifier.finished().await;
    let (fcm, apns) = (handle.counts(At::Fcm), handle.counts(At::Apns));
    assert_eq!((fcm.taken, fcm.repeated, fcm.oauth_tokens_issued), (200, 0, 1));
    assert_eq!((apns.taken, apns.repeated, apns.jwts_seen, apns.connections), (200, 0, 1, 1));
    assert!(apns.max_streams_at_once > 8, "{apns:?}");
}

#[tokio::test]
async fn one_stream_at_a_time_is_enough() {
    let fixture = DeviceFixture::new().await;
    let handle = fixture.handle();
    for at in [At::Fcm, At::Apns] {
        handle.set(at, Behaviour::Streams(1)).await;
    }
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    fixture.registers("iphone", Platform::Apns, &hex("1")).await;
    fixture.misses_many(50).await;
    let notifier =
        fixture.start(Config { push_concurrency: NonZeroUsize::new(64).unwrap(), ..fixture.config() });
    timeout(TEST_TIMEOUT, handle.wait_for(100)).await.unwrap();
    notifier.finished().await;
    for at in [At::Fcm, At::Apns] {
        let counts = handle.counts(at);
        assert_eq!((counts.taken, counts.repeated, counts.max_streams_at_once), (50, 0, 1), "{at:?}");
    }
}

#[tokio::test]
async fn a_server_that_leaves_all_the_time_gets_every_push_once() {
    let fixture = DeviceFixture::new().await;
    let handle = fixture.handle();
    for at in [At::Fcm, At::Apns] {
        handle.set(at, Behaviour::GoAway(5 * MS)).await;
    }
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    fixture.registers("iphone", Platform::Apns, &hex("1")).await;
    fixture.misses_many(200).await;
    let notifier =
        fixture.start(Config { push_concurrency: NonZeroUsize::new(16).unwrap(), ..fixture.config() });
    timeout(TEST_TIMEOUT, handle.wait_for(400)).await.unwrap();
    notifier.counts(&of_lane("fcm", "pushed", 200)).await;
    notifier.counts(&of_lane("apns", "pushed", 200)).await;
    notifier.finished().await;
    for at in [At::Fcm, At::Apns] {
        let counts = handle.counts(at);
        assert!(counts.connections > 2, "{counts:?}");
        assert_eq!((counts.taken, counts.repeated), (200, 0), "{at:?}");
    }
}

#[tokio::test]
async fn a_provider_that_is_away_gets_its_pushes_when_it_is_back() {
    let fixture = DeviceFixture::new().await;
    let handle = fixture.handle();
    handle.set(At::Fcm, Behaviour::Refuse).await;
    handle.set(At::Apns, Behaviour::Closed).await;
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    fixture.registers("iphone", Platform::Apns, &hex("1")).await;
    fixture.misses_many(20).await;
    let notifier = fixture.start(fixture.config());
    notifier.counts("lane_paused{lane=\"fcm\"} 1").await;
    notifier.counts("lane_paused{lane=\"apns\"} 1").await;
    for at in [At::Fcm, At::Apns] {
        handle.set(at, Behaviour::Usual).await;
    }
    timeout(TEST_TIMEOUT, handle.wait_for(40)).await.unwrap();
    notifier.finished().await;
    assert_eq!((handle.counts(At::Fcm).repeated, handle.counts(At::Apns).repeated), (0, 0));
}

#[tokio::test]
async fn behind_a_base_url_without_tls_fcm_is_spoken_to_in_http_1() {
    let (fixture, mut fake) = (DeviceFixture::new().await, Webhook::start().await);
    fake.script([naru_client::Answer::body(200, r#"{"name":"projects/p/messages/1"}"#)]);
    let notifier = fixture.start(Config { fcm_base_url: Some(fake.url("/fcm/")), ..fixture.config() });
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    fixture.misses("hello").await;
    let post = fake.next().await;
    assert_eq!(post.path, format!("/fcm/v1/projects/{}/messages:send", naru_phones::PROJECT));
    assert!(post.header("authorization").starts_with("Bearer "), "by Google's token");
    assert_eq!(post.json["message"]["token"], "pixel");
    notifier.counts(&of_lane("fcm", "pushed", 1)).await;
    notifier.finished().await;
}

#[tokio::test]
async fn without_an_access_token_nothing_is_lost() {
    let fixture = DeviceFixture::new().await;
    let handle = fixture.handle();
    let endpoint = naru_phones::TOKEN_ENDPOINT;
    let invalid_grant =
        Answer::raw(400, r#"{"error":"invalid_grant","error_description":"Invalid JWT Signature."}"#);
    handle.answer_once(endpoint, [Answer::raw(503, ""), invalid_grant, Answer::Close]);
    fixture.registers("pixel", Platform::Fcm, "pixel").await;
    fixture.misses("hello").await;
    let notifier = fixture.start(fixture.config());
    timeout(TEST_TIMEOUT, handle.wait_for(1)).await.unwrap();
    notifier.counts("retries_total{lane=\"fcm\"} 3").await;
    notifier.counts("configuration_refused_total{lane=\"fcm\"} 1").await;
    notifier.finished().await;
    assert_eq!(fixture.devices().await.len(), 1);
}

#[tokio::test]
async fn devices_unseen_for_long_are_forgotten() {
    let fixture = DeviceFixture::new().await;
    let device = fixture.registers("pixel", Platform::Fcm, "pixel").await;
    let long_ago = Timestamp::now().before(Duration::from_secs(271 * 24 * 3600));
    let old = Device {
        id: DeviceId::new("old").unwrap(),
        token: "old".into(),
        registered_at: long_ago,
        ..device.clone()
    };
    fixture.fixture.engines.store.devices.claim(old).await.unwrap();
    let notifier = fixture.start(fixture.config());
    notifier.counts("devices_forgotten_total 1").await;
    notifier.finished().await;
    assert_eq!(fixture.devices().await, [device]);
}

#[tokio::test]
async fn keys_that_can_not_work_are_refused_by_name() {
    let fixture = DeviceFixture::new().await;
    let empty = fixture.fixture.dir.path().join("empty");
    std::fs::write(&empty, "{}").unwrap();
    let missing = Path::new("missing").to_owned();
    let refused = |config| notifier::check(&config).unwrap_err().to_string();
    let config = || fixture.config();
    for file in [&empty, &missing] {
        let error = refused(Config { fcm_service_account_file: Some(file.clone()), ..config() });
        assert!(error.starts_with("`fcm_service_account_file`: can't use "), "{error}");
        let error = refused(Config { apns_key_file: Some(file.clone()), ..config() });
        assert!(error.starts_with("`apns_key_file`: can't use "), "{error}");
    }
    let error = refused(Config { apns_team_id: None, ..config() });
    assert_eq!(error, "`apns_team_id` is not set, which `apns_key_file` needs");
    let error = refused(Config { fcm_base_url: Some("fcm.example".to_owned()), ..config() });
    assert_eq!(error, "`fcm_base_url` is not an http or https URL");
    notifier::check(&config()).unwrap();
}
