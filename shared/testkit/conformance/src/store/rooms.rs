//! [`Rooms`](naru_engines::store::Rooms).

use std::collections::HashSet;
use std::slice::from_ref;
use std::sync::Arc;
use std::time::Duration;

use naru_model::room::sorted_members;
use naru_model::{MemberVersion, Message, Room, RoomId, RoomKind, Seq, Timestamp, UserId};

use super::fixtures::{accepted, filled, group, new_group, room, said, user};
use super::{Of, Store, reopened, together};
use naru_engines::store::{Changed, Created, MemberChange, MemberSettings, NewRoom, RoomCursor};

/// A limit of members that no case reaches.
const MANY: usize = 1_000;

pub(super) async fn r1_a_room_is_made_once(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (ada, ben) = (user(), user());
    let members = sorted_members([ada.clone(), ben.clone()]);
    let direct = NewRoom {
        id: RoomId::direct(&ada, &ben),
        kind: RoomKind::Direct,
        name: None,
        member_ids: members.clone(),
        maker_id: Some(ada.clone()),
    };
    for new in [direct, new_group([ada, ben, user()])] {
        let before = Timestamp::now();
        let Created::New(made) = create(&store, &new).await else { panic!("{} was there", new.id) };
        let expected = Room {
            id: new.id.clone(),
            kind: new.kind,
            name: new.name.clone(),
            member_ids: new.member_ids.clone(),
            member_version: MemberVersion::FIRST,
            maker_id: new.maker_id.clone(),
            created_at: made.created_at,
        };
        assert_eq!(*made, expected);
        assert!(made.created_at.since(before) < Duration::from_secs(60), "made at {}", made.created_at);

        assert_eq!(create(&store, &new).await, Created::Existing(made.clone()));
        let others = NewRoom { member_ids: sorted_members([user(), user(), user()]), ..new.clone() };
        assert_eq!(create(&store, &others).await, Created::Taken, "other members");
        let kind = if new.kind == RoomKind::Direct { RoomKind::Group } else { RoomKind::Direct };
        assert_eq!(create(&store, &NewRoom { kind, ..new.clone() }).await, Created::Taken, "another kind");

        let store = subject.beside(&store).await;
        assert_eq!(now(&store, &new.id).await, made);
    }
}

pub(super) async fn r1_a_group_is_known_by_its_members_at_any_version(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let [ada, ben, eve] = [user(), user(), user()];
    let first = new_group([ada.clone(), ben.clone()]);
    create(&store, &first).await;
    let now = change(&store, &first.id, MemberChange::Add(eve.clone())).await;
    let second = NewRoom { member_ids: sorted_members([ada.clone(), ben, eve.clone()]), ..first.clone() };
    let never = NewRoom { member_ids: sorted_members([ada, eve]), ..first.clone() };
    assert_eq!(create(&store, &first).await, Created::Existing(now.clone()));
    assert_eq!(create(&store, &second).await, Created::Existing(now));
    assert_eq!(create(&store, &never).await, Created::Taken);
}

pub(super) async fn r1_of_many_at_the_same_time_one_is_made(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let new = new_group([user(), user(), user()]);
    let mut makers = Vec::new();
    for _ in 0..8 {
        let (store, new) = (subject.beside(&store).await, new.clone());
        makers.push(async move { create(&store, &new).await });
    }
    let answers = together(makers).await;
    let room = now(&store, &new.id).await;
    assert_eq!(answers.iter().filter(|answer| **answer == Created::New(room.clone())).count(), 1);
    assert_eq!(answers.iter().filter(|answer| **answer == Created::Existing(room.clone())).count(), 7);
}

pub(super) async fn r2_the_members_at_a_version_never_change(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada, ben, eve]) = group(&store).await;
    let dan = user();
    let changes = [
        (MemberChange::Add(dan.clone()), 2),
        (MemberChange::Add(dan.clone()), 2),
        (MemberChange::Remove(ben.clone()), 3),
        (MemberChange::Remove(ben.clone()), 3),
        (MemberChange::Add(ben.clone()), 4),
    ];
    for (change_of, version) in changes {
        let room = change(&store, &room, change_of.clone()).await;
        assert_eq!(room.member_version, MemberVersion(version), "after {change_of:?}");
    }
    let all_four = sorted_members([ada.clone(), ben.clone(), dan.clone(), eve.clone()]);
    let expected = [
        None,
        Some(sorted_members([ada.clone(), ben, eve.clone()])),
        Some(all_four.clone()),
        Some(sorted_members([ada, dan, eve])),
        Some(all_four),
        None,
    ];
    let beside = subject.beside(&store).await;
    assert_eq!(versions(&beside, &room).await, expected);
    drop(beside);
    let store = reopened(subject, store).await;
    assert_eq!(versions(&store, &room).await, expected);
    assert_eq!(store.rooms.members_at(&super::fixtures::room(), MemberVersion::FIRST).await.unwrap(), None);
}

