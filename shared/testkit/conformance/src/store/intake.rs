//! [`Intake`](naru_engines::store::Intake).

use std::slice::from_ref;
use std::time::Duration;

use naru_model::hops::Accepted;
use naru_model::message::{Outcome, Rejection};
use naru_model::{ClientMessageId, MessageId, RoomId, Seq, Timestamp};

use super::fixtures::{accepted, id_of_second, room, user};
use super::{Of, Store, reopened, together};
use naru_engines::store::{Appended, Closing, IntakePlace, IntakeRecord};

pub(super) async fn i1_what_is_new_survives_death_and_is_open(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, ada) = (room(), user());
    let plain = Accepted { after: None, origin: None, ..accepted(&room, &ada) };
    let entries = [accepted(&room, &ada), plain];
    assert_eq!(store.intake.append(&entries).await.unwrap(), [Appended::New, Appended::New]);

    let store = reopened(subject, store).await;
    let ids = [entries[1].id, MessageId::generate(), entries[0].id];
    let records = store.intake.get(&ids).await.unwrap();
    assert_eq!(records, [Some(still_open(&entries[1])), None, Some(still_open(&entries[0]))]);
    assert_eq!(open_in(&store, &room).await, entries);
}

pub(super) async fn i2_appending_again_answers_the_first_record(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let first = accepted(&room(), &user());
    let again = resend_of(&first);
    assert_eq!(append(&store, &first).await, Appended::New);
    assert_eq!(append(&store, &again).await, Appended::Resend(Box::new(still_open(&first))));
    assert_eq!(store.intake.get(&[first.id, again.id]).await.unwrap(), [Some(still_open(&first)), None]);

    let outcome = Outcome::Saved { seq: Seq(7) };
    store.intake.close(&[Closing { id: first.id, outcome }]).await.unwrap();
    let closed = IntakeRecord { accepted: first.clone(), outcome: Some(outcome) };
    assert_eq!(
        append(&store, &resend_of(&first)).await,
        Appended::Resend(Box::new(closed)),
        "closed meanwhile"
    );
}

pub(super) async fn i2_an_append_repeated_is_a_resend_of_itself(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let entry = accepted(&room(), &user());
    assert_eq!(append(&store, &entry).await, Appended::New);
    assert_eq!(append(&store, &entry).await, Appended::Resend(Box::new(still_open(&entry))));
    assert_eq!(open_in(&store, &entry.chat_room_id).await, [entry], "there once");
}

pub(super) async fn i2_a_resend_is_recognised_after_death(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let first = accepted(&room(), &user());
    append(&store, &first).await;
    let store = reopened(subject, store).await;
    assert_eq!(append(&store, &resend_of(&first)).await, Appended::Resend(Box::new(still_open(&first))));
}

pub(super) async fn i2_of_many_at_the_same_time_one_is_new(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let first = accepted(&room(), &user());
    let mut answers = Vec::new();
    for _ in 0..8 {
        let (store, entry) = (subject.beside(&store).await, resend_of(&first));
        answers.push(async move { (entry.clone(), append(&store, &entry).await) });
    }
    let answers = together(answers).await;

    let new: Vec<_> = answers.iter().filter(|(_, answer)| *answer == Appended::New).collect();
    let [(winner, _)] = new[..] else { panic!("{} of 8 are new", new.len()) };
    for (entry, answer) in answers.iter().filter(|(entry, _)| entry.id != winner.id) {
        assert_eq!(*answer, Appended::Resend(Box::new(still_open(winner))), "of {}", entry.id);
    }
    assert_eq!(open_in(&store, &first.chat_room_id).await, from_ref(winner));
}

pub(super) async fn i2_a_resend_is_found_without_an_append(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (first, absent) = (accepted(&room(), &user()), accepted(&room(), &user()));
    append(&store, &first).await;
    let asked = [absent.clone(), resend_of(&first), first.clone()];
    let record = Some(still_open(&first));
    assert_eq!(store.intake.find(&asked).await.unwrap(), [None, record.clone(), record]);
    assert_eq!(append(&store, &absent).await, Appended::New, "asking changed nothing");
    assert_eq!(store.intake.find(&[]).await.unwrap(), []);
}

