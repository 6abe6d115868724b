//! What APNs takes, and what it refuses.

use naru_phones::{KEY_ID, Provider, TEAM_ID, TOPIC};
use serde_json::{Value, json};

use crate::fixture::{APNS_TOKEN, Fixture, alert, client, in_time, now, soon};

const ID: &str = "123e4567-e89b-12d3-a456-4266554400a0";

#[tokio::test]
async fn a_push_with_everything_is_taken() {
    let fixture = Fixture::new().await;
    let payload = json!({
        "aps": {"alert": {"title": "Ada", "body": "안녕하세요", "loc-key": "new"}, "badge": 3, "thread-id": "A_B"},
        "chatRoomId": "A_B",
        "messageId": "070707070707070707070707",
    });
    let expiration = (now() + 60).to_string();
    let headers = [
        ("apns-id", Some(ID)),
        ("apns-priority", Some("10")),
        ("apns-expiration", Some(expiration.as_str())),
        ("apns-collapse-id", Some("A_B")),
    ];
    let answered = fixture.device(APNS_TOKEN, &headers, &payload).await;
    assert_eq!((answered.status, answered.text.as_str()), (200, ""));
    assert_eq!(answered.header("apns-id"), Some(ID));

    let pushes = fixture.handle.received();
    let push = &pushes[0];
    assert_eq!((push.provider, push.token.as_str(), push.id.as_str()), (Provider::Apns, APNS_TOKEN, ID));
    assert_eq!((push.title.as_deref(), push.body.as_deref()), (Some("Ada"), Some("안녕하세요")));
    assert_eq!((push.loc_key.as_deref(), push.badge), (Some("new"), Some(3)));
    assert_eq!((push.chat_room_id.as_deref(), push.json.clone()), (Some("A_B"), payload));
    assert_eq!(push.headers["apns-priority"], "10");
    assert!(!push.headers.contains_key("authorization"));
}

#[tokio::test]
async fn an_id_is_made_where_there_is_none() {
    let fixture = Fixture::new().await;
    let answered = fixture.push(APNS_TOKEN).await;
    let id = answered.header("apns-id").expect("an id").to_owned();
    assert_eq!(id.len(), 36);
    assert_eq!(fixture.handle.received()[0].id, id);
    // Upper case is a UUID too, and comes back as it is.
    let upper = ID.to_uppercase();
    let answered = fixture.device(APNS_TOKEN, &[("apns-id", Some(&upper))], &alert()).await;
    assert_eq!((answered.status, answered.header("apns-id")), (200, Some(upper.as_str())));
}

#[tokio::test]
async fn headers_that_are_wrong_are_refused() {
    let fixture = Fixture::new().await;
    let long = "x".repeat(65);
    let cases: [(&str, Option<&str>, &str); 18] = [
        ("apns-topic", None, "MissingTopic"),
        ("apns-topic", Some(""), "MissingTopic"),
        ("apns-topic", Some("com.example.other"), "DeviceTokenNotForTopic"),
        ("apns-push-type", None, "InvalidPushType"),
        ("apns-push-type", Some("Alert"), "InvalidPushType"),
        ("apns-priority", Some("0"), "BadPriority"),
        ("apns-priority", Some("high"), "BadPriority"),
        ("apns-priority", Some("010"), "BadPriority"),
        ("apns-id", Some("1"), "BadMessageId"),
        ("apns-id", Some("123e4567e89b12d3a4564266554400a0"), "BadMessageId"),
        ("apns-id", Some("{123e4567-e89b-12d3-a456-4266554400a0}"), "BadMessageId"),
        ("apns-id", Some("123e4567-e89b-12d3-a456-4266554400ag"), "BadMessageId"),
        ("apns-expiration", Some("-1"), "BadExpirationDate"),
        ("apns-expiration", Some("1.5"), "BadExpirationDate"),
        ("apns-expiration", Some("soon"), "BadExpirationDate"),
        ("apns-expiration", Some("99999999999999999999"), "BadExpirationDate"),
        ("apns-expiration", Some(""), "BadExpirationDate"),
        ("apns-collapse-id", Some(&long), "BadCollapseId"),
    ];
    for (name, value, reason) in cases {
        let answered = fixture.device(APNS_TOKEN, &[(name, value)], &alert()).await;
        assert_eq!(answered.reason(), (400, reason.to_owned()), "{name}: {value:?}");
        assert!(answered.header("apns-id").is_some());
    }
    assert_eq!(fixture.handle.taken(), 0);
}

#[tokio::test]
async fn headers_that_are_right_are_taken() {
    let fixture = Fixture::new().await;
    let longest = "x".repeat(64);
    let cases: [(&str, &str); 5] = [
        ("apns-priority", "1"),
        ("apns-priority", "5"),
        ("apns-expiration", "0"),
        ("apns-collapse-id", &longest),
        ("apns-id", ID),
    ];
    for (name, value) in cases {
        assert_eq!(
            fixture.device(APNS_TOKEN, &[(name, Some(value))], &alert()).await.status,
            200,
            "{name}: {value}"
        );
    }
}

