//! [`Positions`](naru_engines::store::Positions).

use std::time::Duration;

use naru_model::{DeviceId, RoomId, Seq, Timestamp, UserId};

use super::fixtures::{device, filled, group, new_group, room, user};
use super::{Of, Store, reopened};
use naru_engines::store::{Advance, DevicePosition, MemberChange, MemberPosition, MemberSettings, Moved};

pub(super) async fn p1_positions_only_go_forward(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada, ben]) = group(&store).await;
    filled(&store, &room, &ada, 1..=9).await;
    let phone = device();
    let moves = async |steps: &[(u64, u64)]| {
        let steps: Vec<_> =
            steps.iter().map(|(received, read)| step(&room, &ben, &phone, *received, *read)).collect();
        store.positions.advance(&steps).await.unwrap()
    };
    assert_eq!(moves(&[(5, 0)]).await, [moved(5, 0)]);
    assert_eq!(moves(&[(3, 0)]).await, [moved(0, 0)], "not back");
    assert_eq!(moves(&[(0, 4)]).await, [moved(0, 4)], "received further than that already");
    assert_eq!(moves(&[(0, 2)]).await, [moved(0, 0)], "not back");
    assert_eq!(moves(&[(1, 7)]).await, [moved(7, 7)], "to read is to have received");
    assert_eq!(
        moves(&[(9, 1), (8, 8), (2, 2)]).await,
        [moved(9, 0), moved(0, 8), moved(0, 0)],
        "step by step"
    );
    assert_eq!(position(&store, &room, &ben).await, (8, 9));
    assert_eq!(position(&store, &room, &ada).await.0, 9, "another member's is another");
}

pub(super) async fn p1_devices_have_positions_of_their_own(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (here, [ada, ben]) = group(&store).await;
    filled(&store, &here, &ada, 1..=9).await;
    let there = new_group([ada.clone(), ben.clone()]);
    store.rooms.create(there.clone()).await.unwrap();
    let (phone, tablet) = (device(), device());
    let steps = [step(&here, &ben, &phone, 6, 0), step(&here, &ben, &tablet, 4, 3)];
    assert_eq!(store.positions.advance(&steps).await.unwrap(), [moved(6, 0), moved(0, 3)]);
    assert_eq!(
        position(&store, &here, &ben).await,
        (3, 6),
        "received is that of the device that is furthest"
    );

    for (device, received) in [(phone, 6), (tablet, 4), (device(), 0)] {
        let mut positions = store.positions.of_device(&ben, &device).await.unwrap();
        positions.sort_by_key(|position| position.room != here);
        let at = |room: &RoomId, received| DevicePosition { room: room.clone(), received: Seq(received) };
        assert_eq!(positions, [at(&here, received), at(&there.id, 0)]);
    }
    let webapp = Advance { device: None, ..step(&here, &ben, &device(), 0, 5) };
    assert_eq!(store.positions.advance(&[webapp]).await.unwrap()[0].read, Some(Seq(5)), "without a device");
}

pub(super) async fn p1_positions_survive_death(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada, ben]) = group(&store).await;
    filled(&store, &room, &ada, 1..=9).await;
    let phone = device();
    store.positions.advance(&[step(&room, &ben, &phone, 6, 4)]).await.unwrap();
    let store = reopened(subject, store).await;
    assert_eq!(position(&store, &room, &ben).await, (4, 6));
    let positions = store.positions.of_device(&ben, &phone).await.unwrap();
    assert_eq!(positions, [DevicePosition { room, received: Seq(6) }]);
}

pub(super) async fn p2_a_position_never_passes_the_head(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada, ben]) = group(&store).await;
    let phone = device();
    let far = [step(&room, &ben, &phone, 99, 98)];
    assert_eq!(store.positions.advance(&far).await.unwrap(), [moved(0, 0)], "an empty room");
    filled(&store, &room, &ada, 1..=3).await;
    assert_eq!(store.positions.advance(&far).await.unwrap(), [moved(3, 3)]);
    filled(&store, &room, &ada, 4..=5).await;
    assert_eq!(position(&store, &room, &ben).await, (3, 3));
    assert_eq!(store.positions.of_device(&ben, &phone).await.unwrap()[0].received, Seq(3));
}

pub(super) async fn p3_a_move_is_told_once(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada, ben]) = group(&store).await;
    filled(&store, &room, &ada, 1..=5).await;
    let (phone, tablet) = (device(), device());
    let there = step(&room, &ben, &phone, 4, 3);
    assert_eq!(
        store.positions.advance(&[there.clone(), there.clone()]).await.unwrap(),
        [moved(4, 3), moved(0, 0)]
    );
    assert_eq!(store.positions.advance(&[there]).await.unwrap(), [moved(0, 0)]);
    let on_tablet = [step(&room, &ben, &tablet, 4, 3)];
    assert_eq!(
        store.positions.advance(&on_tablet).await.unwrap(),
        [moved(0, 0)],
        "the phone was there before"
    );
    let further = [step(&room, &ben, &tablet, 2, 0), step(&room, &ben, &tablet, 5, 0)];
    assert_eq!(store.positions.advance(&further).await.unwrap(), [moved(0, 0), moved(5, 0)]);
    let own = [Advance { device: None, ..step(&room, &ada, &phone, 0, 2) }];
    assert_eq!(store.positions.advance(&own).await.unwrap()[0].read, None, "sending has read it");
}

