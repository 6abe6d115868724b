//! What a crash leaves between two steps, and what others do meanwhile.

use bson::doc;
use futures_util::future::join_all;
use naru_engines::store::{Advance, Changed, MemberChange, Moved, RunConflict};
use naru_model::room::sorted_members;
use naru_model::{DeviceId, MemberVersion, Message, Seq};

use crate::given::{Fresh, group, room, said, user};

#[tokio::test]
async fn a_run_that_was_stored_and_not_counted_is_counted_when_it_comes_again() {
    let fresh = Fresh::new();
    let store = fresh.store().await;
    let (ada, ben, here, there) = (user("ada"), user("ben"), room("here"), room("there"));
    for id in ["here", "there", "later"] {
        store.rooms.create(group(id, &["ada", "ben"])).await.unwrap();
    }
    let run = [said(&here, &ada, 1), said(&there, &ben, 1), said(&here, &ben, 2), said(&there, &ada, 2)];
    assert_eq!(store.messages.append_run(&run).await.unwrap().stored, 4);
    // The process died before it counted them.
    let uncounted =
        doc! { "$unset": { "lastSeq": "" }, "$set": { "activity": bson::DateTime::from_millis(0) } };
    let rooms = fresh.raw("chat_rooms").await;
    rooms.update_many(doc! { "_id": { "$ne": "later" } }, uncounted).await.unwrap();
    fresh.raw("members").await.delete_many(doc! {}).await.unwrap();

    // The persister, which does not know that, offers them behind a new one, at other places.
    let again = |message: &Message, seq| Message { seq: Seq(seq), ..message.clone() };
    let offered =
        [said(&here, &ada, 3), again(&run[0], 4), again(&run[1], 3), again(&run[2], 5), again(&run[3], 4)];
    let answer = store.messages.append_run(&offered).await.unwrap();
    assert_eq!((answer.stored, answer.stopped_by), (1, Some(RunConflict::AlreadySaved(run[0].clone()))));

    let (listed, _) = store.rooms.of_user(&ada, None, 10).await.unwrap();
    let listed: Vec<_> = listed
        .iter()
        .map(|summary| (summary.room.id.as_str(), summary.last_seq.0, summary.unread_count))
        .collect();
    assert_eq!(listed, [("here", 3, 0), ("there", 2, 0), ("later", 0, 0)]);
    let summary = store.rooms.summary(&here, &ben).await.unwrap().unwrap();
    assert_eq!((summary.last_seq, summary.unread_count), (Seq(3), 1), "Ben has read up to his own");
}

#[tokio::test]
async fn of_many_rooms_in_one_run_each_is_raised_to_its_own_newest_message_and_none_is_lowered() {
    let fresh = Fresh::new();
    let store = fresh.store().await;
    let ada = user("ada");
    // To a pipeline, text that begins with a dollar is a field.
    let names = ["$lastSeq", "$$ROOT", "here", "there"];
    for name in names {
        store.rooms.create(group(name, &["ada", "ben"])).await.unwrap();
    }
    let seqs = |count: u64| (1..=count).map(Seq);
    let mut run = Vec::new();
    for (name, count) in names.into_iter().zip(1..) {
        run.extend(seqs(count).map(|seq| said(&room(name), &ada, seq.0)));
    }
    assert_eq!(store.messages.append_run(&run).await.unwrap().stored, 10);
    let raw = fresh.raw("chat_rooms").await;
    // Another persister was further with one, and another system wrote into one.
    raw.update_one(doc! { "_id": "here" }, doc! { "$set": { "lastSeq": 9_i64 } }).await.unwrap();
    raw.update_one(doc! { "_id": "there" }, doc! { "$set": { "lastSeq": "four" } }).await.unwrap();
    store.messages.append_run(&names.map(|name| said(&room(name), &ada, 5))).await.unwrap();
    for (name, last) in names.into_iter().zip([5_i64, 5, 9, 5]) {
        let found = raw.find_one(doc! { "_id": name }).await.unwrap().unwrap();
        assert_eq!(found.get_i64("lastSeq").unwrap(), last, "{name}");
    }
}

#[tokio::test]
async fn a_change_of_members_that_died_half_way_disturbs_nobody() {
    let fresh = Fresh::new();
    let store = fresh.store().await;
    let id = room("here");
    store.rooms.create(group("here", &["ada", "ben"])).await.unwrap();
    // The list was written down, and then the process died.
    let left = doc! { "chatRoomId": "here", "version": 1, "memberIds": ["ada", "ben"] };
    fresh.raw("room_versions").await.insert_one(left).await.unwrap();

    assert_eq!(store.rooms.members_at(&id, MemberVersion(2)).await.unwrap(), None);
    let Changed::Now(now) = store.rooms.change(&id, MemberChange::Add(user("eve")), 10).await.unwrap() else {
        panic!("it is a group");
    };
    assert_eq!(now.member_version, MemberVersion(2));
    let first = store.rooms.members_at(&id, MemberVersion::FIRST).await.unwrap();
    assert_eq!(first, Some(sorted_members([user("ada"), user("ben")])));
}

#[tokio::test]
async fn of_many_gateways_one_tells_of_a_move() {
    let fresh = Fresh::new();
    let store = fresh.store().await;
    let (ada, ben, here) = (user("ada"), user("ben"), room("here"));
    store.rooms.create(group("here", &["ada", "ben"])).await.unwrap();
    store.messages.append_run(&[said(&here, &ada, 1), said(&here, &ada, 2)]).await.unwrap();
    let phone = |number: u64| DeviceId::new(format!("phone {number}")).unwrap();
    let step = |device, seq| Advance {
        room: here.clone(),
        user: ben.clone(),
        device: Some(device),
        received: Seq(seq),
        read: Seq(seq),
    };
    let gateways = join_all((0..6).map(|_| fresh.store())).await;
    let moves = gateways.iter().zip(0..).map(|(gateway, number)| {
        let steps = [step(phone(number), 2)];
        async move { gateway.positions.advance(&steps).await.unwrap().remove(0) }
    });
    let moves = join_all(moves).await;
    let told: Vec<_> = moves.into_iter().filter(|moved| *moved != Moved::default()).collect();
    assert_eq!(told, [Moved { received: Some(Seq(2)), read: Some(Seq(2)) }]);
    for number in 0..6 {
        let positions = store.positions.of_device(&ben, &phone(number)).await.unwrap();
        assert_eq!(positions[0].received, Seq(2), "each device's own");
    }
}