#[tokio::test]
async fn headers_that_come_twice_are_refused() {
    let fixture = Fixture::new().await;
    for name in
        ["apns-id", "apns-topic", "apns-push-type", "apns-priority", "apns-expiration", "apns-collapse-id"]
    {
        let value = match name {
            "apns-id" => ID,
            "apns-topic" => TOPIC,
            "apns-push-type" => "alert",
            _ => "5",
        };
        let twice = [(name, Some(value)), (name, Some(value))];
        let answered = fixture.device(APNS_TOKEN, &twice, &alert()).await;
        assert_eq!(answered.reason(), (400, "DuplicateHeaders".to_owned()), "{name}");
    }
}

#[tokio::test]
async fn device_tokens_that_are_none_are_refused() {
    let fixture = Fixture::new().await;
    for token in
        ["", "00", "00/11", &APNS_TOKEN[..62], &"g".repeat(64), &"a".repeat(202), &"a".repeat(65), "%20"]
    {
        assert_eq!(fixture.push(token).await.reason(), (400, "BadDeviceToken".to_owned()), "{token}");
    }
    for token in [APNS_TOKEN, &APNS_TOKEN.to_uppercase(), &"a".repeat(200)] {
        assert_eq!(fixture.push(token).await.status, 200, "{token}");
    }
}

#[tokio::test]
async fn paths_and_methods_that_are_none_are_refused() {
    let fixture = Fixture::new().await;
    let url = fixture.phones.apns_url();
    let post = async |path: &str| {
        in_time(fixture.client.post(format!("{url}{path}")).body("{}")).await.expect("an answer").reason()
    };
    for path in ["/", "/3", "/2/device/00", "/3/devices/00"] {
        assert_eq!(post(path).await, (404, "BadPath".to_owned()), "{path}");
    }
    let get = fixture.client.get(format!("{url}/3/device/{APNS_TOKEN}"));
    assert_eq!(in_time(get).await.expect("an answer").reason(), (405, "MethodNotAllowed".to_owned()));
}

#[tokio::test]
async fn payloads_that_are_wrong_are_refused() {
    let fixture = Fixture::new().await;
    let sized = |bytes: usize| {
        let empty = json!({"aps": {"alert": ""}}).to_string().len();
        json!({"aps": {"alert": "x".repeat(bytes - empty)}})
    };
    assert_eq!(fixture.device(APNS_TOKEN, &[], &sized(4_096)).await.status, 200);
    let answered = fixture.device(APNS_TOKEN, &[], &sized(4_097)).await;
    assert_eq!(answered.reason(), (413, "PayloadTooLarge".to_owned()));
    let empty = (400, "PayloadEmpty".to_owned());
    for payload in [json!({}), json!([]), json!({"alert": "Ada"}), json!({"aps": "Ada"}), json!("aps")] {
        assert_eq!(fixture.device(APNS_TOKEN, &[], &payload).await.reason(), empty, "{payload}");
    }
    for body in ["", "{"] {
        let request = fixture.device_request(APNS_TOKEN, &[], &Value::Null).body(body);
        assert_eq!(in_time(request).await.expect("an answer").reason(), empty, "{body}");
    }
}

#[tokio::test]
async fn provider_tokens_that_do_not_count_are_refused() {
    let fixture = Fixture::new().await;
    let refused = async |authorization: Option<&str>| {
        fixture.device(APNS_TOKEN, &[("authorization", authorization)], &alert()).await.reason()
    };
    let missing = (403, "MissingProviderToken".to_owned());
    assert_eq!(refused(None).await, missing);
    assert_eq!(refused(Some("bearer")).await, missing);
    assert_eq!(refused(Some("basic QTpC")).await, missing);

    let claims = |team: &str, issued: u64| json!({"iss": team, "iat": issued});
    let bearer = |claims: Value, key_id: &str| format!("bearer {}", fixture.provider_token(&claims, key_id));
    let invalid = (403, "InvalidProviderToken".to_owned());
    for authorization in [
        "bearer a.b.c".to_owned(),
        bearer(claims(TEAM_ID, now()), "OTHERKEY01"),
        bearer(claims("OTHERTEAM1", now()), KEY_ID),
        bearer(claims(TEAM_ID, now() + 600), KEY_ID),
        bearer(json!({"iss": TEAM_ID}), KEY_ID),
    ] {
        assert_eq!(refused(Some(&authorization)).await, invalid, "{authorization}");
    }
    let other = Fixture::with_new_keys().await;
    let forged = format!("bearer {}", other.provider_token(&claims(TEAM_ID, now()), KEY_ID));
    assert_eq!(refused(Some(&forged)).await, invalid);

    let old = bearer(claims(TEAM_ID, now() - 3_601), KEY_ID);
    assert_eq!(refused(Some(&old)).await, (403, "ExpiredProviderToken".to_owned()));
    assert_eq!(fixture.handle.taken(), 0);
}

#[tokio::test]
async fn http_1_1_is_not_spoken() {
    let fixture = Fixture::new().await;
    let client = client(&fixture.phones).http1_only().build().expect("a client");
    let request = client.post(format!("{}/3/device/{APNS_TOKEN}", fixture.phones.apns_url())).body("{}");
    let error = soon(request.send()).await.expect_err("no protocol in common");
    assert!(error.is_connect() || error.is_request(), "{error:?}");
    assert_eq!(fixture.handle.counts(Provider::Apns).requests, 0);
}