pub(super) async fn i3_other_content_is_a_conflict_and_changes_nothing(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let first = accepted(&room(), &user());
    let other = Accepted { content: "something else".into(), ..resend_of(&first) };
    assert_eq!(append(&store, &first).await, Appended::New);
    assert_eq!(append(&store, &other).await, Appended::Conflict);
    assert_eq!(store.intake.get(&[first.id, other.id]).await.unwrap(), [Some(still_open(&first)), None]);
    assert_eq!(open_in(&store, &first.chat_room_id).await, [first]);
}

pub(super) async fn i3_another_room_or_sender_is_another_message(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let first = accepted(&room(), &user());
    let elsewhere = Accepted { chat_room_id: room(), content: "a".into(), ..resend_of(&first) };
    let by_another = Accepted { sender_id: user(), content: "b".into(), ..resend_of(&first) };
    for entry in [&first, &elsewhere, &by_another] {
        assert_eq!(append(&store, entry).await, Appended::New);
    }
}

pub(super) async fn i4_there_is_one_answer_per_entry_in_their_order(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, ada) = (room(), user());
    let old = accepted(&room, &ada);
    append(&store, &old).await;

    let (one, two) = (accepted(&room, &ada), accepted(&room, &ada));
    let conflict = Accepted { content: "something else".into(), ..resend_of(&old) };
    let conflict_within = Accepted { content: "something else".into(), ..resend_of(&one) };
    let entries =
        [one.clone(), resend_of(&old), conflict, one.clone(), resend_of(&one), conflict_within, two.clone()];
    let resend = |first: &Accepted| Appended::Resend(Box::new(still_open(first)));
    assert_eq!(
        store.intake.append(&entries).await.unwrap(),
        [
            Appended::New,
            resend(&old),
            Appended::Conflict,
            resend(&one),
            resend(&one),
            Appended::Conflict,
            Appended::New
        ]
    );
    assert_eq!(open_in(&store, &room).await, [old, one, two]);
    assert_eq!(store.intake.append(&[]).await.unwrap(), []);
}

pub(super) async fn i5_open_lists_what_is_not_closed_oldest_first(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, ada) = (room(), user());
    // Their gateways' clocks say the opposite of the order of appending.
    let moment = |at: u64| Timestamp::now().before(Duration::from_secs(at * 3_600));
    let entries: Vec<_> =
        (0..5).map(|at| Accepted { timestamp: moment(at), ..accepted(&room, &ada) }).collect();
    store.intake.append(&entries[..2]).await.unwrap();
    store.intake.append(&entries[2..3]).await.unwrap();
    store.intake.append(&entries[3..]).await.unwrap();
    assert_eq!(open_in(&store, &room).await, entries);

    let outcome = Outcome::Saved { seq: Seq(1) };
    store.intake.close(&[Closing { id: entries[0].id, outcome }]).await.unwrap();
    assert_eq!(open_in(&store, &room).await, entries[1..], "what is closed is not listed");
    let ends: Vec<_> = entries[1..].iter().map(|entry| Closing { id: entry.id, outcome }).collect();
    store.intake.close(&ends).await.unwrap();
    assert_eq!(open_in(&store, &room).await, []);
}

pub(super) async fn i5_a_walk_lists_every_open_entry_once(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, ada) = (room(), user());
    let entries: Vec<_> = (0..7).map(|_| accepted(&room, &ada)).collect();
    store.intake.append(&entries[..4]).await.unwrap();
    let newest = store.intake.newest_open().await.unwrap();
    store.intake.append(&entries[4..]).await.unwrap();

    let walk = async |after, up_to, limit| {
        let mut walked = open_between(&store, after, up_to, limit).await;
        walked.retain(|entry| entry.chat_room_id == room);
        walked
    };
    for limit in [1, 2, 3, 100] {
        assert_eq!(walk(None, None, limit).await, entries);
        assert_eq!(walk(None, newest, limit).await, entries[..4], "up to a place");
        assert_eq!(walk(newest, None, limit).await, entries[4..], "right after a place");
    }
    let page = store.intake.open(None, None, 1).await.unwrap();
    assert_eq!(page.entries.len(), 1, "at most the limit");
    assert_eq!(page.next, Some(page.entries[0].place));
}

