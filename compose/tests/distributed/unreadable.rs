//! Documents that another system has made unreadable: other rooms and entries go on, and these do when they are repaired.

use std::time::Duration;

use mongodb::Collection;
use mongodb::bson::{Document, doc};
use naru_services::Stopwatch;
use serde_json::json;

use super::cluster::{Cluster, counted, http, phone, until};

/// Twenty messages, one after the other, take a fifth of a second. Retried in their partition they would take half a minute.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_and_an_entry_that_cannot_be_read_hold_up_no_others() {
    let cluster = Cluster::start().await;
    let [gateway, persister, _fanout, _notifier] = cluster.run_each().await;
    let mut ada = phone(&gateway, "ada").await;
    let mut ben = phone(&gateway, "ben").await;
    for members in [["ada", "ben"], ["ada", "eve"]] {
        http(&gateway, "ada").create_room(&members).await;
    }
    for room in ["ada_ben", "ada_eve"] {
        ada.chat(room, "the gateway knows the room now", room).await;
        ada.expect("ACK").await;
    }
    ben.expect("CHAT").await;

    let (rooms, intake): (Collection<Document>, Collection<Document>) =
        (cluster.database().await.collection("chat_rooms"), cluster.database().await.collection("intake"));
    let whole = rooms.find_one(doc! { "_id": "ada_ben" }).await.unwrap().expect("the room");
    rooms.replace_one(doc! { "_id": "ada_ben" }, doc! { "_id": "ada_ben", "memberIds": "?" }).await.unwrap();
    let spoiled = doc! { "open": true, "timestamp": mongodb::bson::DateTime::from_millis(0), "content": 7 };
    intake.insert_one(spoiled).await.unwrap();

    // READs of both rooms, in one batch as a rule: that of the other room is stored.
    ada.send_json(&json!({"type": "READ", "chatRoomId": "ada_ben", "seq": 1})).await;
    ada.send_json(&json!({"type": "READ", "chatRoomId": "ada_eve", "seq": 1})).await;

    // In one batch or in two: those of the other room are answered, and soon.
    let swept = counted(&persister, "naru_persister_swept_total").await;
    ada.chat("ada_ben", "to a room that can't be read", "held up").await;
    let begun = Stopwatch::start();
    for number in 0..20 {
        let name = format!("goes on {number}");
        ada.chat("ada_eve", "to another room", &name).await;
        ada.expect_where("ACK", |ack| ack["clientMessageId"] == json!(name)).await;
    }
    let lasted = begun.elapsed();
    assert!(lasted < SOON, "the others waited for it: {lasted:?}");
    until("the sweep has tried again", async || {
        counted(&persister, "naru_persister_swept_total").await > swept
    })
    .await;

    rooms.replace_one(doc! { "_id": "ada_ben" }, whole).await.unwrap();
    let chat = ben.expect_where("CHAT", |chat| chat["content"] == "to a room that can't be read").await;
    assert_eq!(chat["seq"], 2);
}
