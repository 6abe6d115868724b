//! [`Messages`](naru_engines::store::Messages).

use std::slice::from_ref;
use std::time::Duration;

use naru_model::hops::Accepted;
use naru_model::message::Outcome;
use naru_model::{Message, MessageId, RoomId, Seq, Timestamp, UserId};

use super::fixtures::{accepted, filled, group, id_of_second, new_group, said, user};
use super::{Of, Store, reopened, together};
use naru_engines::store::{Advance, Closing, RunConflict, RunResult, Window};

pub(super) async fn m1_a_run_is_stored_in_its_order(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada]) = group(&store).await;
    assert_eq!(append(&store, &[]).await, complete(0));
    let run = filled(&store, &room, &ada, 1..=5).await;
    assert_eq!(
        store.messages.range(&room, Window::After(Seq::ZERO), 10).await.unwrap(),
        (run.clone(), false)
    );
    let ids = [run[4].id, MessageId::generate(), run[0].id];
    assert_eq!(store.messages.find(&ids).await.unwrap(), [Some(run[4].clone()), None, Some(run[0].clone())]);
}

pub(super) async fn m1_a_run_survives_death(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada]) = group(&store).await;
    let run = filled(&store, &room, &ada, 1..=5).await;
    let store = reopened(subject, store).await;
    assert_eq!(
        store.messages.range(&room, Window::After(Seq::ZERO), 10).await.unwrap(),
        (run.clone(), false)
    );
    assert_eq!(store.messages.heads(from_ref(&room)).await.unwrap(), [Seq(5)]);
    assert_eq!(append(&store, &run[1..3]).await, stopped(0, RunConflict::AlreadySaved(run[1].clone())));
}

pub(super) async fn m1_a_stopped_run_leaves_a_prefix(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada]) = group(&store).await;
    let old = filled(&store, &room, &ada, 1..=1).await.remove(0);
    let moved = Message { seq: Seq(4), ..old.clone() };
    let run = [said(&room, &ada, 2), said(&room, &ada, 3), moved, said(&room, &ada, 5)];
    assert_eq!(append(&store, &run).await, stopped(2, RunConflict::AlreadySaved(old.clone())));
    assert_eq!(are_stored(&store, &run).await, [true, true, true, false], "nothing after the stop");
    assert_eq!(store.messages.heads(from_ref(&room)).await.unwrap(), [Seq(3)]);

    let run = [said(&room, &ada, 4), said(&room, &ada, 2), said(&room, &ada, 5)];
    assert_eq!(append(&store, &run).await, stopped(1, RunConflict::SeqTaken));
    assert_eq!(are_stored(&store, &run).await, [true, false, false], "nothing after the stop");
    assert_eq!(places(&store, &room).await, [1, 2, 3, 4]);
}

pub(super) async fn m1_a_run_of_several_rooms_leaves_one_prefix(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (here, [ada]) = group(&store).await;
    let (there, [ben]) = group(&store).await;
    filled(&store, &there, &ben, 1..=1).await;
    let run = [said(&here, &ada, 1), said(&there, &ben, 1), said(&here, &ada, 2), said(&there, &ben, 2)];
    assert_eq!(append(&store, &run).await, stopped(1, RunConflict::SeqTaken));
    assert_eq!(
        are_stored(&store, &run).await,
        [true, false, false, false],
        "rooms of one run share its fate"
    );
    let run = [said(&there, &ben, 2), said(&here, &ada, 2), said(&there, &ben, 3)];
    assert_eq!(append(&store, &run).await, complete(3));
}

pub(super) async fn m2_an_id_is_stored_once(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada]) = group(&store).await;
    let stored = filled(&store, &room, &ada, 1..=2).await;
    let at = |message: &Message, seq| Message { seq: Seq(seq), ..message.clone() };

    let redelivered = append(&store, &stored[..1]).await;
    assert_eq!(redelivered, stopped(0, RunConflict::AlreadySaved(stored[0].clone())), "at its own place");
    let renumbered = append(&store, &[at(&stored[0], 3)]).await;
    assert_eq!(renumbered, stopped(0, RunConflict::AlreadySaved(stored[0].clone())), "at a free place");
    let displaced = append(&store, &[at(&stored[0], 2)]).await;
    assert_eq!(displaced, stopped(0, RunConflict::AlreadySaved(stored[0].clone())), "at a taken place");
    let new = said(&room, &ada, 3);
    let twice = append(&store, &[new.clone(), at(&new, 4)]).await;
    assert_eq!(twice, stopped(1, RunConflict::AlreadySaved(new)), "within a run");
    assert_eq!(places(&store, &room).await, [1, 2, 3]);
}