pub(super) async fn i6_the_first_outcome_stands(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, ada) = (room(), user());
    let (one, two) = (accepted(&room, &ada), accepted(&room, &ada));
    store.intake.append(&[one.clone(), two.clone()]).await.unwrap();

    let absent = MessageId::generate();
    let saved = Outcome::Saved { seq: Seq(4) };
    let rejected = Outcome::Rejected { reason: Rejection::NotAMember };
    let end = |id, outcome| Closing { id, outcome };
    store.intake.close(&[end(one.id, saved)]).await.unwrap();
    store.intake.close(&[end(one.id, rejected), end(one.id, Outcome::Saved { seq: Seq(5) })]).await.unwrap();
    store.intake.close(&[end(absent, saved), end(two.id, rejected), end(two.id, saved)]).await.unwrap();

    let outcomes: Vec<_> = store.intake.get(&[one.id, two.id, absent]).await.unwrap();
    let outcomes: Vec<_> =
        outcomes.into_iter().map(|record| record.and_then(|record| record.outcome)).collect();
    assert_eq!(outcomes, [Some(saved), Some(rejected), None]);
    assert_eq!(open_in(&store, &room).await, []);
}

pub(super) async fn i6_an_outcome_survives_death(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let entry = accepted(&room(), &user());
    append(&store, &entry).await;
    let outcome = Outcome::Saved { seq: Seq(1) };
    store.intake.close(&[Closing { id: entry.id, outcome }]).await.unwrap();
    let store = reopened(subject, store).await;
    let record = IntakeRecord { accepted: entry.clone(), outcome: Some(outcome) };
    assert_eq!(store.intake.get(&[entry.id]).await.unwrap(), [Some(record)]);
    assert_eq!(open_in(&store, &entry.chat_room_id).await, []);
}

pub(super) async fn i7_what_comes_after_a_resend_comes_after_its_first_try(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, ada) = (room(), user());
    let old = accepted(&room, &ada);
    append(&store, &old).await;
    let after = |before: &Accepted| Accepted { after: Some(before.id), ..accepted(&room, &ada) };
    let again = resend_of(&old);
    let one = after(&again);
    let one_again = resend_of(&one);
    let two = after(&one_again);
    let three = after(&two);
    store.intake.append(&[again, one.clone(), one_again, two.clone(), three.clone()]).await.unwrap();
    let expected = [(&one, &old), (&two, &one), (&three, &two)]
        .map(|(entry, before)| Accepted { after: Some(before.id), ..entry.clone() });
    let records = store.intake.get(&expected.each_ref().map(|entry| entry.id)).await.unwrap();
    assert_eq!(records, expected.map(|entry| Some(still_open(&entry))));
}

pub(super) async fn i8_what_was_rejected_may_be_appended_again(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (first, later) = (accepted(&room(), &user()), accepted(&room(), &user()));
    let later = Accepted { chat_room_id: first.chat_room_id.clone(), ..later };
    append(&store, &first).await;
    let rejected = Outcome::Rejected { reason: Rejection::NotAMember };
    store.intake.close(&[Closing { id: first.id, outcome: rejected }]).await.unwrap();
    append(&store, &later).await;
    let other = Accepted { content: "something else".into(), ..resend_of(&first) };
    assert_eq!(append(&store, &other).await, Appended::Conflict);

    // Of two in one append, one opens it again.
    let again = Accepted { after: Some(later.id), ..resend_of(&first) };
    let opened = Accepted { id: first.id, ..again.clone() };
    let answers = store.intake.append(&[again.clone(), resend_of(&first)]).await.unwrap();
    assert_eq!(answers, [Appended::Reopened(first.id), Appended::Resend(Box::new(still_open(&opened)))]);
    let store = reopened(subject, store).await;
    assert_eq!(store.intake.get(&[first.id, again.id]).await.unwrap(), [Some(still_open(&opened)), None]);
    assert_eq!(open_in(&store, &first.chat_room_id).await, [opened.clone(), later]);

    let outcome = Outcome::Saved { seq: Seq(1) };
    store.intake.close(&[Closing { id: first.id, outcome }]).await.unwrap();
    let closed = IntakeRecord { accepted: opened, outcome: Some(outcome) };
    assert_eq!(append(&store, &resend_of(&first)).await, Appended::Resend(Box::new(closed)), "it is saved");
}

