//! What FCM takes, and what it refuses.

use naru_phones::Provider;
use serde_json::{Value, json};

use crate::fixture::{FCM_TOKEN, Fixture, in_time, notification};

/// FCM's own refusal of a value.
fn invalid() -> (u16, String, String) {
    (400, "INVALID_ARGUMENT".to_owned(), "INVALID_ARGUMENT".to_owned())
}

/// Protobuf's refusal of a value, which FCM does not get to see.
fn malformed() -> (u16, String, String) {
    (400, "INVALID_ARGUMENT".to_owned(), String::new())
}

#[tokio::test]
async fn a_message_with_everything_is_taken() {
    let fixture = Fixture::new().await;
    let message = json!({
        "token": FCM_TOKEN,
        "notification": {"title": "Ada", "body": "안녕하세요"},
        "data": {"chatRoomId": "A_B", "messageId": "070707070707070707070707"},
        "android": {
            "priority": "HIGH",
            "ttl": "2419200s",
            "notification": {
                "tag": "1", "channel_id": "messages", "default_sound": true, "body_loc_key": "new_message",
            },
        },
        "apns": {"headers": {"apns-priority": "10"}, "payload": {"aps": {"badge": 3}}},
    });
    let answered = fixture.send(&message).await;
    assert_eq!(answered.status, 200, "{}", answered.text);
    let name = answered.json()["name"].as_str().expect("a name").to_owned();
    assert!(name.starts_with("projects/naru-demo/messages/0:"), "{name}");

    let pushes = fixture.handle.received();
    let push = &pushes[0];
    assert_eq!((pushes.len(), push.number, push.provider), (1, 1, Provider::Fcm));
    assert_eq!((push.token.as_str(), &push.id), (FCM_TOKEN, &name));
    assert_eq!((push.title.as_deref(), push.body.as_deref()), (Some("Ada"), Some("안녕하세요")));
    assert_eq!(push.loc_key.as_deref(), Some("new_message"));
    assert_eq!((push.chat_room_id.as_deref(), push.badge), (Some("A_B"), None));
    assert_eq!(push.message_id.as_deref(), Some("070707070707070707070707"));
    assert_eq!(push.json["message"], message);
}

#[tokio::test]
async fn what_no_schema_has_is_refused() {
    let fixture = Fixture::new().await;
    let with = |part: Value| {
        let mut message = notification(FCM_TOKEN);
        message.as_object_mut().expect("an object").extend(part.as_object().expect("an object").clone());
        message
    };
    let cases: [(Value, &str); 14] = [
        (with(json!({"badge": 1})), "message"),
        (with(json!({"notification": {"title": "Ada", "sound": "default"}})), "message.notification"),
        (with(json!({"android": {"notification": {"badge": 1}}})), "message.android.notification"),
        (with(json!({"notification": {"title": 1}})), "message.notification.title"),
        (with(json!({"notification": "Ada"})), "message.notification"),
        (with(json!({"data": {"count": 1}})), "message.data[0].value"),
        (with(json!({"data": {"room": {"id": "A"}}})), "message.data[0].value"),
        (with(json!({"data": []})), "message.data"),
        (with(json!({"android": {"priority": "URGENT"}})), "message.android.priority"),
        (with(json!({"android": {"ttl": 60}})), "message.android.ttl"),
        (with(json!({"android": {"ttl": "60"}})), "message.android.ttl"),
        (
            with(json!({"android": {"notification": {"default_sound": "true"}}})),
            "message.android.notification.default_sound",
        ),
        (with(json!({"apns": {"payload": "{}"}})), "message.apns.payload"),
        (with(json!({"apns": {"headers": {"apns-priority": 10}}})), "message.apns.headers[0].value"),
    ];
    for (message, field) in cases {
        let answered = fixture.send(&message).await;
        assert_eq!(answered.error(), malformed(), "{message}: {}", answered.text);
        assert_eq!(answered.fields(), [field], "{message}");
    }
    for body in [json!({"to": FCM_TOKEN}), json!([]), json!("text")] {
        assert_eq!(fixture.send_body(&body).await.error(), malformed(), "{body}");
    }
    assert_eq!(fixture.handle.taken(), 0);
}

