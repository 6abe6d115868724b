//! The journey of one message. This is the first test to read: it is what Naru is for.

use naru_client::{Http, Webhook};
use serde_json::json;

use crate::support::{Naru, WEBHOOK_SECRET, phone_on, token_of};

/// Two phones, four workers, one process.
#[tokio::test]
async fn ada_writes_and_bens_phone_buzzes() {
    let mut naru = Naru::start(&[]).await;
    ada_writes_and_bens_phone_buzzes_on(&naru.url, &mut naru.backend).await;
    naru.stop().await;
}

/// The same on any Naru, whatever it stands on.
pub async fn ada_writes_and_bens_phone_buzzes_on(url: &str, backend: &mut Webhook) {
    Http::new(url, &token_of("A")).create_room(&["A", "B"]).await;

    // Ben is away. Ada writes, and is told that her message is safe, and under which id.
    let mut ada = phone_on(url, "A").await;
    ada.send_text(r#"{"type":"CHAT","chatRoomId":"A_B","senderId":"A","content":"안녕하세요"}"#).await;
    let ack = ada.expect("ACK").await;
    assert_eq!((&ack["chatRoomId"], &ack["seq"]), (&json!("A_B"), &json!(1)));
    let id = ack["id"].as_str().expect("an id");
    assert!(id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "not an ObjectId: {id}");

    // Ben's phone buzzes: the backend that knows his phones is told, once, in a way it can trust.
    let push = backend.next().await;
    assert!(push.is_signed_with(WEBHOOK_SECRET.as_bytes()));
    assert_eq!(
        push.json,
        json!({
            "userId": "B",
            "title": "Ada",
            "body": "안녕하세요",
            "data": { "chatRoomId": "A_B", "messageId": id },
        })
    );

    // Ben opens the app: it asks for what it misses, and reads.
    let mut ben = phone_on(url, "B").await;
    ben.send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": "A_B", "afterSeq": 0}]})).await;
    let missed = ben.expect("CHAT").await;
    assert_eq!((&missed["id"], &missed["content"]), (&ack["id"], &json!("안녕하세요")));
    let synced = ben.expect("SYNCED").await;
    assert_eq!(synced["rooms"], json!([{"chatRoomId": "A_B", "seq": 1, "complete": true, "epoch": 1}]));
    ben.send_json(&json!({"type": "READ", "chatRoomId": "A_B", "seq": 1})).await;
    assert_eq!(ada.expect("READ").await["userId"], "B");

    // Ben answers. Ada is here, so it comes at once, and no phone buzzes.
    ben.chat("A_B", "네, 안녕하세요!", "b-1").await;
    let answer = ada.expect("CHAT").await;
    assert_eq!((&answer["senderName"], &answer["seq"]), (&json!("Ben"), &json!(2)));
    assert_eq!(ben.expect("ACK").await["id"], answer["id"]);

    // What a sender has sent, its screen has drawn already: it never comes back.
    ada.quiet("CHAT").await;
    ben.quiet("CHAT").await;
    backend.none_waiting();
}