pub(super) async fn m2_a_place_is_taken_once(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada]) = group(&store).await;
    let stored = filled(&store, &room, &ada, 1..=1).await;
    assert_eq!(append(&store, &[said(&room, &ada, 1)]).await, stopped(0, RunConflict::SeqTaken));
    let run = [said(&room, &ada, 2), said(&room, &ada, 2)];
    assert_eq!(append(&store, &run).await, stopped(1, RunConflict::SeqTaken), "within a run");
    let (all, _) = store.messages.range(&room, Window::After(Seq::ZERO), 10).await.unwrap();
    assert_eq!(all, [stored[0].clone(), run[0].clone()]);

    let (elsewhere, [ben]) = group(&store).await;
    assert_eq!(append(&store, &[said(&elsewhere, &ben, 1)]).await, complete(1), "places are a room's own");
}

pub(super) async fn m2_two_persisters_leave_no_gap(subject: Of<'_, Store>) {
    const EACH: u64 = 10;
    let store = subject.open().await;
    let (room, [ada]) = group(&store).await;
    let mut persisters = Vec::new();
    for _ in 0..3 {
        let (store, room, ada) = (subject.beside(&store).await, room.clone(), ada.clone());
        persisters.push(async move {
            for _ in 0..EACH {
                loop {
                    let head = store.messages.heads(from_ref(&room)).await.unwrap()[0];
                    let run = append(&store, &[said(&room, &ada, head.next().0)]).await;
                    if run == complete(1) {
                        break;
                    }
                    assert_eq!(run, stopped(0, RunConflict::SeqTaken));
                }
            }
        });
    }
    together(persisters).await;
    assert_eq!(places(&store, &room).await, (1..=3 * EACH).collect::<Vec<_>>());
}

pub(super) async fn m3_heads_count_every_finished_run(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let beside = subject.beside(&store).await;
    let (full, [ada]) = group(&store).await;
    let (empty, [_]) = group(&store).await;
    for head in 1..=5 {
        filled(&store, &full, &ada, head..=head).await;
        for store in [&store, &beside] {
            let rooms = [empty.clone(), full.clone(), super::fixtures::room()];
            assert_eq!(store.messages.heads(&rooms).await.unwrap(), [Seq::ZERO, Seq(head), Seq::ZERO]);
        }
    }
}

pub(super) async fn m4_windows_are_cut_and_say_whether_there_is_more(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada]) = group(&store).await;
    let (neighbour, [ben]) = group(&store).await;
    let empty = store.messages.range(&room, Window::Latest, 3).await.unwrap();
    assert_eq!(empty, (vec![], false));
    let run = filled(&store, &room, &ada, 1..=5).await;
    filled(&store, &neighbour, &ben, 1..=9).await;

    let windows: [(Window, usize, &[u64], bool); 12] = [
        (Window::After(Seq(0)), 5, &[1, 2, 3, 4, 5], false),
        (Window::After(Seq(0)), 4, &[1, 2, 3, 4], true),
        (Window::After(Seq(2)), 3, &[3, 4, 5], false),
        (Window::After(Seq(2)), 2, &[3, 4], true),
        (Window::After(Seq(5)), 3, &[], false),
        (Window::After(Seq(99)), 3, &[], false),
        (Window::Before(Seq(4)), 3, &[3, 2, 1], false),
        (Window::Before(Seq(4)), 2, &[3, 2], true),
        (Window::Before(Seq(1)), 3, &[], false),
        (Window::Before(Seq(99)), 2, &[5, 4], true),
        (Window::Latest, 5, &[5, 4, 3, 2, 1], false),
        (Window::Latest, 2, &[5, 4], true),
    ];
    for (window, limit, expected, more) in windows {
        let answer = store.messages.range(&room, window, limit).await.unwrap();
        let expected: Vec<_> =
            run.iter().filter(|message| expected.contains(&message.seq.0)).cloned().collect();
        let in_order =
            if matches!(window, Window::After(_)) { expected } else { expected.into_iter().rev().collect() };
        assert_eq!(answer, (in_order, more), "{window:?}, at most {limit}");
    }
}

