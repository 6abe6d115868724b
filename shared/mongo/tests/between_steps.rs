//! What a crash leaves between two steps, and what others do meanwhile.

use std::time::Duration;

use bson::doc;
use futures_util::future::join_all;
use naru_engines::store::{Advance, Changed, MemberChange, Moved, Window};
use naru_model::room::sorted_members;
use naru_model::{DeviceId, MemberVersion, Seq};

use crate::fixtures::{Fresh, group, room, said, user};

#[tokio::test]
async fn a_run_counts_before_its_rooms_are_bumped() {
    let fresh = Fresh::new();
    let store = fresh.store().await;
    let (ada, ben, here, there) = (user("ada"), user("ben"), room("here"), room("there"));
    for id in ["here", "there", "later"] {
        store.rooms.create(group(id, &["ada", "ben"])).await.unwrap();
    }
    let mut run = [said(&here, &ada, 1), said(&there, &ben, 1), said(&there, &ada, 2), said(&here, &ben, 2)];
    run[3].timestamp = run[3].timestamp.after(Duration::from_secs(1));
    assert_eq!(store.messages.append_run(&run).await.unwrap().stored, 4);
    // The process died before it bumped them, and there is nothing else that it could have written.
    assert_eq!(fresh.raw("members").await.count_documents(doc! {}).await.unwrap(), 0);
    let raised = doc! { "lastSeq": { "$exists": true } };
    assert_eq!(fresh.raw("chat_rooms").await.count_documents(raised).await.unwrap(), 0);

    let seen = async || {
        let (listed, _) = store.rooms.of_user(&ada, None, 10).await.unwrap();
        let listed: Vec<_> = listed
            .iter()
            .map(|summary| (summary.room.id.to_string(), summary.last_seq.0, summary.unread_count))
            .collect();
        for (id, last_seq, unread) in &listed {
            let summary = store.rooms.summary(&room(id), &ada).await.unwrap().unwrap();
            assert_eq!((summary.last_seq.0, summary.unread_count), (*last_seq, *unread), "{id}");
        }
        (listed, store.positions.unread(&[ada.clone(), ben.clone()]).await.unwrap())
    };
    let here_first = [("here", 2, 1), ("there", 2, 0), ("later", 0, 0)];
    let here_first = here_first.map(|(id, last_seq, unread)| (id.to_owned(), last_seq, unread));
    assert_eq!(seen().await, (here_first.to_vec(), vec![1, 1]));
    store.messages.bump(&run[2..]).await.unwrap();
    assert_eq!(seen().await, (here_first.to_vec(), vec![1, 1]));

    // Where one has been oneself, READ moves nothing; from there on it does.
    let step = |seq| Advance {
        room: here.clone(),
        user: ada.clone(),
        device: None,
        received: Seq::ZERO,
        read: Seq(seq),
    };
    let moved = store.positions.advance(&[step(1), step(2), step(1)]).await.unwrap();
    let moved: Vec<_> = moved.into_iter().map(|moved| moved.read).collect();
    assert_eq!(moved, [None, Some(Seq(2)), None]);
    assert_eq!(store.positions.unread(&[ada.clone(), ben.clone()]).await.unwrap(), [0, 1]);
}

#[tokio::test]
async fn a_room_with_more_than_is_asked_for_at_once_is_told_apart_from_those_with_little() {
    let fresh = Fresh::new();
    let store = fresh.store().await;
    let (ada, ben) = (user("ada"), user("ben"));
    let names = ["long", "longer", "short", "silent"];
    for name in names {
        store.rooms.create(group(name, &["ada", "ben"])).await.unwrap();
    }
    let counts = [150, 200, 1, 0];
    for (name, count) in names.into_iter().zip(counts) {
        let run: Vec<_> = (1..=count).map(|seq| said(&room(name), &ada, seq)).collect();
        assert_eq!(store.messages.append_run(&run).await.unwrap().stored, run.len());
    }
    assert_eq!(store.messages.heads(&names.map(room)).await.unwrap(), counts.map(Seq));
    let (listed, _) = store.rooms.of_user(&ada, None, 10).await.unwrap();
    assert_eq!(listed.len(), names.len());
    for summary in listed {
        let place = names.iter().position(|name| *name == summary.room.id.as_str()).unwrap();
        assert_eq!((summary.last_seq.0, summary.unread_count), (counts[place], 0), "{}", names[place]);
    }
    let asked = names.map(|name| (room(name), ada.clone(), Seq(1)));
    let read: Vec<_> = store.positions.get(&asked).await.unwrap().iter().map(|at| at.read.0).collect();
    assert_eq!(read, counts);
    assert_eq!(store.positions.unread(&[ben, ada]).await.unwrap(), [351, 0]);
}

