//! [`Pushes`](naru_engines::store::Pushes).

use std::slice::from_ref;
use std::time::Duration;

use naru_model::hops::{Payload, PushJob};
use naru_model::{EventId, MessageId, Timestamp};

use super::fixtures::{room, user};
use super::{Of, Store, reopened};
use crate::bus::push_job;
use naru_engines::store::{ParkedCursor, ParkedPush};

pub(super) async fn u1_what_was_recorded_is_done(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let [one, two, three] = [(); 3].map(|()| parked_now("").event_id);
    assert_eq!(store.pushes.done(&[one, two, three]).await.unwrap(), [false, false, false]);
    let taken = |event: EventId| (event, "projects/naru/messages/0:17 '%'".to_owned());
    store.pushes.record(&[taken(one), taken(three)]).await.unwrap();
    store.pushes.record(&[taken(one)]).await.unwrap();
    assert_eq!(store.pushes.done(&[one, two, three]).await.unwrap(), [true, false, true]);
    let store = reopened(subject, store).await;
    assert_eq!(store.pushes.done(&[two, three, one, one]).await.unwrap(), [false, true, true, true]);
}

pub(super) async fn u2_parking_again_replaces_the_entry(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let first = parked_now("the key was refused");
    let second = ParkedPush { reason: "it was refused again".to_owned(), attempts: 9, ..first.clone() };
    store.pushes.park(from_ref(&first)).await.unwrap();
    assert_eq!(parked(&store, &[&first]).await, from_ref(&first));
    store.pushes.park(from_ref(&second)).await.unwrap();
    assert_eq!(parked(&store, &[&first]).await, from_ref(&second));
    assert_eq!(parked(&store, &[&first]).await, from_ref(&second), "listing leaves it");

    assert!(store.pushes.drop_parked(first.event_id).await.unwrap());
    assert!(!store.pushes.drop_parked(first.event_id).await.unwrap(), "gone already");
    assert_eq!(parked(&store, &[&first]).await, []);
}

pub(super) async fn u2_what_is_parked_survives_death(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let new = parked_now("new");
    // Times so early that no other case's push is older.
    let at = |second| Timestamp::from_millis(second);
    let [oldest, older] = [1, 2].map(|second| ParkedPush { parked_at: at(second), ..parked_now("old") });
    store.pushes.park(&[older.clone(), new.clone(), oldest.clone()]).await.unwrap();
    let store = reopened(subject, store).await;
    assert_eq!(parked(&store, &[&new, &older, &oldest]).await, [oldest.clone(), older.clone(), new.clone()]);
    assert_eq!(store.pushes.parked(None, 2).await.unwrap(), [oldest.clone(), older.clone()], "oldest first");
    for push in [oldest, older, new] {
        assert!(store.pushes.drop_parked(push.event_id).await.unwrap());
    }
}

pub(super) async fn u2_what_was_parked_again_is_another_entry(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let first = parked_now("the key was refused");
    let second = ParkedPush { parked_at: Timestamp::now(), attempts: 1, ..first.clone() };
    let drop_at = async |push| store.pushes.drop_parked_at(&ParkedCursor::at(push)).await.unwrap();
    assert!(!drop_at(&first).await, "not there yet");
    store.pushes.park(from_ref(&first)).await.unwrap();
    store.pushes.park(from_ref(&second)).await.unwrap();
    assert!(!drop_at(&first).await, "it was replaced");
    assert_eq!(parked(&store, &[&first]).await, from_ref(&second));
    assert!(drop_at(&second).await);
    assert_eq!(parked(&store, &[&first]).await, []);
    assert!(!drop_at(&second).await, "gone already");
}

pub(super) async fn u3_a_walk_meets_every_parked_push_in_order(subject: Of<'_, Store>) {
    let store = subject.open().await;
    // Times that only this case uses; several pushes have the same time.
    let moment = Timestamp::from_millis;
    let mut pushes: Vec<_> = [11, 13, 12, 12, 12, 12, 14]
        .map(|millis| ParkedPush { parked_at: moment(millis), ..parked_now("old") })
        .into();
    for push in &pushes {
        store.pushes.park(from_ref(push)).await.unwrap();
    }
    // A push that is parked again moves to the end.
    pushes[0].parked_at = moment(15);
    store.pushes.park(from_ref(&pushes[0])).await.unwrap();
    let store = reopened(subject, store).await;
    pushes.sort_by_key(|push| (push.parked_at, push.event_id.0));

    let before_all = ParkedCursor { parked_at: moment(10), event_id: pushes[0].event_id };
    for step in [1, 2, 3, 100] {
        let (mut met, mut cursor) = (Vec::new(), before_all);
        while met.len() < pushes.len() {
            let page = store.pushes.parked(Some(&cursor), step.min(pushes.len() - met.len())).await.unwrap();
            assert!(!page.is_empty(), "there are more than {}", met.len());
            cursor = page.last().map_or(cursor, ParkedCursor::at);
            met.extend(page);
        }
        assert_eq!(met, pushes, "{step} at a time");
    }

    // The push that the cursor names may be deleted.
    let cursor = ParkedCursor::at(&pushes[1]);
    assert!(store.pushes.drop_parked(pushes[1].event_id).await.unwrap());
    assert_eq!(store.pushes.parked(Some(&cursor), 2).await.unwrap(), pushes[2..4]);
    pushes.remove(1);
    for push in pushes {
        assert!(store.pushes.drop_parked(push.event_id).await.unwrap());
    }
}

