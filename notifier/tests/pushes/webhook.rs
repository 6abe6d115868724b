//! The app's main backend: what it gets, and what its answers do.

use naru_client::{Answer, Post};

use super::*;

fn event_id(post: &Post) -> String {
    post.header("x-naru-event-id").to_owned()
}

#[tokio::test]
async fn a_push_is_one_signed_post() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    let url = webhook.url("/api/notifications/push?app=1");
    let notifier = Running::start(&fixture, config(Some(url)), []);
    let message = fixture.says("안녕하세요").await;
    let offline = fixture.missed(&message, &["B"]).await;
    let post = webhook.next().await;

    assert_eq!(post.path, "/api/notifications/push?app=1");
    let id = message.id;
    let body = format!(
        r#"{{"userId":"B","title":"Ada","body":"안녕하세요","data":{{"chatRoomId":"A_B","messageId":"{id}"}}}}"#
    );
    assert_eq!(post.body, body);
    assert!(post.is_signed_with(SECRET.as_bytes()));
    assert_eq!(post.header("content-type"), "application/json");
    assert_eq!(post.header("user-agent"), concat!("naru/", env!("CARGO_PKG_VERSION")));
    assert_eq!(post.header("traceparent"), offline.trace.to_string());
    assert_eq!(event_id(&post).len(), 36);
    notifier.finished().await;
    webhook.none_waiting();
}

#[tokio::test]
async fn without_a_secret_nothing_is_signed() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    let unsigned = Config { push_webhook_secret: None, ..config(Some(webhook.url("/"))) };
    let _notifier = Running::start(&fixture, unsigned, []);
    fixture.missed(&fixture.says("hello").await, &["B"]).await;
    let post = webhook.next().await;
    assert!(post.headers.contains_key("x-naru-timestamp"));
    assert!(!post.headers.contains_key("x-naru-signature"));
    assert!(!post.headers.contains_key("x-naru-signature-v2"));
}

/// Runs the check that docs/PROTOCOL.md gives to backends on real calls, and on what an attacker makes of them.
#[tokio::test]
async fn the_documented_check_takes_a_call_once_it_is_sent_and_no_changed_or_old_one() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    let notifier = Running::with_webhook(&fixture, &webhook);
    webhook.script([Answer::status(503)]);
    fixture.missed(&fixture.says("안녕하세요 \"B\"").await, &["B"]).await;
    let (post, again) = (webhook.next().await, webhook.next().await);
    notifier.finished().await;

    let case = |post: &Post, change: &dyn Fn(&mut serde_json::Value), wanted: bool| {
        let headers: serde_json::Map<_, _> =
            post.headers.keys().map(|name| (name.to_string(), post.header(name.as_str()).into())).collect();
        let seconds: i64 = post.header("x-naru-timestamp").parse().expect("seconds");
        let body = String::from_utf8_lossy(&post.body);
        let mut case = serde_json::json!({
            "secret": SECRET, "headers": headers, "body": body, "now": seconds * 1000, "wanted": wanted,
        });
        change(&mut case);
        case
    };
    let header = |name: &'static str, value: &'static str| {
        move |case: &mut serde_json::Value| case["headers"][name] = value.into()
    };
    let later = |seconds: i64| {
        move |case: &mut serde_json::Value| {
            case["now"] = (case["now"].as_i64().expect("a time") + seconds * 1000).into();
        }
    };
    let cases = serde_json::json!([
        case(&post, &|_| {}, true),
        case(&again, &|_| {}, true),
        case(&post, &later(299), true),
        case(&post, &later(301), false),
        case(&post, &later(-301), false),
        case(&post, &|case| case["body"] = "{}".into(), false),
        case(&post, &|case| case["secret"] = "another".into(), false),
        case(&post, &header("x-naru-timestamp", "1795339800"), false),
        case(&post, &header("x-naru-timestamp", "NaN"), false),
        case(&post, &header("x-naru-event-id", "another"), false),
        case(&post, &header("x-naru-signature-v2", "sha256="), false),
        // Not the signature over the body alone, which is the same for ever.
        case(
            &post,
            &|case| case["headers"]["x-naru-signature-v2"] = post.header("x-naru-signature").into(),
            false
        ),
        case(
            &post,
            &|case| {
                case["headers"].as_object_mut().expect("headers").remove("x-naru-signature-v2");
            },
            false
        ),
    ]);

    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROTOCOL.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let example =
        page.split_once("```js\n").and_then(|(_, rest)| rest.split_once("```")).expect("an example").0;
    let script = format!(
        "{example}\nfor (const {{ secret, headers, body, now, wanted }} of {cases})\n  \
         if (isFromNaru(secret, headers, Buffer.from(body), now) !== wanted)\n    \
         throw new Error(JSON.stringify({{ headers, body, now, wanted }}));"
    );
    let mut node = tokio::process::Command::new("node");
    let ran = node.args(["--input-type=module", "--eval", &script]).output().await.expect("node runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

#[tokio::test]
async fn each_recipient_is_one_post() {
    let (fixture, mut webhook) = (Fixture::of_group("Project X").await, Webhook::start().await);
    let notifier = Running::with_webhook(&fixture, &webhook);
    fixture.missed(&fixture.says("hello").await, &["B", "C", "D"]).await;
    let posts = [webhook.next().await, webhook.next().await, webhook.next().await];
    let users: HashSet<_> = posts.iter().map(|post| post.json["userId"].as_str().unwrap()).collect();
    assert_eq!(users, HashSet::from(["B", "C", "D"]));
    assert_eq!(posts.iter().map(event_id).collect::<HashSet<_>>().len(), 3);
    notifier.finished().await;
    webhook.none_waiting();
}

#[tokio::test]
async fn what_is_for_later_comes_again_under_the_same_event_id() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    // A second is longer than the longest step of the test's retry policy.
    webhook.script([Answer::status(503), Answer::retry_after(429, "1"), Answer::Close]);
    let notifier = Running::with_webhook(&fixture, &webhook);
    fixture.missed(&fixture.says("hello").await, &["B"]).await;
    let posts = [webhook.next().await, webhook.next().await, webhook.next().await, webhook.next().await];
    for post in &posts {
        assert_eq!((event_id(post), &post.body), (event_id(&posts[0]), &posts[0].body));
    }
    let waited = posts[2].arrived - posts[1].arrived;
    // The 429 was read a moment after it was sent, and the next call comes within a second after the one that was asked for.
    assert!(waited >= Duration::from_millis(999) && waited < Duration::from_secs(2), "{waited:?}");
    notifier.counts("pushes_total{lane=\"webhook\",outcome=\"pushed\"} 1").await;
    notifier.finished().await;
    webhook.none_waiting();
}

