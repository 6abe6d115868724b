//! [`Users`](naru_engines::store::Users).

use std::slice::from_ref;
use std::time::Duration;

use naru_model::{Timestamp, UserId};

use super::fixtures::user;
use super::{Of, Store, reopened, together};
use naru_engines::store::{Erasure, UserRecord};

pub(super) async fn k1_sessions_end_with_a_later_epoch(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (ada, ben) = (user(), user());
    assert_eq!(record(&store, &ada).await, UserRecord::default());
    let mut last = record(&store, &ada).await.session_epoch;
    for _ in 0..3 {
        store.users.end_sessions(&ada, None).await.unwrap();
        let now = record(&store, &ada).await;
        assert!(now.session_epoch > last, "{now:?} after {last}");
        assert_eq!(now.tokens_not_before, None);
        last = now.session_epoch;
    }
    assert_eq!(record(&store, &ben).await, UserRecord::default(), "another user's");
}

pub(super) async fn k1_tokens_end_forward_only(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let ada = user();
    let (now, second) = (Timestamp::now(), Duration::from_secs(1));
    for (given, wanted) in [
        (None, None),
        (Some(now), Some(now)),
        (Some(now.before(second)), Some(now)),
        (None, Some(now)),
        (Some(now.after(second)), Some(now.after(second))),
    ] {
        store.users.end_sessions(&ada, given).await.unwrap();
        assert_eq!(record(&store, &ada).await.tokens_not_before, wanted, "after {given:?}");
    }
}

pub(super) async fn k1_of_many_at_the_same_time_each_counts(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let (ada, before) = (user(), Timestamp::now());
    let mut calls = Vec::new();
    for number in 0..8 {
        let (store, ada) = (subject.beside(&store).await, ada.clone());
        let not_before = before.after(Duration::from_millis(number));
        calls.push(async move { store.users.end_sessions(&ada, Some(not_before)).await.unwrap() });
    }
    together(calls).await;
    let now = record(&store, &ada).await;
    assert!(now.session_epoch >= 8, "{now:?}");
    assert_eq!(now.tokens_not_before, Some(before.after(Duration::from_millis(7))));
}

pub(super) async fn k2_a_block_list_is_its_users_own(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let [ada, ben, cleo] = [user(), user(), user()];
    for _ in 0..2 {
        assert!(store.users.block(&ada, &ben, 9).await.unwrap());
        assert_eq!(record(&store, &ada).await.blocked, from_ref(&ben), "repeated, it changes nothing");
    }
    assert_eq!(record(&store, &ben).await, UserRecord::default());
    assert_eq!(blocked_by(&store, &ben, &[&ada]).await, [true]);
    assert_eq!(blocked_by(&store, &ada, &[&ben]).await, [false], "not the other way round");
    // What else is kept of the user stays.
    store.users.end_sessions(&ada, None).await.unwrap();
    assert!(store.users.block(&ada, &cleo, 9).await.unwrap());
    let both = record(&store, &ada).await;
    assert_eq!((both.session_epoch, both.blocked), (1, sorted([&ben, &cleo])));
    for _ in 0..2 {
        store.users.unblock(&ada, &ben).await.unwrap();
        assert_eq!(record(&store, &ada).await.blocked, from_ref(&cleo), "repeated, it changes nothing");
    }
    store.users.unblock(&ben, &ada).await.unwrap();
    assert_eq!(blocked_by(&store, &ben, &[&ada]).await, [false]);
}

pub(super) async fn k2_a_full_block_list_takes_no_more(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let [ada, one, two, three] = [user(), user(), user(), user()];
    assert!(store.users.block(&ada, &one, 2).await.unwrap());
    assert!(store.users.block(&ada, &two, 2).await.unwrap());
    assert!(!store.users.block(&ada, &three, 2).await.unwrap());
    assert!(store.users.block(&ada, &one, 2).await.unwrap(), "it is on the list already");
    assert_eq!(record(&store, &ada).await.blocked, sorted([&one, &two]));
    store.users.unblock(&ada, &one).await.unwrap();
    assert!(store.users.block(&ada, &three, 2).await.unwrap(), "there is capacity again");
    assert_eq!(record(&store, &ada).await.blocked, sorted([&two, &three]));
}

pub(super) async fn k2_a_block_list_is_emptied(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let [ada, ben, cleo] = [user(), user(), user()];
    store.users.end_sessions(&ada, None).await.unwrap();
    for (user, other) in [(&ada, &ben), (&ada, &cleo), (&ben, &ada)] {
        assert!(store.users.block(user, other, 9).await.unwrap());
    }
    for _ in 0..2 {
        store.users.unblock_all(&ada).await.unwrap();
        let left = record(&store, &ada).await;
        assert_eq!((left.session_epoch, left.blocked), (1, vec![]), "the rest of the record stays");
    }
    assert_eq!(record(&store, &ben).await.blocked, from_ref(&ada), "another user's");
    store.users.unblock_all(&user()).await.unwrap();
    assert!(store.users.block(&ada, &cleo, 1).await.unwrap());
}

