//! [`Live`](naru_engines::live::Live).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use naru_model::live::{Confirmation, LiveEvent, News};
use naru_model::message::Outcome;
use naru_model::{GatewayId, Message, MessageId, RoomId, Seq, SessionId, UserId};
use tokio::time::timeout;

use super::fixtures::{room, said, user};
use super::{LiveLayer, Of};
use naru_engines::live::{HasSession, Signal, Subscription};

/// More events than an engine buffers for a subscription that is not read.
const FLOOD: u64 = 20_000;

pub(super) async fn l1_every_gateway_gets_what_is_published(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let beside = subject.beside(&layer).await;
    let mut subscriptions =
        vec![subscribed(&layer).await, subscribed(&layer).await, subscribed(&beside).await];
    undisturbed(&layer, &mut subscriptions, 20).await;

    // A later subscription gets later events.
    subscriptions.push(subscribed(&beside).await);
    undisturbed(&beside, &mut subscriptions, 5).await;
    drop(subscriptions.remove(0));
    undisturbed(&layer, &mut subscriptions, 5).await;
}

/// Publishes in alternation, to a gateway that has one user: messages for that user, messages for another, and news
/// that need not arrive there.
pub(super) async fn l1_what_is_for_others_may_come_as_seq_only(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let (ada, ben) = (user(), user());
    let ben_is_here = Arc::new(AtomicBool::new(false));
    let has_session: HasSession = {
        let (ada, ben, ben_is_here) = (ada.clone(), ben.clone(), ben_is_here.clone());
        Arc::new(move |id| id == ada.as_str() || id == ben.as_str() && ben_is_here.load(Ordering::SeqCst))
    };
    let gateway = GatewayId::generate();
    let mut subscription = subject.beside(&layer).await.live.subscribe(&gateway, has_session).await.unwrap();

    'rounds: loop {
        ben_is_here.store(false, Ordering::SeqCst);
        let room = room();
        let to = |recipients: &[&UserId], event: LiveEvent| LiveEvent {
            recipients: recipients.iter().map(|user| (*user).clone()).collect(),
            ..event
        };
        let typing = News::Typing { chat_room_id: room.clone(), user_id: user() };
        let typing = LiveEvent { recipients: [ben.clone()].into(), origin: None, news: typing };
        let recipients: [&[&UserId]; 6] = [&[&ada], &[&ben], &[&ben, &ada], &[&ben], &[&ada], &[&ben]];
        let messages = chat(&room, 0..6).into_iter().zip(recipients).map(|(event, user)| to(user, event));
        let messages: Vec<_> = messages.collect();
        layer
            .live
            .publish(messages.iter().flat_map(|event| [event.clone(), typing.clone()]).collect())
            .await
            .unwrap();
        for (seq, expected) in (0..).map(Seq).zip(&messages) {
            match next_in(&mut subscription, &room, &typing).await {
                Signal::Event(event) => assert_eq!(*event, *expected),
                signal @ Signal::SeqOnly { .. } => {
                    assert_eq!(signal, Signal::SeqOnly { room: room.clone(), seq });
                    assert!(!expected.recipients.contains(&ada), "of {seq}, a recipient is here");
                }
                Signal::Interrupted => {
                    until_restored(&mut subscription).await;
                    continue 'rounds;
                }
                stray => panic!("{stray:?} was not asked for"),
            }
        }

        // `has_session` is asked anew for each event.
        ben_is_here.store(true, Ordering::SeqCst);
        let expected = to(&[&ben], chat(&room, 6..7).remove(0));
        layer.live.publish(vec![expected.clone()]).await.unwrap();
        match next_in(&mut subscription, &room, &typing).await {
            Signal::Interrupted => until_restored(&mut subscription).await,
            signal => {
                assert_eq!(signal, Signal::Event(Arc::new(expected)));
                return;
            }
        }
    }
}

/// The next signal of a room, or an interruption; not `ignored`.
async fn next_in(subscription: &mut Box<dyn Subscription>, room: &RoomId, ignored: &LiveEvent) -> Signal {
    loop {
        let signal = subscription.next().await.expect("open");
        let concerns = match &signal {
            Signal::Event(event) => event.news.room() == room && **event != *ignored,
            Signal::SeqOnly { room: other, .. } => other == room,
            Signal::Restored => false,
            _ => true,
        };
        if concerns {
            return signal;
        }
    }
}