pub(super) async fn m5_summaries_count_a_run_at_once(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let beside = subject.beside(&store).await;
    let (room, [ada, ben]) = group(&store).await;
    let seen = async |user| {
        let summary = beside.rooms.summary(&room, user).await.unwrap().expect("a member");
        let (listed, _) = beside.rooms.of_user(user, None, 10).await.unwrap();
        assert_eq!(listed, from_ref(&summary), "list and summary agree");
        let read = beside.positions.get(&[(room.clone(), user.clone(), Seq(1))]).await.unwrap()[0].read;
        assert_eq!(summary.last_message.as_ref().map_or(Seq::ZERO, |message| message.seq), summary.last_seq);
        (summary.last_message, summary.unread_count, read)
    };
    assert_eq!(seen(&ada).await, (None, 0, Seq::ZERO));

    let mut run = filled(&store, &room, &ada, 1..=3).await;
    let last = run.pop();
    assert_eq!(seen(&ada).await, (last.clone(), 0, Seq(3)), "sending reads up to one's own");
    assert_eq!(seen(&ben).await, (last.clone(), 3, Seq::ZERO));

    let read =
        Advance { room: room.clone(), user: ben.clone(), device: None, received: Seq(2), read: Seq(2) };
    store.positions.advance(&[read]).await.unwrap();
    assert_eq!(seen(&ben).await, (last, 1, Seq(2)));

    let last = filled(&store, &room, &ben, 4..=4).await.pop();
    assert_eq!(seen(&ben).await, (last.clone(), 0, Seq(4)), "sending reads up to one's own");
    assert_eq!(seen(&ada).await, (last, 1, Seq(3)));
}

pub(super) async fn m5_sending_has_read_up_to_ones_own_message(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let beside = subject.beside(&store).await;
    let (room, [ada, ben]) = group(&store).await;
    let members = [ada.clone(), ben.clone()];
    let read = async |user: &UserId, read| {
        let step = Advance {
            room: room.clone(),
            user: user.clone(),
            device: None,
            received: Seq(read),
            read: Seq(read),
        };
        store.positions.advance(&[step]).await.unwrap()[0].read
    };
    let positions = async || {
        let asked = members.clone().map(|user| (room.clone(), user, Seq(1)));
        let positions = beside.positions.get(&asked).await.unwrap();
        positions.iter().map(|position| position.read.0).collect::<Vec<_>>()
    };
    // In one run, so that each member has read up to their own last message.
    let run =
        [(&ada, 1), (&ben, 2), (&ada, 3), (&ben, 4), (&ada, 5)].map(|(user, seq)| said(&room, user, seq));
    assert_eq!(append(&store, &run).await, complete(5));
    assert_eq!(positions().await, [5, 4]);
    assert_eq!(beside.positions.unread(&members).await.unwrap(), [0, 1]);
    assert_eq!((read(&ada, 5).await, read(&ben, 4).await), (None, None), "sending had read it");
    assert_eq!(read(&ben, 5).await, Some(Seq(5)));

    filled(&store, &room, &ada, 6..=6).await;
    assert_eq!(positions().await, [6, 5]);
    assert_eq!(read(&ada, 6).await, None);
    assert_eq!(beside.positions.unread(&members).await.unwrap(), [0, 1]);
}

pub(super) async fn m6_bumped_rooms_stand_where_their_newest_message_puts_them(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let beside = subject.beside(&store).await;
    let (ada, [one, two, three]) = rooms_of_one(&store).await;
    let bump = async |newest: &[Message]| store.messages.bump(newest).await.unwrap();
    bump(&[]).await;
    let (first, second) = (spoken(&store, &one, &ada, 1).await, spoken(&store, &two, &ada, 2).await);
    bump(&[first, second]).await;
    assert_eq!(listed(&beside, &ada).await, [&two, &one, &three].map(Clone::clone));
    let newest = [spoken(&store, &three, &ada, 3).await, spoken(&store, &one, &ada, 4).await];
    bump(&newest).await;
    assert_eq!(listed(&beside, &ada).await, [&one, &three, &two].map(Clone::clone));

    drop(beside);
    let store = reopened(subject, store).await;
    assert_eq!(listed(&store, &ada).await, [one, three, two]);
}