pub(super) async fn i9_a_closed_entry_loses_its_content_and_an_open_one_does_not(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, ada) = (room(), user());
    let entries: Vec<_> = (0..3).map(|_| accepted(&room, &ada)).collect();
    store.intake.append(&entries).await.unwrap();
    let outcome = Outcome::Saved { seq: Seq(7) };
    let close = |entry: &Accepted| Closing { id: entry.id, outcome };
    store.intake.close(&[close(&entries[0]), close(&entries[1])]).await.unwrap();

    let asked = [entries[0].id, entries[2].id, MessageId::generate()];
    for _ in 0..2 {
        store.intake.drop_contents(&asked).await.unwrap();
    }
    store.intake.drop_contents(&[]).await.unwrap();
    let closed = |accepted| Some(IntakeRecord { accepted, outcome: Some(outcome) });
    let expected =
        [closed(without_content(&entries[0])), closed(entries[1].clone()), Some(still_open(&entries[2]))];
    let ids = [entries[0].id, entries[1].id, entries[2].id];
    assert_eq!(store.intake.get(&ids).await.unwrap(), expected);
    assert_eq!(store.intake.find(&entries).await.unwrap(), expected);

    let store = reopened(subject, store).await;
    assert_eq!(store.intake.get(&ids).await.unwrap(), expected);
    assert_eq!(open_in(&store, &room).await, entries[2..], "it is recovered with its content");
}

pub(super) async fn i9_without_content_a_resend_is_recognised_by_its_key(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (saved, rejected) = (accepted(&room(), &user()), accepted(&room(), &user()));
    store.intake.append(&[saved.clone(), rejected.clone()]).await.unwrap();
    let outcome = Outcome::Saved { seq: Seq(7) };
    let refused = Outcome::Rejected { reason: Rejection::NotAMember };
    let closings = [Closing { id: saved.id, outcome }, Closing { id: rejected.id, outcome: refused }];
    store.intake.close(&closings).await.unwrap();
    store.intake.drop_contents(&[saved.id, rejected.id]).await.unwrap();

    let record = IntakeRecord { accepted: without_content(&saved), outcome: Some(outcome) };
    let other = Accepted { content: "something else".into(), ..resend_of(&saved) };
    for again in [resend_of(&saved), other] {
        assert_eq!(append(&store, &again).await, Appended::Resend(Box::new(record.clone())));
        assert_eq!(store.intake.get(&[saved.id, again.id]).await.unwrap(), [Some(record.clone()), None]);
    }

    let again = Accepted { content: "something else".into(), ..resend_of(&rejected) };
    let answers = store.intake.append(&[again.clone(), resend_of(&rejected)]).await.unwrap();
    assert_eq!(answers, [Appended::Reopened(rejected.id), Appended::Conflict], "it has a content again");
    let opened = Accepted { id: rejected.id, ..again };
    store.intake.drop_contents(&[rejected.id]).await.unwrap();
    assert_eq!(store.intake.get(&[rejected.id]).await.unwrap(), [Some(still_open(&opened))]);
    assert_eq!(open_in(&store, &rejected.chat_room_id).await, [opened]);
}

pub(super) async fn i10_old_contents_are_forgotten(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, ada) = (room(), user());
    let of_second = |second| Accepted { id: id_of_second(second), ..accepted(&room, &ada) };
    let entries = [10, 11, 12, 13, 14].map(of_second);
    let [saved, open, rejected, late, young] = &entries;
    store.intake.append(&entries).await.unwrap();
    let outcome = Outcome::Saved { seq: Seq(7) };
    let close = async |store: &Store, entry: &Accepted, outcome| {
        store.intake.close(&[Closing { id: entry.id, outcome }]).await.unwrap();
    };
    for entry in [saved, late, young] {
        close(&store, entry, outcome).await;
    }
    close(&store, rejected, Outcome::Rejected { reason: Rejection::NotAMember }).await;
    let with_content = async |store: &Store| {
        let records = store.intake.get(&entries.each_ref().map(|entry| entry.id)).await.unwrap();
        records.into_iter().flatten().map(|record| !record.accepted.content.is_empty()).collect::<Vec<_>>()
    };
    // An id has seconds.
    let before = Timestamp::from_millis(14_999);
    let walk = async |store: &Store, limit| {
        let (mut after, mut removed) = (None, 0);
        loop {
            let step = store.intake.forget_contents(after, before, limit).await.unwrap();
            removed += step.removed;
            after = step.next;
            if after.is_none() {
                return removed;
            }
        }
    };
    assert_eq!(walk(&store, 2).await, 3);
    assert_eq!(
        with_content(&store).await,
        [false, true, false, false, true],
        "the open one and the young one"
    );
    let store = reopened(subject, store).await;
    assert_eq!(with_content(&store).await, [false, true, false, false, true]);
    assert_eq!(walk(&store, 100).await, 0);
    assert_eq!(open_in(&store, &room).await, from_ref(open), "it is recovered with its content");

    // What was open, and what was opened again, is found once it is closed.
    close(&store, open, outcome).await;
    assert_eq!(walk(&store, 1).await, 1);
    assert_eq!(append(&store, &resend_of(rejected)).await, Appended::Reopened(rejected.id));
    assert_eq!(walk(&store, 1).await, 0);
    close(&store, rejected, outcome).await;
    assert_eq!(with_content(&store).await, [false, false, true, false, true]);
    assert_eq!(walk(&store, 1).await, 1);
    assert_eq!(with_content(&store).await, [false, false, false, false, true]);
}