pub(super) async fn r8_versions_that_were_left_long_ago_are_forgotten(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada, ben, eve]) = group(&store).await;
    let dan = user();
    for change_of in [
        MemberChange::Add(dan.clone()),
        MemberChange::Remove(ben.clone()),
        MemberChange::Add(ben.clone()),
        MemberChange::Remove(dan.clone()),
    ] {
        change(&store, &room, change_of).await;
    }
    let known = versions(&store, &room).await;
    let first = sorted_members([ada, ben, eve]);
    assert_eq!((&known[1], &known[5]), (&Some(first.clone()), &Some(first.clone())));
    let (hour, now_is) = (Duration::from_secs(3_600), Timestamp::now());
    assert_eq!(store.rooms.forget_versions(now_is.before(hour), 100).await.unwrap(), 0, "none is as old");
    assert_eq!(versions(&store, &room).await, known);

    let mut removed = 0;
    loop {
        let now_removed = store.rooms.forget_versions(now_is.after(hour), 1).await.unwrap();
        assert!(now_removed <= 1, "no more than asked");
        if now_removed == 0 {
            break;
        }
        removed += 1;
    }
    assert!(removed > 0, "something was kept of them");
    let store = reopened(subject, store).await;
    assert_eq!(store.rooms.forget_versions(now_is.after(hour), 100).await.unwrap(), 0, "gone already");
    let left = versions(&store, &room).await;
    assert_eq!([&left[0], &left[1], &left[5]], [&None, &Some(first.clone()), &Some(first.clone())]);
    for (left, known) in left.iter().zip(&known) {
        assert!(left.is_none() || left == known, "{left:?} and not {known:?}");
    }

    // The room is known by its first members, and changes go on.
    let again = NewRoom { id: room.clone(), ..new_group(first.iter().cloned()) };
    assert_eq!(create(&store, &again).await, Created::Existing(now(&store, &room).await));
    change(&store, &room, MemberChange::Add(dan.clone())).await;
    let with_dan = now(&store, &room).await;
    assert_eq!((with_dan.member_version, with_dan.has(&dan)), (MemberVersion(6), true));
    assert_eq!(store.rooms.members_at(&room, MemberVersion(5)).await.unwrap(), Some(first));
}

pub(super) async fn r2_changes_at_the_same_time_each_make_a_version(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada]) = group(&store).await;
    let mut changes = Vec::new();
    for _ in 0..8 {
        let (store, room, comes) = (subject.beside(&store).await, room.clone(), user());
        changes.push(async move { (change(&store, &room, MemberChange::Add(comes.clone())).await, comes) });
    }
    let mut changes = together(changes).await;
    changes.sort_by_key(|(room, _)| room.member_version);

    let mut members = vec![ada];
    for (version, (room, comes)) in (2..).zip(&changes) {
        members.push(comes.clone());
        let expected = sorted_members(members.clone());
        assert_eq!((room.member_version, &room.member_ids), (MemberVersion(version), &expected));
        assert_eq!(store.rooms.members_at(&room.id, room.member_version).await.unwrap(), Some(expected));
    }
    assert_eq!(now(&store, &room).await, changes.last().expect("eight").0);
}