pub(super) async fn p4_only_members_move(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (here, [ada, ben, eve]) = group(&store).await;
    filled(&store, &here, &ada, 1..=5).await;
    store.rooms.change(&here, MemberChange::Remove(eve.clone()), 10).await.unwrap();
    let (phone, stranger) = (device(), user());
    let steps = [
        step(&here, &stranger, &phone, 2, 2),
        step(&here, &ben, &phone, 2, 2),
        step(&here, &eve, &phone, 2, 2),
        step(&room(), &ben, &phone, 2, 2),
    ];
    let answers = store.positions.advance(&steps).await.unwrap();
    assert_eq!(answers, [moved(0, 0), moved(2, 2), moved(0, 0), moved(0, 0)]);
    assert_eq!(store.positions.of_device(&stranger, &phone).await.unwrap(), []);
    let of_ben: Vec<_> = store.positions.of_device(&ben, &phone).await.unwrap();
    assert_eq!(
        of_ben,
        [DevicePosition { room: here, received: Seq(2) }],
        "the room that is not is not listed"
    );
}

pub(super) async fn p5_unread_is_summed_over_the_rooms_of_now(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (here, [ada, ben, eve]) = group(&store).await;
    filled(&store, &here, &ada, 1..=5).await;
    let there = new_group([ada.clone(), ben.clone()]);
    let silent = new_group([ada.clone(), ben.clone(), eve.clone()]);
    for room in [&there, &silent] {
        store.rooms.create(room.clone()).await.unwrap();
    }
    filled(&store, &there.id, &ben, 1..=3).await;
    filled(&store, &there.id, &ada, 4..=4).await;
    let phone = device();
    store.positions.advance(&[step(&here, &ben, &phone, 4, 2)]).await.unwrap();

    let unread = async |store: &Store, users: &[&UserId]| {
        let users: Vec<_> = users.iter().map(|user| (*user).clone()).collect();
        let unread = store.positions.unread(&users).await.unwrap();
        for (user, unread) in users.iter().zip(&unread) {
            let (rooms, _) = store.rooms.of_user(user, None, 10).await.unwrap();
            assert_eq!(*unread, rooms.iter().map(|room| room.unread_count).sum::<u64>(), "as in the list");
        }
        unread
    };
    // A member's own messages count as read; received messages do not.
    let all = [&ben, &user(), &eve, &ada, &ben];
    assert_eq!(unread(&store, &all).await, [3 + 1, 0, 5, 0, 3 + 1]);
    assert!(unread(&store, &[]).await.is_empty());

    store.rooms.change(&here, MemberChange::Remove(eve.clone()), 10).await.unwrap();
    store.rooms.change(&there.id, MemberChange::Add(eve.clone()), 10).await.unwrap();
    assert_eq!(unread(&store, &[&eve]).await, [4], "the rooms of now, and all of their history");
    store.positions.advance(&[step(&there.id, &ben, &phone, 0, 4)]).await.unwrap();
    let store = reopened(subject, store).await;
    assert_eq!(unread(&store, &[&eve, &ben]).await, [4, 3]);
}

pub(super) async fn p5_muted_rooms_do_not_count(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (here, [ada, ben]) = group(&store).await;
    let there = new_group([ada.clone(), ben.clone()]);
    store.rooms.create(there.clone()).await.unwrap();
    filled(&store, &here, &ada, 1..=5).await;
    filled(&store, &there.id, &ada, 1..=3).await;
    let unread = async || store.positions.unread(std::slice::from_ref(&ben)).await.unwrap()[0];
    let mute = async |user: &UserId, muted, muted_until| {
        let settings = MemberSettings { muted, muted_until };
        assert!(store.rooms.configure(&here, user, settings).await.unwrap());
    };
    let (hour, now) = (Duration::from_secs(3600), Timestamp::now());
    mute(&ada, true, None).await;
    assert_eq!(unread().await, 8, "muted by another member");
    mute(&ben, true, None).await;
    assert_eq!(unread().await, 3);
    mute(&ben, true, Some(now.after(hour))).await;
    assert_eq!(unread().await, 3);
    mute(&ben, true, Some(now.before(hour))).await;
    assert_eq!(unread().await, 8, "the muting is over");
    mute(&ben, false, Some(now.after(hour))).await;
    assert_eq!(unread().await, 8, "not muted");
}