#[tokio::test]
async fn each_room_is_bumped_to_its_own_newest_message_and_none_is_lowered() {
    let fresh = Fresh::new();
    let store = fresh.store().await;
    let ada = user("ada");
    // To a pipeline, text that begins with a dollar is a field.
    let names = ["$lastSeq", "$$ROOT", "here", "there"];
    for name in names {
        store.rooms.create(group(name, &["ada", "ben"])).await.unwrap();
    }
    let mut newest = Vec::new();
    for (name, count) in names.into_iter().zip(1..) {
        let run: Vec<_> = (1..=count).map(|seq| said(&room(name), &ada, seq)).collect();
        store.messages.append_run(&run).await.unwrap();
        newest.extend(run.last().cloned());
    }
    store.messages.bump(&newest).await.unwrap();
    store.messages.bump(&[]).await.unwrap();
    let raw = fresh.raw("chat_rooms").await;
    let at = async |name| {
        let found = raw.find_one(doc! { "_id": name }).await.unwrap().unwrap();
        (found.get_i64("lastSeq").unwrap(), found.get_datetime("activity").unwrap().timestamp_millis())
    };
    for (name, newest) in names.into_iter().zip(&newest) {
        assert_eq!(at(name).await, (newest.seq.0 as i64, newest.timestamp.as_millis()), "{name}");
    }
    // Another process was further with one, and another system wrote into one.
    raw.update_one(doc! { "_id": "here" }, doc! { "$set": { "lastSeq": 9_i64 } }).await.unwrap();
    raw.update_one(doc! { "_id": "there" }, doc! { "$set": { "lastSeq": "four" } }).await.unwrap();
    store.messages.bump(&names.map(|name| said(&room(name), &ada, 5))).await.unwrap();
    for (name, last) in names.into_iter().zip([5, 5, 9, 5]) {
        assert_eq!(at(name).await.0, last, "{name}");
    }
    // What is stored holds, whatever a room's document says.
    assert_eq!(store.messages.heads(&names.map(room)).await.unwrap(), [1, 2, 3, 4].map(Seq));
    let summary = store.rooms.summary(&room("here"), &ada).await.unwrap().unwrap();
    assert_eq!((summary.last_seq, summary.unread_count), (Seq(3), 0));
}

#[tokio::test]
async fn a_change_of_members_that_died_half_way_disturbs_no_later_one() {
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

/// Messages are removed one after the other: meanwhile, and when a process has died, some are there before some that are not.
#[tokio::test]
async fn a_page_shows_no_hole_where_messages_expire() {
    let fresh = Fresh::new();
    let store = fresh.store().await;
    let (ada, here) = (user("ada"), room("here"));
    store.rooms.create(group("here", &["ada", "ben"])).await.unwrap();
    let run: Vec<_> = (1..=8).map(|seq| said(&here, &ada, seq)).collect();
    assert_eq!(store.messages.append_run(&run).await.unwrap().stored, 8);
    let removed = doc! { "seq": { "$in": [2_i64, 3, 5] } };
    assert_eq!(fresh.raw("chat_messages").await.delete_many(removed).await.unwrap().deleted_count, 3);

    let page = async |window, limit| {
        let (page, more) = store.messages.range(&here, window, limit).await.unwrap();
        (page.iter().map(|message| message.seq.0).collect::<Vec<_>>(), more)
    };
    let all = [
        (Window::After(Seq(0)), 9, vec![6, 7, 8], false),
        (Window::After(Seq(0)), 3, vec![6], true),
        (Window::After(Seq(1)), 2, vec![6], true),
        (Window::After(Seq(5)), 2, vec![6, 7], true),
        (Window::Latest, 9, vec![8, 7, 6], false),
        (Window::Latest, 4, vec![8, 7, 6], false),
        (Window::Latest, 2, vec![8, 7], true),
        (Window::Before(Seq(8)), 9, vec![7, 6], false),
        (Window::Before(Seq(7)), 2, vec![6], false),
    ];
    for (window, limit, places, more) in all {
        assert_eq!(page(window, limit).await, (places, more), "{window:?}, {limit} at most");
    }
    // Page by page, nothing that stays is left out.
    let (mut walked, mut after) = (Vec::new(), 0);
    loop {
        let (places, more) = page(Window::After(Seq(after)), 2).await;
        walked.extend(places);
        after = *walked.last().unwrap();
        if !more {
            break;
        }
    }
    assert!(walked.ends_with(&[6, 7, 8]) && walked.is_sorted(), "{walked:?}");
}
