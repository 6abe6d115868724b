//! [`Live`](crate::live::Live).

use std::time::Duration;

use naru_model::live::{Confirmation, LiveEvent, News};
use naru_model::message::Outcome;
use naru_model::{GatewayId, Message, MessageId, RoomId, Seq, SessionId};
use tokio::time::timeout;

use super::given::{room, said, user};
use super::{LiveLayer, Of};
use crate::live::{Signal, Subscription};

type Ear = Box<dyn Subscription>;

/// More than an engine will hold back for one that does not listen.
const FLOOD: u64 = 20_000;

pub(super) async fn l1_every_gateway_hears_what_is_published(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let beside = subject.beside(&layer).await;
    let mut ears = vec![ear(&layer).await, ear(&layer).await, ear(&beside).await];
    undisturbed(&layer, &mut ears, 20).await;

    // Who comes later hears what comes later.
    ears.push(ear(&beside).await);
    undisturbed(&beside, &mut ears, 5).await;
    drop(ears.remove(0));
    undisturbed(&layer, &mut ears, 5).await;
}

pub(super) async fn l2_events_of_one_publisher_come_in_order(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let mut ears = vec![ear(&layer).await];
    undisturbed(&layer, &mut ears, 100).await;
}

pub(super) async fn l1_a_cancelled_next_loses_nothing(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let mut ear = ear(&layer).await;
    // Until a round goes by without an interruption.
    'rounds: loop {
        let room = room();
        let (publisher, events) = (layer.live.clone(), chat(&room, 0..50));
        let publishing = tokio::spawn(async move {
            for event in events {
                publisher.publish(vec![event]).await.unwrap();
            }
        });
        let mut heard = 0;
        for wait in (0..4).cycle() {
            let Ok(signal) = timeout(Duration::from_millis(wait), ear.next()).await else { continue };
            match place(signal, &room) {
                Heard::Place(place) => {
                    assert_eq!(place, heard, "lost in silence");
                    heard += 1;
                }
                Heard::Interrupted => {
                    publishing.await.unwrap();
                    until_restored(&mut ear).await;
                    continue 'rounds;
                }
                Heard::Restored | Heard::Other => {}
            }
            if heard == 50 {
                return;
            }
        }
    }
}

pub(super) async fn l1_what_is_lost_is_announced(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let mut ear = ear(&layer).await;
    let room = room();
    flood(&layer, &room).await;

    // What comes after is published until it is heard.
    let publisher = layer.live.clone();
    let mut last = FLOOD;
    let (mut expected, mut may_skip, mut interrupted) = (0, false, false);
    loop {
        let Ok(signal) = timeout(Duration::from_millis(100), ear.next()).await else {
            publisher.publish(chat(&room, last..last + 1)).await.unwrap();
            last += 1;
            continue;
        };
        match place(signal, &room) {
            Heard::Place(place) => {
                assert!(place >= expected, "{place} after {expected}");
                assert!(place == expected || may_skip, "lost in silence: {expected} to {place}");
                expected = place + 1;
                may_skip = interrupted;
            }
            Heard::Interrupted => (may_skip, interrupted) = (true, true),
            Heard::Restored => interrupted = false,
            Heard::Other => {}
        }
        if expected > FLOOD && !interrupted {
            break;
        }
    }
}

pub(super) async fn l3_who_does_not_listen_delays_nobody(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let (_asleep, listens) = (ear(&layer).await, ear(&layer).await);
    let room = room();
    flood(&layer, &room).await;
    undisturbed(&layer, &mut [listens], 10).await;
}

pub(super) async fn l4_confirmations_and_evictions_reach_the_named_gateway_only(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let (here, there) = (GatewayId::generate(), GatewayId::generate());
    let mut ear_here = layer.live.subscribe(&here).await.unwrap();
    let mut ear_there = subject.beside(&layer).await.live.subscribe(&there).await.unwrap();
    let session = SessionId::generate();
    let confirmations: Vec<_> = [1, 2]
        .map(|seq| Confirmation { id: MessageId::generate(), outcome: Outcome::Saved { seq: Seq(seq) } })
        .into();

    layer.live.confirm(&here, confirmations.clone()).await.unwrap();
    layer.live.evict(&here, &session).await.unwrap();
    layer.live.confirm(&GatewayId::generate(), confirmations.clone()).await.unwrap();
    layer.live.evict(&GatewayId::generate(), &session).await.unwrap();
    let expected = [Signal::Confirmed(confirmations.into()), Signal::Evict(session)];
    let mut heard = Vec::new();
    while heard.len() < 2 {
        match ear_here.next().await.expect("open") {
            signal @ (Signal::Confirmed(_) | Signal::Evict(_)) => heard.push(signal),
            Signal::Interrupted => panic!("nothing is lost here: two signals"),
            Signal::Event(_) | Signal::Restored => {}
        }
    }
    // Of these two the order is not promised.
    heard.sort_by_key(|signal| matches!(signal, Signal::Evict(_)));
    assert_eq!(heard, expected);

    // All that either hears from here on was published after those.
    let room = room();
    layer.live.publish(chat(&room, 0..1)).await.unwrap();
    for ear in [&mut ear_here, &mut ear_there] {
        loop {
            match ear.next().await.expect("open") {
                Signal::Event(event) if *event.news.room() == room => break,
                Signal::Event(_) | Signal::Interrupted | Signal::Restored => {}
                stray => panic!("{stray:?} is for another gateway"),
            }
        }
    }
}

async fn ear(layer: &LiveLayer) -> Ear {
    layer.live.subscribe(&GatewayId::generate()).await.unwrap()
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

/// A round of events that each of these hears, all and in order. Another case's flood may interrupt one, which it then
/// hears; after that it is tried again, in another room.
async fn undisturbed(publisher: &LiveLayer, ears: &mut [Ear], count: u64) {
    loop {
        let room = room();
        let events = chat(&room, 0..count);
        let (first, rest) = events.split_at(events.len() / 2);
        publisher.live.publish(first.to_vec()).await.unwrap();
        publisher.live.publish(rest.to_vec()).await.unwrap();
        let mut disturbed = false;
        for ear in &mut *ears {
            disturbed |= !hears_all(ear, &room, &events).await;
        }
        if !disturbed {
            return;
        }
    }
}

/// Whether all of these were heard, in order; else an interruption was.
async fn hears_all(ear: &mut Ear, room: &RoomId, events: &[LiveEvent]) -> bool {
    for expected in events {
        loop {
            match ear.next().await.expect("open") {
                Signal::Event(event) if event.news.room() == room => {
                    assert_eq!(*event, *expected);
                    break;
                }
                Signal::Interrupted => {
                    until_restored(ear).await;
                    return false;
                }
                _ => {}
            }
        }
    }
    true
}

async fn until_restored(ear: &mut Ear) {
    while ear.next().await.expect("open") != Signal::Restored {}
}

enum Heard {
    Place(u64),
    Interrupted,
    Restored,
    Other,
}

/// What a signal means for who listens to one room.
fn place(signal: Option<Signal>, room: &RoomId) -> Heard {
    match signal.expect("open") {
        Signal::Event(event) => match &event.news {
            News::Chat(message) if message.chat_room_id == *room => Heard::Place(message.seq.0),
            _ => Heard::Other,
        },
        Signal::Interrupted => Heard::Interrupted,
        Signal::Restored => Heard::Restored,
        Signal::Confirmed(_) | Signal::Evict(_) => Heard::Other,
    }
}