#[tokio::test]
async fn a_refused_push_is_parked_and_not_tried_again() {
    // Following a redirect would sign a push for an unknown server.
    let elsewhere = http::Response::builder().status(307).header("location", "/elsewhere");
    let redirect = Answer::Response(elsewhere.body(bytes::Bytes::new()).unwrap());
    for (status, answer) in [(400, Answer::status(400)), (307, redirect)] {
        let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
        webhook.script([answer]);
        let notifier = Running::with_webhook(&fixture, &webhook);
        let message = fixture.says("hello").await;
        fixture.missed(&message, &["B"]).await;
        let post = webhook.next().await;
        let parked = fixture.parked(1).await.remove(0);
        assert_eq!((parked.reason, parked.attempts), (format!("status {status}"), 1));
        assert_eq!((parked.job.message_id, parked.event_id.to_string()), (message.id, event_id(&post)));
        notifier.counts("pushes_total{lane=\"webhook\",outcome=\"parked\"} 1").await;
        // Had it been put off, it would be asked for once more before the queue is empty.
        fixture.nothing_is_queued().await;
        notifier.finished().await;
        webhook.none_waiting();
    }
}

#[tokio::test]
async fn a_backend_that_does_not_answer_is_asked_again() {
    let (fixture, mut webhook) = (Fixture::new().await, Webhook::start().await);
    webhook.script([Answer::Hang]);
    let impatient = Config { push_webhook_timeout: Span(50 * MS), ..config(Some(webhook.url("/"))) };
    let notifier = Running::start(&fixture, impatient, []);
    fixture.missed(&fixture.says("hello").await, &["B"]).await;
    assert_eq!(event_id(&webhook.next().await), event_id(&webhook.next().await));
    notifier.counts("retries_total{lane=\"webhook\"} 1").await;
    notifier.finished().await;
}

#[tokio::test]
async fn a_backend_that_is_away_gets_its_pushes_when_it_is_back() {
    let (fixture, webhook) = (Fixture::new().await, Webhook::start().await);
    let notifier = Running::with_webhook(&fixture, &webhook);
    let address = webhook.address();
    webhook.stop().await;
    fixture.missed(&fixture.says("hello").await, &["B"]).await;
    notifier.counts_at_least("retries_total{lane=\"webhook\"}", 3).await;
    let mut webhook = Webhook::start_at(address).await.unwrap();
    assert_eq!(webhook.next().await.json["body"], "hello");
    notifier.finished().await;
    webhook.none_waiting();
}

#[tokio::test]
async fn a_configuration_that_can_not_work_is_refused_without_a_secret_in_sight() {
    let fixture = Fixture::new().await;
    let refused = |config| {
        let error = Notifier::new(config, fixture.engines.clone(), &Metrics::new()).err().expect("refused");
        error.to_string()
    };
    for url in ["backend/push", "ftp://u:hunter2@backend/push"] {
        let error = refused(config(Some(url.to_owned())));
        assert_eq!(error, "`push_webhook_url` is not an http or https URL");
    }
    let empty = fixture.dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    for file in [empty, fixture.dir.path().join("missing.pem")] {
        let error = refused(Config { extra_ca_file: Some(file), ..config(Some("https://backend".into())) });
        assert!(error.starts_with("`extra_ca_file`: can't use "), "{error}");
    }
}