pub(super) async fn m6_bumping_again_or_with_an_older_message_changes_nothing(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (ada, [one, two, three]) = rooms_of_one(&store).await;
    let bump = async |message: &Message| store.messages.bump(from_ref(message)).await.unwrap();
    let old = spoken(&store, &one, &ada, 1).await;
    bump(&old).await;
    bump(&spoken(&store, &two, &ada, 2).await).await;
    bump(&spoken(&store, &three, &ada, 3).await).await;
    let newest = spoken(&store, &one, &ada, 4).await;
    let expected = [&one, &three, &two].map(Clone::clone);
    for message in [&newest, &newest, &old] {
        bump(message).await;
        assert_eq!(listed(&store, &ada).await, expected);
    }
}

pub(super) async fn m7_a_room_whose_message_was_saved_later_is_listed_before_whatever_the_clock_says(
    subject: Of<'_, Store>,
) {
    let store = subject.open().await;
    let beside = subject.beside(&store).await;
    let (ada, [one, two, three]) = rooms_of_one(&store).await;
    // The clock goes back, and stays where it is.
    for (room, minute) in [(&one, 10), (&two, 5), (&three, 5), (&one, 5), (&two, 6)] {
        let message = spoken(&store, room, &ada, minute).await;
        store.messages.bump(from_ref(&message)).await.unwrap();
        assert_eq!(listed(&beside, &ada).await[0], *room, "minute {minute}");
    }
    let expected = [&two, &one, &three].map(Clone::clone);
    assert_eq!(listed(&beside, &ada).await, expected);
    let mut walked = Vec::new();
    let mut cursor = None;
    for _ in 0..3 {
        let (page, next) = store.rooms.of_user(&ada, cursor.as_ref(), 1).await.unwrap();
        walked.extend(page.into_iter().map(|summary| summary.room.id.clone()));
        cursor = next;
    }
    assert_eq!((walked, cursor), (expected.to_vec(), None), "page by page");

    drop(beside);
    let store = reopened(subject, store).await;
    assert_eq!(listed(&store, &ada).await, expected);
}

pub(super) async fn m8_a_deleted_message_keeps_its_place(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let beside = subject.beside(&store).await;
    let (room, [ada, ben]) = group(&store).await;
    let mut run = filled(&store, &room, &ada, 1..=4).await;
    let at = Timestamp::from_millis(1_795_339_800_042);
    store.messages.delete(&[run[1].id, MessageId::generate(), run[3].id], at).await.unwrap();
    let whole = run[1].clone();
    for place in [1, 3] {
        run[place].delete(at);
        assert_eq!((&*run[place].content, &*run[place].sender_name), ("", ""));
    }
    let all = (run.clone(), false);
    assert_eq!(beside.messages.range(&room, Window::After(Seq::ZERO), 10).await.unwrap(), all);
    assert_eq!(beside.messages.find(&[run[1].id]).await.unwrap(), [Some(run[1].clone())]);
    assert_eq!(beside.messages.heads(from_ref(&room)).await.unwrap(), [Seq(4)]);
    let summary = beside.rooms.summary(&room, &ben).await.unwrap().expect("a member");
    assert_eq!(
        (summary.last_message, summary.last_seq, summary.unread_count),
        (run.last().cloned(), Seq(4), 4)
    );
    assert_eq!(append(&store, &[whole]).await, stopped(0, RunConflict::AlreadySaved(run[1].clone())));

    drop(beside);
    let store = reopened(subject, store).await;
    assert_eq!(store.messages.range(&room, Window::After(Seq::ZERO), 10).await.unwrap(), all);
}

pub(super) async fn m8_a_message_is_deleted_once(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada]) = group(&store).await;
    let mut deleted = filled(&store, &room, &ada, 1..=1).await.remove(0);
    let at = Timestamp::now();
    for later in [0, 1, 2] {
        store.messages.delete(&[deleted.id], at.after(Duration::from_secs(later))).await.unwrap();
    }
    store.messages.delete(&[], at).await.unwrap();
    deleted.delete(at);
    assert_eq!(store.messages.find(&[deleted.id]).await.unwrap(), [Some(deleted)]);
}