pub(super) async fn p6_members_of_many_rooms_are_told_apart(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (here, [ada, ben]) = group(&store).await;
    let there = new_group([ada.clone(), ben.clone()]);
    store.rooms.create(there.clone()).await.unwrap();
    let there = there.id;
    filled(&store, &here, &ada, 1..=5).await;
    filled(&store, &there, &ben, 1..=3).await;
    let phone = device();
    store
        .positions
        .advance(&[step(&here, &ben, &phone, 4, 2), step(&there, &ada, &phone, 1, 0)])
        .await
        .unwrap();
    let muted = MemberSettings { muted: true, muted_until: None };
    store.rooms.configure(&there, &ada, muted).await.unwrap();

    let nowhere = room();
    let asked =
        [(&there, &ben), (&here, &ben), (&nowhere, &ben), (&there, &ada), (&here, &ada), (&here, &ben)];
    let asked = asked.map(|(room, user)| (room.clone(), user.clone(), Seq(1)));
    let at =
        |read, received| MemberPosition { read: Seq(read), received: Seq(received), ..Default::default() };
    let positions = store.positions.get(&asked).await.unwrap();
    let read: Vec<_> = positions.iter().map(|position| position.read.0).collect();
    assert_eq!(read, [3, 2, 0, 0, 5, 2], "in the order asked");
    assert_eq!(positions[1], at(2, 4));
    assert_eq!(positions[2], MemberPosition::default(), "nothing is known");
    assert_eq!(positions[3], MemberPosition { settings: muted, ..at(0, 1) });
    assert_eq!(store.positions.get(&[]).await.unwrap(), []);

    // A position at or after the place that is asked from is known, whatever else is asked.
    let from = |user: &UserId, seq| (here.clone(), user.clone(), Seq(seq));
    let asked = [from(&ada, 5), from(&ben, 4), from(&ada, 6), from(&ada, 1)];
    let positions = store.positions.get(&asked).await.unwrap();
    assert_eq!((positions[0].read, positions[1].read, positions[3].read), (Seq(5), Seq(2), Seq(5)));
}

pub(super) async fn p7_a_forgotten_member_is_as_a_new_one(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (here, [ada, ben, cleo]) = group(&store).await;
    let there = new_group([ada.clone(), ben.clone(), cleo.clone()]);
    store.rooms.create(there.clone()).await.unwrap();
    let muted = MemberSettings { muted: true, muted_until: Some(Timestamp::now()) };
    let phone = device();
    for room in [&here, &there.id] {
        filled(&store, room, &ada, 1..=9).await;
        for user in [&ben, &cleo] {
            assert!(store.rooms.configure(room, user, muted).await.unwrap());
            store.positions.advance(&[step(room, user, &phone, 7, 5)]).await.unwrap();
        }
    }
    let get = async |store: &Store| {
        let asked = [(&here, &ben), (&here, &cleo), (&there.id, &ben)];
        let asked = asked.map(|(room, user)| (room.clone(), user.clone(), Seq(1)));
        store.positions.get(&asked).await.unwrap()
    };
    let kept = MemberPosition { read: Seq(5), received: Seq(7), settings: muted };
    assert_eq!(get(&store).await, [kept; 3]);
    for _ in 0..2 {
        store.positions.forget(&ben, &[here.clone(), room()]).await.unwrap();
        assert_eq!(get(&store).await, [MemberPosition::default(), kept, kept]);
    }
    store.positions.forget(&ben, &[]).await.unwrap();
    let received = store.positions.of_device(&ben, &phone).await.unwrap();
    let received =
        |room: &RoomId| received.iter().find(|place| place.room == *room).map(|place| place.received);
    assert_eq!((received(&here), received(&there.id)), (Some(Seq(0)), Some(Seq(7))));

    let store = reopened(subject, store).await;
    assert_eq!(get(&store).await, [MemberPosition::default(), kept, kept]);
    let again = [step(&here, &ben, &phone, 3, 2)];
    assert_eq!(
        store.positions.advance(&again).await.unwrap(),
        [moved(3, 2)],
        "a member goes on from the start"
    );
}

fn step(room: &RoomId, user: &UserId, device: &DeviceId, received: u64, read: u64) -> Advance {
    Advance {
        room: room.clone(),
        user: user.clone(),
        device: Some(device.clone()),
        received: Seq(received),
        read: Seq(read),
    }
}

/// 0: not moved.
fn moved(received: u64, read: u64) -> Moved {
    let told = |seq| (seq > 0).then_some(Seq(seq));
    Moved { received: told(received), read: told(read) }
}

/// How far a member has read and received.
async fn position(store: &Store, room: &RoomId, user: &UserId) -> (u64, u64) {
    let asked = [super::fixtures::user(), user.clone()].map(|user| (room.clone(), user, Seq(1)));
    let position = store.positions.get(&asked).await.unwrap()[1];
    (position.read.0, position.received.0)
}