pub(super) async fn l2_events_of_one_publisher_come_in_order(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let mut subscriptions = vec![subscribed(&layer).await];
    undisturbed(&layer, &mut subscriptions, 100).await;
}

pub(super) async fn l1_a_cancelled_next_loses_nothing(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let mut subscription = subscribed(&layer).await;
    // Repeats until a round has no interruption.
    'rounds: loop {
        let room = room();
        let (publisher, events) = (layer.live.clone(), chat(&room, 0..50));
        let publishing = tokio::spawn(async move {
            for event in events {
                publisher.publish(vec![event]).await.unwrap();
            }
        });
        let mut received = 0;
        for wait in (0..4).cycle() {
            let Ok(signal) = timeout(Duration::from_millis(wait), subscription.next()).await else {
                continue;
            };
            match place(signal, &room) {
                Meaning::Place(place) => {
                    assert_eq!(place, received, "lost in silence");
                    received += 1;
                }
                Meaning::Interrupted => {
                    publishing.await.unwrap();
                    until_restored(&mut subscription).await;
                    continue 'rounds;
                }
                Meaning::Restored | Meaning::Other => {}
            }
            if received == 50 {
                return;
            }
        }
    }
}

pub(super) async fn l1_what_is_lost_is_announced(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let mut subscription = subscribed(&layer).await;
    let room = room();
    flood(&layer, &room).await;

    // Later events are published until one arrives.
    let publisher = layer.live.clone();
    let mut last = FLOOD;
    let (mut expected, mut may_skip, mut interrupted) = (0, false, false);
    loop {
        let Ok(signal) = timeout(Duration::from_millis(100), subscription.next()).await else {
            publisher.publish(chat(&room, last..last + 1)).await.unwrap();
            last += 1;
            continue;
        };
        match place(signal, &room) {
            Meaning::Place(place) => {
                assert!(place >= expected, "{place} after {expected}");
                assert!(place == expected || may_skip, "lost in silence: {expected} to {place}");
                expected = place + 1;
                may_skip = interrupted;
            }
            Meaning::Interrupted => (may_skip, interrupted) = (true, true),
            Meaning::Restored => interrupted = false,
            Meaning::Other => {}
        }
        if expected > FLOOD && !interrupted {
            break;
        }
    }
}

pub(super) async fn l3_a_subscription_that_is_not_read_delays_no_other(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let (_unread, read) = (subscribed(&layer).await, subscribed(&layer).await);
    let room = room();
    flood(&layer, &room).await;
    undisturbed(&layer, &mut [read], 10).await;
}

pub(super) async fn l4_confirmations_and_evictions_reach_the_named_gateway_only(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let (here, there) = (GatewayId::generate(), GatewayId::generate());
    let mut at_here = layer.live.subscribe(&here, all_users()).await.unwrap();
    let mut at_there = subject.beside(&layer).await.live.subscribe(&there, all_users()).await.unwrap();
    let session = SessionId::generate();
    let confirmations: Vec<_> = [1, 2]
        .map(|seq| Confirmation { id: MessageId::generate(), outcome: Outcome::Saved { seq: Seq(seq) } })
        .into();

    layer.live.confirm(&here, confirmations.clone()).await.unwrap();
    layer.live.evict(&here, &session).await.unwrap();
    layer.live.confirm(&GatewayId::generate(), confirmations.clone()).await.unwrap();
    layer.live.evict(&GatewayId::generate(), &session).await.unwrap();
    let expected = [Signal::Confirmed(confirmations.into()), Signal::Evict(session)];
    let mut received = Vec::new();
    while received.len() < 2 {
        match at_here.next().await.expect("open") {
            signal @ (Signal::Confirmed(_) | Signal::Evict(_)) => received.push(signal),
            Signal::Interrupted => panic!("nothing is lost here: two signals"),
            Signal::Event(_) | Signal::SeqOnly { .. } | Signal::UserChanged(_) | Signal::Restored => {}
        }
    }
    // The order of these two is not promised.
    received.sort_by_key(|signal| matches!(signal, Signal::Evict(_)));
    assert_eq!(received, expected);

    // All signals that either gets from here on were published after those.
    let room = room();
    layer.live.publish(chat(&room, 0..1)).await.unwrap();
    for subscription in [&mut at_here, &mut at_there] {
        loop {
            match subscription.next().await.expect("open") {
                Signal::Event(event) if *event.news.room() == room => break,
                Signal::Event(_)
                | Signal::SeqOnly { .. }
                | Signal::UserChanged(_)
                | Signal::Interrupted
                | Signal::Restored => {}
                stray => panic!("{stray:?} is for another gateway"),
            }
        }
    }
}