/// A walk of `expire`; how many it has removed.
async fn expire(store: &Store, before: Timestamp, limit: usize) -> u64 {
    let (mut after, mut removed) = (None, 0);
    loop {
        let step = store.messages.expire(after, before, limit).await.unwrap();
        removed += step.removed;
        after = step.next;
        if after.is_none() {
            return removed;
        }
    }
}

/// A message that was sent and saved in that second since 1970.
fn of_second(room: &RoomId, sender: &UserId, seq: u64, second: u32) -> Message {
    let timestamp = Timestamp::from_millis(i64::from(second) * 1_000);
    Message { id: id_of_second(second), timestamp, ..said(room, sender, seq) }
}

pub(super) async fn m9_old_messages_are_removed_and_leave_no_gap(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let beside = subject.beside(&store).await;
    let (plain, [ada, ben]) = group(&store).await;
    let (crossed, [cleo]) = group(&store).await;
    let (late, [dan]) = group(&store).await;
    let (open, [eve]) = group(&store).await;
    let old = of_second(&plain, &ada, 1, 10);
    let young = Message { id: id_of_second(12), ..said(&late, &dan, 2) };
    let timestamp = Timestamp::from_millis(12_000);
    let unclosed = Accepted { id: id_of_second(12), timestamp, ..accepted(&open, &eve) };
    let run = [
        old.clone(),
        of_second(&plain, &ada, 2, 12),
        of_second(&plain, &ada, 3, 14),
        said(&plain, &ada, 4),
        // Two gateways' clocks differ.
        of_second(&crossed, &cleo, 1, 11),
        of_second(&crossed, &cleo, 2, 13),
        of_second(&crossed, &cleo, 3, 12),
        of_second(&crossed, &cleo, 4, 15),
        of_second(&crossed, &cleo, 5, 13),
        of_second(&crossed, &cleo, 6, 13),
        // Accepted long ago, rejected, and accepted again just now.
        of_second(&late, &dan, 1, 10),
        young,
        of_second(&late, &dan, 3, 12),
        of_second(&late, &dan, 4, 12),
        // Not all of its recipients are accounted for.
        of_second(&open, &eve, 1, 10),
        unclosed.at(Seq(2)),
        of_second(&open, &eve, 3, 12),
        of_second(&open, &eve, 4, 12),
    ];
    store.intake.append(from_ref(&unclosed)).await.unwrap();
    assert_eq!(append(&store, &run).await, complete(run.len()));

    let before = Timestamp::from_millis(14_999);
    // The first walk may meet a room's third message before its second.
    let removed = expire(&store, before, 3).await + expire(&store, before, 3).await;
    assert_eq!(removed, 2 + 3 + 1 + 1);
    for (room, left) in
        [(&plain, &[3, 4][..]), (&crossed, &[4, 5, 6]), (&late, &[2, 3, 4]), (&open, &[2, 3, 4])]
    {
        assert_eq!(places(&store, room).await, left);
    }
    assert_eq!(beside.messages.find(&[old.id, run[2].id]).await.unwrap(), [None, Some(run[2].clone())]);
    let heads = [plain.clone(), crossed, late, open.clone()];
    assert_eq!(beside.messages.heads(&heads).await.unwrap(), [4, 6, 4, 4].map(Seq));
    assert_eq!(
        beside.messages.range(&plain, Window::Before(Seq(4)), 9).await.unwrap(),
        (vec![run[2].clone()], false)
    );
    // Two of four have expired.
    let summary = beside.rooms.summary(&plain, &ben).await.unwrap().expect("a member");
    assert_eq!((summary.last_seq, summary.unread_count), (Seq(4), 2));
    assert_eq!(beside.positions.unread(from_ref(&ben)).await.unwrap(), [2]);
    let summary = beside.rooms.summary(&plain, &ada).await.unwrap().expect("a member");
    assert_eq!(summary.unread_count, 0);

    let outcome = Outcome::Saved { seq: Seq(2) };
    store.intake.close(&[Closing { id: unclosed.id, outcome }]).await.unwrap();
    drop(beside);
    let store = reopened(subject, store).await;
    assert_eq!(expire(&store, before, 100).await, 2, "it is closed now");
    assert_eq!(places(&store, &open).await, [4]);
}