pub(super) async fn r2_a_change_that_is_refused_changes_nothing(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let add = || MemberChange::Add(user());
    assert_eq!(store.rooms.change(&room(), add(), MANY).await.unwrap(), Changed::NoRoom);

    let (group, [ada, ben]) = group(&store).await;
    let before = now(&store, &group).await;
    assert_eq!(store.rooms.change(&group, add(), 2).await.unwrap(), Changed::Full);
    assert_eq!(now(&store, &group).await, before);
    assert!(
        matches!(store.rooms.change(&group, add(), 3).await.unwrap(), Changed::Now(_)),
        "up to the limit"
    );

    let direct =
        NewRoom { id: RoomId::direct(&ada, &ben), kind: RoomKind::Direct, ..new_group([ada, ben.clone()]) };
    create(&store, &direct).await;
    for change in [add(), MemberChange::Remove(ben)] {
        assert_eq!(store.rooms.change(&direct.id, change, MANY).await.unwrap(), Changed::Direct);
    }
    assert_eq!(now(&store, &direct.id).await.member_version, MemberVersion::FIRST);
}

pub(super) async fn r3_current_shows_a_finished_change(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let beside = subject.beside(&store).await;
    let (room, [_ada]) = group(&store).await;
    let (other, [_ben]) = group(&store).await;
    let other = now(&store, &other).await;
    for _ in 0..5 {
        let eve = user();
        for change_of in [MemberChange::Add(eve.clone()), MemberChange::Remove(eve.clone())] {
            let changed = change(&store, &room, change_of).await;
            for store in [&store, &beside] {
                let ids = [other.id.clone(), super::fixtures::room(), room.clone()];
                let current = store.rooms.current(&ids).await.unwrap();
                assert_eq!(current, [Some(other.clone()), None, Some(changed.clone())]);
            }
        }
    }
}

pub(super) async fn r3_a_removed_member_is_out_of_the_room(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let beside = subject.beside(&store).await;
    let (room, [ada, ben]) = group(&store).await;
    let shared = async |user, others: [&UserId; 3]| {
        beside.rooms.share_a_room(user, &others.map(Clone::clone)).await.unwrap()
    };
    let stranger = user();
    assert_eq!(shared(&ben, [&ada, &stranger, &ben]).await, [true, false, true]);
    assert!(beside.rooms.summary(&room, &stranger).await.unwrap().is_none());
    assert!(beside.rooms.summary(&super::fixtures::room(), &ben).await.unwrap().is_none());

    assert!(beside.rooms.summary(&room, &ben).await.unwrap().is_some());
    change(&store, &room, MemberChange::Remove(ben.clone())).await;
    assert!(beside.rooms.summary(&room, &ben).await.unwrap().is_none());
    assert_eq!(beside.rooms.of_user(&ben, None, 10).await.unwrap(), (vec![], None));
    assert_eq!(shared(&ben, [&ben, &ada, &stranger]).await, [true, false, false]);
    assert!(!beside.rooms.configure(&room, &ben, MemberSettings::default()).await.unwrap());

    change(&store, &room, MemberChange::Add(ben.clone())).await;
    assert!(beside.rooms.summary(&room, &ben).await.unwrap().is_some(), "and back");
}

pub(super) async fn r9_a_users_rooms_are_counted(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let beside = subject.beside(&store).await;
    let (ada, rooms) = rooms_of_one(&store, 3).await;
    let (group, [ben]) = group(&store).await;
    let stranger = user();
    let have = async |at_least: usize| {
        let asked = [ada.clone(), stranger.clone(), ben.clone()];
        beside.rooms.have_rooms(&asked, at_least).await.unwrap()
    };
    assert_eq!(have(1).await, [true, false, true]);
    assert_eq!(have(3).await, [true, false, false]);
    assert_eq!(have(4).await, [false; 3]);
    change(&store, &group, MemberChange::Add(ada.clone())).await;
    assert_eq!(have(4).await, [true, false, false]);
    change(&store, &group, MemberChange::Remove(ada.clone())).await;
    assert_eq!(have(4).await, [false; 3], "rooms that were left don't count");
    assert_eq!(rooms.len(), 3);
    assert_eq!(beside.rooms.have_rooms(&[], 1).await.unwrap(), Vec::<bool>::new());
}

