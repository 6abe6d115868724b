//! [`Messages`](crate::store::Messages).

use naru_model::{Message, MessageId, RoomId, Seq};
use std::slice::from_ref;

use super::given::{filled, group, said};
use super::{Of, Store, reopened, together};
use crate::store::{Advance, Run, RunConflict, Window};

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
            let rooms = [empty.clone(), full.clone(), super::given::room()];
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
        let read = beside.positions.get(&[(room.clone(), user.clone())]).await.unwrap()[0].read;
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

async fn append(store: &Store, run: &[Message]) -> Run {
    store.messages.append_run(run).await.unwrap()
}

const fn complete(stored: usize) -> Run {
    Run { stored, stopped_by: None }
}

const fn stopped(stored: usize, by: RunConflict) -> Run {
    Run { stored, stopped_by: Some(by) }
}

/// Which of these messages are stored, by whichever run.
async fn are_stored(store: &Store, run: &[Message]) -> Vec<bool> {
    let ids: Vec<_> = run.iter().map(|message| message.id).collect();
    store.messages.find(&ids).await.unwrap().iter().map(Option::is_some).collect()
}

/// The places that are taken in a room.
async fn places(store: &Store, room: &RoomId) -> Vec<u64> {
    let (all, _) = store.messages.range(room, Window::After(Seq::ZERO), 1_000).await.unwrap();
    all.into_iter().map(|message| message.seq.0).collect()
}