pub(super) async fn i11_what_a_sender_sent_to_a_room_is_walked_in_order(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (room, ada) = (room(), user());
    let name = |name: &str| ClientMessageId::new(name).unwrap();
    // By their bytes: capitals first, and no language's order.
    let names = ["B", "a", "a\u{301}", "b 1", "b.1", "z", "ä", "나"].map(name);
    let entry =
        |name: &ClientMessageId| Accepted { client_message_id: name.clone(), ..accepted(&room, &ada) };
    let mut entries: Vec<_> = names.iter().map(entry).collect();
    let others = [accepted(&room, &user()), accepted(&super::fixtures::room(), &ada)];
    store.intake.append(&entries.iter().rev().chain(&others).cloned().collect::<Vec<_>>()).await.unwrap();
    let outcome = Outcome::Saved { seq: Seq(7) };
    store.intake.close(&[Closing { id: entries[0].id, outcome }]).await.unwrap();
    store.intake.drop_contents(&[entries[0].id]).await.unwrap();
    entries[0] = without_content(&entries[0]);
    let record = |accepted: &Accepted| {
        let outcome = accepted.content.is_empty().then_some(outcome);
        IntakeRecord { accepted: accepted.clone(), outcome }
    };
    let expected: Vec<_> = entries.iter().map(record).collect();
    for limit in [1, 3, 100] {
        let (mut walked, mut after) = (Vec::new(), None);
        loop {
            let page = store.intake.of_sender(&room, &ada, after.as_ref(), limit).await.unwrap();
            let is_last = page.len() < limit;
            assert!(page.len() <= limit && walked.len() <= expected.len(), "at most {limit}, each once");
            after = page.last().map(|last| last.accepted.client_message_id.clone()).or(after);
            walked.extend(page);
            if is_last {
                break;
            }
        }
        assert_eq!(walked, expected);
    }
}

fn without_content(accepted: &Accepted) -> Accepted {
    Accepted { sender_name: "".into(), content: "".into(), ..accepted.clone() }
}

async fn append(store: &Store, entry: &Accepted) -> Appended {
    let mut answers = store.intake.append(from_ref(entry)).await.unwrap();
    assert_eq!(answers.len(), 1, "one answer per entry");
    answers.remove(0)
}

/// The sender's second attempt, to which the gateway gave another id, time and trace.
fn resend_of(first: &Accepted) -> Accepted {
    Accepted {
        timestamp: first.timestamp.after(Duration::from_secs(1)),
        content: first.content.clone(),
        client_message_id: first.client_message_id.clone(),
        ..accepted(&first.chat_room_id, &first.sender_id)
    }
}

fn still_open(accepted: &Accepted) -> IntakeRecord {
    IntakeRecord { accepted: accepted.clone(), outcome: None }
}

/// The open entries of this room.
async fn open_in(store: &Store, room: &RoomId) -> Vec<Accepted> {
    let mut open = open_between(store, None, None, 1_000).await;
    open.retain(|entry| entry.chat_room_id == *room);
    open
}

async fn open_between(
    store: &Store,
    mut after: Option<IntakePlace>,
    up_to: Option<IntakePlace>,
    limit: usize,
) -> Vec<Accepted> {
    let mut open = Vec::new();
    loop {
        let page = store.intake.open(after, up_to, limit).await.unwrap();
        assert!(page.entries.is_sorted_by_key(|entry| entry.place));
        open.extend(page.entries.into_iter().map(|entry| entry.accepted));
        after = page.next;
        if after.is_none() {
            return open;
        }
    }
}