#[tokio::test]
async fn what_fcm_forbids_is_refused() {
    let fixture = Fixture::new().await;
    let long = "x".repeat(4_097);
    let with = |part: Value| {
        let mut message = json!({"token": FCM_TOKEN});
        message.as_object_mut().expect("an object").extend(part.as_object().expect("an object").clone());
        message
    };
    let cases: [(Value, &str); 13] = [
        (json!({}), "message"),
        (json!({"notification": {"title": "Ada"}}), "message"),
        (json!({"token": ""}), "message.token"),
        (json!({"token": "two words"}), "message.token"),
        (with(json!({"data": {"from": "A"}})), "message.data[0].key"),
        (with(json!({"data": {"gcm": "A"}})), "message.data[0].key"),
        (with(json!({"data": {"message_type": "A"}})), "message.data[0].key"),
        (with(json!({"data": {"google.sent_time": "A"}})), "message.data[0].key"),
        (with(json!({"data": {"gcm.notification.title": "A"}})), "message.data[0].key"),
        (with(json!({"android": {"ttl": "-1s"}})), "message.android.ttl"),
        (with(json!({"android": {"ttl": "2419201s"}})), "message.android.ttl"),
        (with(json!({"data": {"text": long}})), "message"),
        (with(json!({"notification": {"body": long}})), "message"),
    ];
    for (message, field) in cases {
        let answered = fixture.send(&message).await;
        assert_eq!(answered.error(), invalid(), "{message}: {}", answered.text);
        assert_eq!(answered.fields(), [field], "{message}");
    }
    assert_eq!(fixture.send_body(&json!({})).await.error(), invalid());
    assert_eq!(fixture.handle.taken(), 0);
}

#[tokio::test]
async fn sizes_are_counted_to_the_byte() {
    let fixture = Fixture::new().await;
    let message = |bytes: usize| json!({"token": FCM_TOKEN, "data": {"k": "x".repeat(bytes - 1)}});
    assert_eq!(fixture.send(&message(4_096)).await.status, 200);
    assert_eq!(fixture.send(&message(4_097)).await.error(), invalid());
}

#[tokio::test]
async fn other_projects_and_other_paths_are_refused() {
    let fixture = Fixture::new().await;
    let bearer = fixture.access_token().await;
    let post = async |path: &str| {
        let request = fixture.client.post(format!("{}{path}", fixture.phones.fcm_url())).bearer_auth(&bearer);
        in_time(request.json(&json!({"message": notification(FCM_TOKEN)}))).await.expect("an answer").error()
    };
    let refused = |status: u16, text: &str| (status, text.to_owned(), String::new());
    assert_eq!(post("/v1/projects/other/messages:send").await, refused(403, "PERMISSION_DENIED"));
    assert_eq!(post("/v1/projects/naru-demo/messages").await, refused(404, "NOT_FOUND"));
    assert_eq!(post("/fcm/send").await, refused(404, "NOT_FOUND"));
    let url = format!("{}/v1/projects/naru-demo/messages:send", fixture.phones.fcm_url());
    assert_eq!(in_time(fixture.client.get(url).bearer_auth(&bearer)).await.expect("an answer").status, 404);
}

#[tokio::test]
async fn what_is_no_json_is_refused_and_what_is_huge_is_not_read() {
    let fixture = Fixture::new().await;
    let bearer = fixture.access_token().await;
    let url = format!("{}/v1/projects/naru-demo/messages:send", fixture.phones.fcm_url());
    let post = async |body: String| in_time(fixture.client.post(&url).bearer_auth(&bearer).body(body)).await;
    for body in ["{", ""] {
        assert_eq!(post(body.to_owned()).await.expect("an answer").error(), malformed());
    }
    post("x".repeat(300_000)).await.expect_err("a closed connection");
}