pub(super) async fn r5_rooms_are_listed_latest_activity_first(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (ada, rooms) = rooms_of_one(&store, 6).await;
    // The two rooms without messages were made before any message; two others were last active at the same moment.
    for (room, minute) in [(4, 1), (1, 2), (5, 2), (2, 3)] {
        speak(&store, &rooms[room], &ada, 1, minute).await;
    }
    let (listed, cursor) = store.rooms.of_user(&ada, None, 6).await.unwrap();
    assert_eq!(cursor, None, "that was all");
    let listed: Vec<_> = listed.into_iter().map(|summary| summary.room.id.clone()).collect();
    assert_eq!(listed.len(), 6);
    assert_eq!(listed[0], rooms[2]);
    assert_eq!(HashSet::from([&listed[1], &listed[2]]), HashSet::from([&rooms[1], &rooms[5]]));
    assert_eq!(listed[3], rooms[4]);
    assert_eq!(HashSet::from([&listed[4], &listed[5]]), HashSet::from([&rooms[0], &rooms[3]]));

    for size in [1, 2, 4] {
        let mut walked: Vec<RoomId> = Vec::new();
        let mut cursor: Option<RoomCursor> = None;
        loop {
            let (page, next) = store.rooms.of_user(&ada, cursor.as_ref(), size).await.unwrap();
            assert!(page.len() <= size, "at most {size}");
            walked.extend(page.into_iter().map(|summary| summary.room.id.clone()));
            let Some(next) = next else { break };
            assert_eq!(Some(&next.room), walked.last(), "the cursor is the last room's place");
            cursor = Some(next);
        }
        assert_eq!(walked, listed, "in pages of {size}");
    }
}

pub(super) async fn r5_a_walk_meets_every_room_that_did_not_move(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (ada, rooms) = rooms_of_one(&store, 5).await;
    for (room, minute) in rooms.iter().zip(1..) {
        speak(&store, room, &ada, 1, minute).await;
    }
    let (first, cursor) = store.rooms.of_user(&ada, None, 2).await.unwrap();
    // A room that the walk has yet to reach, and one that it has passed, move to the front.
    speak(&store, &rooms[1], &ada, 2, 10).await;
    speak(&store, &rooms[3], &ada, 2, 11).await;
    let (rest, end) = store.rooms.of_user(&ada, cursor.as_ref(), 10).await.unwrap();
    assert_eq!(end, None);
    let met: Vec<_> = first.into_iter().chain(rest).map(|summary| summary.room.id.clone()).collect();
    assert_eq!(met, [4, 3, 2, 0].map(|room| rooms[room].clone()));
}

pub(super) async fn r6_settings_are_the_members_own(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada, ben]) = group(&store).await;
    let other = new_group([ada.clone(), ben.clone()]);
    create(&store, &other).await;
    let until = Timestamp::from_millis(4_102_444_800_123);
    let muted = MemberSettings { muted: true, muted_until: Some(until) };
    assert!(store.rooms.configure(&room, &ada, muted).await.unwrap());
    assert!(!store.rooms.configure(&room, &user(), muted).await.unwrap(), "not a member");
    assert!(!store.rooms.configure(&super::fixtures::room(), &ada, muted).await.unwrap(), "no such room");

    let check = async |store: &Store| {
        let settings = async |room, user| {
            let settings = store.rooms.summary(room, user).await.unwrap().expect("a member").settings;
            let position = store.positions.get(&[(room.clone(), user.clone(), Seq(1))]).await.unwrap()[0];
            assert_eq!(position.settings, settings, "summary and position agree");
            settings
        };
        assert_eq!(settings(&room, &ada).await, muted);
        assert_eq!(settings(&room, &ben).await, MemberSettings::default(), "another member's");
        assert_eq!(settings(&other.id, &ada).await, MemberSettings::default(), "another room's");
    };
    check(&store).await;
    let store = reopened(subject, store).await;
    check(&store).await;
}

pub(super) async fn r7_since_an_append_a_removal_before_it_is_shown(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let [ada, ben, cleo] = [user(), user(), user()];
    let group = new_group([ada.clone(), ben.clone(), cleo.clone()]);
    create(&store, &group).await;
    let members = async |store: &Store| {
        let rooms = store.rooms.current_since(from_ref(&group.id), store.clock.latest()).await.unwrap();
        rooms.into_iter().next().flatten().expect("the room is there").member_ids.clone()
    };
    for removed in [&cleo, &ben] {
        let by_another = subject.beside(&store).await;
        change(&by_another, &group.id, MemberChange::Remove(removed.clone())).await;
        store.intake.append(&[accepted(&group.id, removed)]).await.unwrap();
        let now = members(&store).await;
        assert!(!now.contains(removed) && now.contains(&ada), "{now:?}");
        by_another.intake.open(None, None, MANY).await.unwrap();
        assert_eq!(members(&by_another).await, now, "whoever has looked at the open entries");
    }
    let unknown = room();
    let rooms = store.rooms.current_since(&[unknown, group.id.clone()], None).await.unwrap();
    assert!(matches!(&rooms[..], [None, Some(_)]), "in their order: {rooms:?}");
}