pub(super) async fn u4_those_parked_for_a_reason_are_listed(subject: Of<'_, Store>) {
    let store = subject.open().await;
    // A reason that only this case uses.
    let reason = format!("no provider {}", MessageId::generate());
    let at =
        |second, reason: &str| ParkedPush { parked_at: Timestamp::from_millis(second), ..parked_now(reason) };
    let [oldest, older, old] = [21, 22, 23].map(|second| at(second, &reason));
    let others = [at(20, "another"), at(24, &format!("{reason} at all"))];
    let all = [&old, &others[0], &oldest, &others[1], &older].map(ParkedPush::clone);
    store.pushes.park(&all).await.unwrap();
    store.pushes.park(&[]).await.unwrap();
    let listed = async |store: &Store, limit| store.pushes.parked_because(&reason, limit).await.unwrap();
    assert_eq!(listed(&store, 9).await, [oldest.clone(), older.clone(), old.clone()]);
    assert_eq!(listed(&store, 2).await, [oldest.clone(), older.clone()], "oldest first");

    // Parked again, for another reason.
    store.pushes.park(&[ParkedPush { reason: "expired".to_owned(), ..oldest.clone() }]).await.unwrap();
    let store = reopened(subject, store).await;
    assert_eq!(listed(&store, 9).await, [older, old]);
    for push in all {
        assert!(store.pushes.drop_parked(push.event_id).await.unwrap());
    }
    assert_eq!(listed(&store, 9).await, []);
}

pub(super) async fn u5_what_was_parked_long_ago_is_forgotten(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let before = store.pushes.parked_count().await.unwrap();
    // Times so early that no other case's push is older.
    let at = |millis| ParkedPush { parked_at: Timestamp::from_millis(millis), ..parked_now("old") };
    let [oldest, older, old, just_in_time, again] = [-9, -8, -7, -6, -9].map(at);
    let all = [&old, &oldest, &just_in_time, &again, &older].map(ParkedPush::clone);
    store.pushes.park(&all).await.unwrap();
    // What is parked again is as young as that.
    let again = ParkedPush { parked_at: Timestamp::now(), ..again };
    store.pushes.park(from_ref(&again)).await.unwrap();
    assert!(store.pushes.parked_count().await.unwrap() >= before.saturating_add(5));

    let forget = async |store: &Store| store.pushes.forget_parked(just_in_time.parked_at, 2).await.unwrap();
    let all = [&oldest, &older, &old, &just_in_time, &again];
    assert_eq!(forget(&store).await, 2, "no more than asked");
    assert_eq!(
        parked(&store, &all).await,
        [old.clone(), just_in_time.clone(), again.clone()],
        "oldest first"
    );
    assert_eq!((forget(&store).await, forget(&store).await), (1, 0));
    let store = reopened(subject, store).await;
    assert_eq!(parked(&store, &all).await, [just_in_time.clone(), again.clone()]);
    assert_eq!(forget(&store).await, 0, "gone already");
    for push in [just_in_time, again] {
        assert!(store.pushes.drop_parked(push.event_id).await.unwrap());
    }
}

pub(super) async fn u3_one_is_found_by_its_event(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let [one, other] = ["one", "other"].map(parked_now);
    let find = async |push: &ParkedPush| store.pushes.find_parked(push.event_id).await.unwrap();
    store.pushes.park(from_ref(&other)).await.unwrap();
    assert_eq!(find(&one).await, None);
    store.pushes.park(from_ref(&one)).await.unwrap();
    assert_eq!((find(&one).await, find(&other).await), (Some(one.clone()), Some(other)));
    assert!(store.pushes.drop_parked(one.event_id).await.unwrap());
    assert_eq!(find(&one).await, None);
}

fn parked_now(reason: &str) -> ParkedPush {
    let job: PushJob = push_job(&room(), &user());
    ParkedPush {
        event_id: job.event_id(),
        job,
        reason: reason.to_owned(),
        attempts: 3,
        parked_at: Timestamp::now().before(Duration::from_secs(1)),
    }
}

/// Those of these pushes that are parked.
async fn parked(store: &Store, pushes: &[&ParkedPush]) -> Vec<ParkedPush> {
    let mut parked = store.pushes.parked(None, 100_000).await.unwrap();
    parked.retain(|entry| pushes.iter().any(|push| push.event_id == entry.event_id));
    parked
}
