//! A removal holds, also while a server of the store that was cut off from the others still answers (P8).

use std::sync::Arc;

use naru::pipeline::Changes;
use naru_engines::store::{Changed, MemberChange, Rooms, StoreClock};
use naru_faults::CutOff;
use naru_model::StoreTime;
use tokio::sync::oneshot;

use crate::support::Naru;

/// The persister's server still has the room as it was before the removal; the message was accepted after it.
#[tokio::test]
async fn a_message_that_was_accepted_after_the_removal_is_not_saved_by_an_older_membership() {
    let (tell, told) = oneshot::channel::<(Arc<CutOff>, Arc<dyn Rooms>, StoreClock)>();
    let engines = |mut engines: naru_engines::Engines| {
        let others = engines.store.rooms.clone();
        let cut_off = CutOff::at(StoreTime(10), others.clone());
        engines.store.rooms = cut_off.clone();
        let _told = tell.send((cut_off, others, engines.store.clock.clone()));
        engines
    };
    let naru =
        Naru::start_with(&[], Changes { engines: Some(Box::new(engines)), ..Changes::default() }).await;
    let (cut_off, others, clock) = told.await.expect("the engines");
    let room = naru.http("A").create_room(&["A", "B", "C"]).await;
    clock.note(StoreTime(9));
    let mut cleo = naru.phone("C").await;
    cleo.chat(&room, "still a member", "c-1").await;
    assert_eq!(cleo.expect("ACK").await["seq"], 1);

    // Through another gateway, and on the other servers.
    let removal = MemberChange::Remove("C".parse().expect("a user"));
    let removed = others.change(&room.parse().expect("a room"), removal, 10).await.expect("an answer");
    assert!(matches!(removed, Changed::Now(_)));
    clock.note(StoreTime(11));
    cleo.chat(&room, "no longer", "c-2").await;
    naru.retried_by_the_persister().await;
    assert_eq!(naru.http("A").history(&room, "afterSeq=1").await.len(), 0);

    cut_off.heal();
    let refused = cleo.expect("ERROR").await;
    assert_eq!((&refused["code"], &refused["clientMessageId"]), (&"ROOM_NOT_FOUND".into(), &"c-2".into()));
    assert_eq!(naru.http("A").history(&room, "afterSeq=1").await.len(), 0);
    naru.stop().await;
}