pub(super) async fn r10_rooms_of_now_and_before_are_walked_in_order(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (ada, ben, cleo) = (user(), user(), user());
    let mut rooms = Vec::new();
    for number in 0..5 {
        let new = new_group([ada.clone(), ben.clone(), cleo.clone()]);
        create(&store, &new).await;
        // Ada has left some: of one nothing else is known, in another one she had written, to a third one she came back.
        if number < 3 {
            filled(&store, &new.id, &ada, 1..=number).await;
            change(&store, &new.id, MemberChange::Remove(ada.clone())).await;
        }
        if number == 2 {
            change(&store, &new.id, MemberChange::Add(ada.clone())).await;
        }
        rooms.push(new.id);
    }
    let direct = NewRoom {
        id: RoomId::direct(&ada, &ben),
        kind: RoomKind::Direct,
        name: None,
        member_ids: sorted_members([ada.clone(), ben.clone()]),
        maker_id: None,
    };
    create(&store, &direct).await;
    create(&store, &new_group([ben, cleo, user()])).await;
    rooms.push(direct.id);
    rooms.sort();

    let store = reopened(subject, store).await;
    for limit in [1, 2, 100] {
        let (mut walked, mut after) = (Vec::new(), None);
        loop {
            let page = store.rooms.ever_of(&ada, after.as_ref(), limit).await.unwrap();
            let is_last = page.len() < limit;
            assert!(page.len() <= limit && walked.len() <= rooms.len(), "at most {limit}, each once");
            after = page.last().cloned().or(after);
            walked.extend(page);
            if is_last {
                break;
            }
        }
        assert_eq!(walked, rooms);
    }
    assert_eq!(store.rooms.ever_of(&user(), None, 10).await.unwrap(), []);
}

async fn create(store: &Store, room: &NewRoom) -> Created {
    store.rooms.create(room.clone()).await.unwrap()
}

async fn change(store: &Store, room: &RoomId, change: MemberChange) -> Arc<Room> {
    match store.rooms.change(room, change, MANY).await.unwrap() {
        Changed::Now(room) => room,
        refused => panic!("{refused:?}"),
    }
}

async fn now(store: &Store, room: &RoomId) -> Arc<Room> {
    let mut rooms = store.rooms.current(from_ref(room)).await.unwrap();
    rooms.remove(0).expect("the room is there")
}

/// The members at versions 0 to 5.
async fn versions(store: &Store, room: &RoomId) -> Vec<Option<Arc<[UserId]>>> {
    let mut versions = Vec::new();
    for version in 0..=5 {
        versions.push(store.rooms.members_at(room, MemberVersion(version)).await.unwrap());
    }
    versions
}

/// A user and the rooms they are in.
async fn rooms_of_one(store: &Store, count: usize) -> (UserId, Vec<RoomId>) {
    let ada = user();
    let mut rooms = Vec::new();
    for _ in 0..count {
        let new = new_group([ada.clone(), user()]);
        create(store, &new).await;
        rooms.push(new.id);
    }
    // A room of other users, which is not in this user's list.
    group::<2>(store).await;
    (ada, rooms)
}

/// Stores a message at a place, accepted `minute` minutes after `START`: later than any room here was made.
async fn speak(store: &Store, room: &RoomId, sender: &UserId, seq: u64, minute: u64) {
    // One start for all, so that equal minutes are the same moment.
    static START: std::sync::LazyLock<Timestamp> =
        std::sync::LazyLock::new(|| Timestamp::now().after(60 * MINUTE));
    const MINUTE: Duration = Duration::from_secs(60);
    let minute = MINUTE * u32::try_from(minute).expect("a small number");
    let message = Message { timestamp: START.after(minute), ..said(room, sender, seq) };
    let message = [message];
    assert_eq!(store.messages.append_run(&message).await.unwrap().stored, 1);
    store.messages.bump(&message).await.unwrap();
}
