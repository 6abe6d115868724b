//! A removal holds, also while a server of the store that was cut off from the others still answers (P8).

use std::sync::Arc;

use naru::pipeline::Changes;
use naru_engines::store::{Changed, MemberChange, Store, Window};
use naru_faults::CutOff;
use naru_model::{MessageId, Seq, StoreTime};
use serde_json::json;
use tokio::sync::oneshot;

use crate::support::Naru;

/// The persister's server still has the room as it was before the removal; the message was accepted after it.
#[tokio::test]
async fn a_removed_member_neither_writes_nor_reads_by_an_older_membership() {
    let (tell, told) = oneshot::channel::<(Arc<CutOff>, Store)>();
    let engines = |mut engines: naru_engines::Engines| {
        let others = engines.store.clone();
        let cut_off = CutOff::at(StoreTime(10), others.rooms.clone());
        engines.store.rooms = cut_off.clone();
        let _told = tell.send((cut_off, others));
        engines
    };
    let naru =
        Naru::start_with(&[], Changes { engines: Some(Box::new(engines)), ..Changes::default() }).await;
    let (cut_off, others) = told.await.expect("the engines");
    let clock = &others.clock;
    let room = naru.http("A").create_room(&["A", "B", "C"]).await;
    clock.note(StoreTime(9));
    let mut cleo = naru.phone("C").await;
    cleo.chat(&room, "still a member", "c-1").await;
    assert_eq!(cleo.expect("ACK").await["seq"], 1);

    // Through another gateway, and on the other servers.
    let removal = MemberChange::Remove("C".parse().expect("a user"));
    let removed = others.rooms.change(&room.parse().expect("a room"), removal, 10).await.expect("an answer");
    assert!(matches!(removed, Changed::Now(_)));
    clock.note(StoreTime(11));
    cleo.chat(&room, "no longer", "c-2").await;
    naru.retried_by_the_persister().await;

    // Nor is it told to her what the others write.
    let room_id = room.parse().expect("a room");
    let mut later = others.messages.range(&room_id, Window::Latest, 1).await.expect("an answer").0.remove(0);
    assert_eq!(later.seq, Seq(1), "it is not saved");
    (later.id, later.seq) = (MessageId::generate(), Seq(2));
    others.messages.append_run(&[later]).await.expect("it is saved");
    let history = format!("/api/rooms/{room}/messages");
    assert_eq!(naru.http("C").get(&history).await.0, 503);
    let sync = json!({"type": "SYNC", "rooms": [{"chatRoomId": room, "afterSeq": 1}]});
    cleo.send_json(&sync).await;
    assert_eq!(cleo.expect("ERROR").await["code"], "UNAVAILABLE");

    cut_off.heal();
    let refused = cleo.expect_where("ERROR", |frame| frame["clientMessageId"] == "c-2").await;
    assert_eq!(refused["code"], "ROOM_NOT_FOUND");
    assert_eq!(naru.http("C").get(&history).await.0, 404);
    cleo.send_json(&sync).await;
    let refused = cleo.expect_where("ERROR", |frame| frame["clientMessageId"].is_null()).await;
    assert_eq!(refused["code"], "ROOM_NOT_FOUND");
    let contents = naru.http("A").history(&room, "afterSeq=0").await;
    assert_eq!(contents.len(), 2, "{contents:?}");
    cleo.quiet("CHAT").await;
    naru.stop().await;
}