pub(super) async fn k3_changes_survive_death(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let [ada, ben, cleo] = [user(), user(), user()];
    let not_before = Timestamp::now();
    store.users.end_sessions(&ada, Some(not_before)).await.unwrap();
    for other in [&ben, &cleo] {
        assert!(store.users.block(&ada, other, 9).await.unwrap());
    }
    store.users.unblock(&ada, &cleo).await.unwrap();
    let before = record(&subject.beside(&store).await, &ada).await;
    let wanted = UserRecord { tokens_not_before: Some(not_before), blocked: vec![ben], ..before };
    let store = reopened(subject, store).await;
    assert_eq!(record(&store, &ada).await, wanted);
    assert_eq!(wanted.session_epoch, 1);
}

pub(super) async fn k4_each_user_is_answered_in_order(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let [ada, ben, cleo] = [user(), user(), user()];
    store.users.end_sessions(&ben, None).await.unwrap();
    assert!(store.users.block(&cleo, &ada, 9).await.unwrap());
    let asked = [cleo.clone(), ada.clone(), ben.clone(), cleo.clone()];
    let records = store.users.get(&asked).await.unwrap();
    let seen: Vec<_> = records.iter().map(|record| (record.session_epoch, record.blocked.len())).collect();
    assert_eq!(seen, [(0, 1), (0, 0), (1, 0), (0, 1)]);
    assert_eq!(blocked_by(&store, &ada, &[&ben, &cleo, &ada, &cleo]).await, [false, true, false, true]);
    assert!(store.users.get(&[]).await.unwrap().is_empty());
    assert!(blocked_by(&store, &ada, &[]).await.is_empty());
}

pub(super) async fn k5_an_erasure_is_under_way_until_its_last_round_is_completed(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let [ada, ben] = [user(), user()];
    let now = Timestamp::now();
    let later = now.after(Duration::from_secs(60));
    let under_way = async |store: &Store, user: &UserId| {
        let (mut found, mut after) = (None, None);
        loop {
            let page = store.users.erasures(after.as_ref(), 2).await.unwrap();
            found = found.or(page.iter().find(|(other, _)| other == user).map(|(_, erasure)| *erasure));
            after = page.last().map(|(last, _)| last.clone());
            if page.len() < 2 {
                return found;
            }
        }
    };
    assert_eq!(store.users.erasure(&ada).await.unwrap(), None);
    assert!(!store.users.complete_erasure(&ada, 1, now).await.unwrap(), "there is none");
    store.users.begin_erasure(&ada, now).await.unwrap();
    store.users.begin_erasure(&ben, now).await.unwrap();
    let first = store.users.erasure(&ada).await.unwrap().expect("it was asked for");
    assert_eq!((first.requested_at, first.completed_at), (now, None));
    store.users.begin_erasure(&ada, later).await.unwrap();
    assert!(!store.users.complete_erasure(&ada, first.round, later).await.unwrap(), "it was asked for again");

    let store = reopened(subject, store).await;
    let second = under_way(&store, &ada).await.expect("it survives");
    assert_eq!((second.requested_at, second.completed_at), (later, None));
    assert!(second.round > first.round);
    assert!(store.users.complete_erasure(&ada, second.round, later).await.unwrap());
    assert!(!store.users.complete_erasure(&ada, second.round, now).await.unwrap(), "once");
    assert_eq!(under_way(&store, &ada).await, None);
    assert!(under_way(&store, &ben).await.is_some(), "another user's");
    let store = reopened(subject, store).await;
    let done = Erasure { completed_at: Some(later), ..second };
    assert_eq!(store.users.erasure(&ada).await.unwrap(), Some(done));
    store.users.begin_erasure(&ada, later).await.unwrap();
    let third = under_way(&store, &ada).await.expect("it was asked for");
    assert_eq!(third.completed_at, None);
    assert!(third.round > second.round);
}

async fn record(store: &Store, user: &UserId) -> UserRecord {
    store.users.get(from_ref(user)).await.unwrap().remove(0)
}

async fn blocked_by(store: &Store, user: &UserId, others: &[&UserId]) -> Vec<bool> {
    let others: Vec<_> = others.iter().map(|other| (*other).clone()).collect();
    store.users.blocked_by(user, &others).await.unwrap()
}

fn sorted<const N: usize>(users: [&UserId; N]) -> Vec<UserId> {
    let mut users: Vec<_> = users.into_iter().cloned().collect();
    users.sort_unstable();
    users
}