pub(super) async fn l5_a_change_of_a_user_reaches_every_gateway(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let beside = subject.beside(&layer).await;
    // The last gateway has no session of any user.
    let empty = beside.live.subscribe(&GatewayId::generate(), Arc::new(|_| false)).await.unwrap();
    let subscriptions = [subscribed(&layer).await, subscribed(&beside).await, empty];
    let (ada, ben) = (user(), user());
    for user in [&ada, &ben] {
        layer.live.user_changed(user).await.unwrap();
    }
    for mut subscription in subscriptions {
        let mut changed = Vec::new();
        while changed.len() < 2 {
            match subscription.next().await.expect("open") {
                Signal::UserChanged(user) if user == ada || user == ben => changed.push(user),
                // What another case's flood has displaced is announced (L1).
                Signal::Interrupted => break,
                _ => {}
            }
        }
        assert!(changed.is_empty() || changed[0] == ada, "{changed:?}");
        assert!(changed.len() < 2 || changed[1] == ben, "{changed:?}");
    }
}

/// A subscription of a gateway with a session of every user.
async fn subscribed(layer: &LiveLayer) -> Box<dyn Subscription> {
    layer.live.subscribe(&GatewayId::generate(), all_users()).await.unwrap()
}

fn all_users() -> HasSession {
    Arc::new(|_| true)
}

/// One event per place in a room.
fn chat(room: &RoomId, places: std::ops::Range<u64>) -> Vec<LiveEvent> {
    let (ada, message) = (user(), said(room, &user(), 0));
    let event = |seq| LiveEvent {
        recipients: [ada.clone()].into(),
        origin: Some(SessionId::generate()),
        news: News::Chat(Message { seq: Seq(seq), ..message.clone() }),
    };
    places.map(event).collect()
}

async fn flood(layer: &LiveLayer, room: &RoomId) {
    for part in chat(room, 0..FLOOD).chunks(1_000) {
        layer.live.publish(part.to_vec()).await.unwrap();
    }
}

/// Publishes a round of events, all of which come to each of these, in order. After an interruption by another case's
/// flood, which is signalled, a new round starts in another room.
async fn undisturbed(publisher: &LiveLayer, subscriptions: &mut [Box<dyn Subscription>], count: u64) {
    loop {
        let room = room();
        let events = chat(&room, 0..count);
        let (first, rest) = events.split_at(events.len() / 2);
        publisher.live.publish(first.to_vec()).await.unwrap();
        publisher.live.publish(rest.to_vec()).await.unwrap();
        let mut disturbed = false;
        for subscription in &mut *subscriptions {
            disturbed |= !all_come(subscription, &room, &events).await;
        }
        if !disturbed {
            return;
        }
    }
}

/// Whether all of these came, in order; false after an interruption.
async fn all_come(subscription: &mut Box<dyn Subscription>, room: &RoomId, events: &[LiveEvent]) -> bool {
    for expected in events {
        loop {
            match subscription.next().await.expect("open") {
                Signal::Event(event) if event.news.room() == room => {
                    assert_eq!(*event, *expected);
                    break;
                }
                Signal::Interrupted => {
                    until_restored(subscription).await;
                    return false;
                }
                _ => {}
            }
        }
    }
    true
}

async fn until_restored(subscription: &mut Box<dyn Subscription>) {
    while subscription.next().await.expect("open") != Signal::Restored {}
}

/// The meaning of a signal for one room.
enum Meaning {
    Place(u64),
    Interrupted,
    Restored,
    Other,
}

fn place(signal: Option<Signal>, room: &RoomId) -> Meaning {
    match signal.expect("open") {
        Signal::Event(event) => match &event.news {
            News::Chat(message) if message.chat_room_id == *room => Meaning::Place(message.seq.0),
            _ => Meaning::Other,
        },
        Signal::Interrupted => Meaning::Interrupted,
        Signal::Restored => Meaning::Restored,
        Signal::SeqOnly { .. } | Signal::Confirmed(_) | Signal::Evict(_) | Signal::UserChanged(_) => {
            Meaning::Other
        }
    }
}