pub(super) async fn m9_a_rooms_newest_message_stays_as_a_tombstone(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, [ada, ben]) = group(&store).await;
    let old = [1, 2, 3].map(|seq| of_second(&room, &ben, seq, 10));
    assert_eq!(append(&store, &old).await, complete(3));
    store.messages.bump(&old[2..]).await.unwrap();
    let before = Timestamp::from_millis(14_999);
    for _ in 0..2 {
        expire(&store, before, 2).await;
        let (left, more) = store.messages.range(&room, Window::Latest, 9).await.unwrap();
        let tombstone = left.first().expect("the newest one");
        assert_eq!((left.len(), more, tombstone.id, tombstone.seq), (1, false, old[2].id, Seq(3)));
        assert!(tombstone.deleted_at.is_some() && tombstone.content.is_empty(), "{tombstone:?}");
        for user in [&ada, &ben] {
            let summary = store.rooms.summary(&room, user).await.unwrap().expect("a member");
            assert_eq!((summary.last_seq, summary.unread_count), (Seq(3), 0));
            assert_eq!(summary.last_message.as_ref(), Some(tombstone));
        }
        assert_eq!(store.positions.unread(from_ref(&ada)).await.unwrap(), [0]);
    }
    let store = reopened(subject, store).await;
    assert_eq!(store.messages.heads(from_ref(&room)).await.unwrap(), [Seq(3)]);
    // Its place is taken, and the next one is after it.
    assert_eq!(append(&store, &[said(&room, &ben, 3)]).await, stopped(0, RunConflict::SeqTaken));
    let next = said(&room, &ben, 4);
    assert_eq!(append(&store, from_ref(&next)).await, complete(1));
    assert_eq!(expire(&store, before, 2).await, 1);
    assert_eq!(places(&store, &room).await, [4]);
    let (rooms, _) = store.rooms.of_user(&ada, None, 9).await.unwrap();
    assert_eq!((rooms[0].unread_count, rooms[0].last_message.as_ref()), (1, Some(&next)));
    assert_eq!(store.positions.unread(&[ada, ben]).await.unwrap(), [1, 0]);
}

/// A user and the rooms they are in.
async fn rooms_of_one(store: &Store) -> (UserId, [RoomId; 3]) {
    let ada = user();
    let new = [(); 3].map(|()| new_group([ada.clone(), user()]));
    for room in &new {
        store.rooms.create(room.clone()).await.unwrap();
    }
    (ada, new.map(|room| room.id))
}

/// Stores the room's next message, sent `minute` minutes after now.
async fn spoken(store: &Store, room: &RoomId, sender: &UserId, minute: u64) -> Message {
    let seq = store.messages.heads(from_ref(room)).await.unwrap()[0].next();
    let timestamp = Timestamp::now().after(Duration::from_secs(60 * minute));
    let message = Message { timestamp, ..said(room, sender, seq.0) };
    assert_eq!(append(store, from_ref(&message)).await, complete(1));
    message
}

async fn listed(store: &Store, user: &UserId) -> Vec<RoomId> {
    let (rooms, _) = store.rooms.of_user(user, None, 10).await.unwrap();
    rooms.into_iter().map(|summary| summary.room.id.clone()).collect()
}

async fn append(store: &Store, run: &[Message]) -> RunResult {
    store.messages.append_run(run).await.unwrap()
}

const fn complete(stored: usize) -> RunResult {
    RunResult { stored, stopped_by: None }
}

const fn stopped(stored: usize, by: RunConflict) -> RunResult {
    RunResult { stored, stopped_by: Some(by) }
}

/// Which of these messages are stored, by any run.
async fn are_stored(store: &Store, run: &[Message]) -> Vec<bool> {
    let ids: Vec<_> = run.iter().map(|message| message.id).collect();
    store.messages.find(&ids).await.unwrap().iter().map(Option::is_some).collect()
}

/// The places that are taken in a room.
async fn places(store: &Store, room: &RoomId) -> Vec<u64> {
    let (all, _) = store.messages.range(room, Window::After(Seq::ZERO), 1_000).await.unwrap();
    all.into_iter().map(|message| message.seq.0).collect()
}
