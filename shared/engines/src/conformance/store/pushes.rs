//! [`Pushes`](crate::store::Pushes).

use std::slice::from_ref;
use std::time::Duration;

use naru_model::hops::{Payload, PushJob};
use naru_model::{EventId, Timestamp};

use super::given::{room, user};
use super::{Of, Store, reopened};
use crate::conformance::bus::push_job;
use crate::store::ParkedPush;

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
    store.pushes.park(first.clone()).await.unwrap();
    assert_eq!(parked(&store, &[&first]).await, from_ref(&first));
    store.pushes.park(second.clone()).await.unwrap();
    assert_eq!(parked(&store, &[&first]).await, from_ref(&second));
    assert_eq!(parked(&store, &[&first]).await, from_ref(&second), "listing leaves it");

    assert!(store.pushes.drop_parked(first.event_id).await.unwrap());
    assert!(!store.pushes.drop_parked(first.event_id).await.unwrap(), "gone already");
    assert_eq!(parked(&store, &[&first]).await, []);
}

pub(super) async fn u2_what_is_parked_survives_death(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let new = parked_now("new");
    // So long ago that no other case's is older.
    let at = |second| Timestamp::from_millis(second);
    let [oldest, older] = [1, 2].map(|second| ParkedPush { parked_at: at(second), ..parked_now("old") });
    for push in [&older, &new, &oldest] {
        store.pushes.park(push.clone()).await.unwrap();
    }
    let store = reopened(subject, store).await;
    assert_eq!(parked(&store, &[&new, &older, &oldest]).await, [oldest.clone(), older.clone(), new.clone()]);
    assert_eq!(store.pushes.parked(2).await.unwrap(), [oldest.clone(), older.clone()], "oldest first");
    for push in [oldest, older, new] {
        assert!(store.pushes.drop_parked(push.event_id).await.unwrap());
    }
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

/// Of all that is parked, these.
async fn parked(store: &Store, pushes: &[&ParkedPush]) -> Vec<ParkedPush> {
    let mut parked = store.pushes.parked(100_000).await.unwrap();
    parked.retain(|entry| pushes.iter().any(|push| push.event_id == entry.event_id));
    parked
}
