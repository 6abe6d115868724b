use std::collections::{BTreeMap, HashSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::bus::fixtures::{Numbered, numbered};

const SECOND: Duration = Duration::from_secs(1);

fn numbers(taken: &[Taken<Numbered>]) -> Vec<u64> {
    taken.iter().map(|taken| taken.event.payload.number).collect()
}

/// An inbox with these events in its partitions, each under its own number.
fn filled(kind: HopKind, partitions: &[&[u64]]) -> Inbox<Numbered> {
    let mut inbox = Inbox::new(kind, u32::try_from(partitions.len()).unwrap());
    for (partition, events) in partitions.iter().enumerate() {
        events.iter().for_each(|number| inbox.push(partition, *number, numbered("r", *number), 1, None));
    }
    inbox
}

fn retry_all(inbox: &mut Inbox<Numbered>, batch: &[Taken<Numbered>], after: Duration, now: Instant) {
    let removed = inbox.remove(batch.iter().map(|taken| taken.tag));
    removed.events.into_iter().for_each(|event| inbox.retry(event, after, now));
}

#[test]
fn a_durable_event_waits_for_its_own_delay_only() {
    let now = Instant::now();
    let mut inbox = filled(HopKind::Durable, &[&[1, 2, 3]]);
    for seconds in [60, 2] {
        let batch = inbox.take(1, now).unwrap();
        retry_all(&mut inbox, &batch, SECOND * seconds, now);
    }
    assert_eq!(numbers(&inbox.take(9, now).unwrap()), [3], "unacknowledged, which holds nothing up");
    assert_eq!(inbox.take(9, now).unwrap_err(), Some(now + SECOND * 2));
    let again = inbox.take(9, now + SECOND * 2).unwrap();
    assert_eq!((numbers(&again), again[0].attempt), (vec![2], 2));
    assert_eq!(inbox.take(9, now + SECOND * 2).unwrap_err(), Some(now + SECOND * 60));
    assert_eq!(numbers(&inbox.take(9, now + SECOND * 60).unwrap()), [1]);
}

#[test]
fn what_was_unacknowledged_of_a_cleared_partition_does_not_come_again() {
    let now = Instant::now();
    let mut inbox = filled(HopKind::Ordered, &[&[1, 2, 3, 4, 5]]);
    let batch = inbox.take(3, now).unwrap();
    let removed_before = inbox.remove([batch[0].tag]).events;
    inbox.clear(0);
    inbox.push(0, 6, numbered("r", 6), 1, None);
    assert_eq!(inbox.take(9, now).unwrap_err(), None, "two of the room are unacknowledged");

    removed_before.into_iter().for_each(|event| inbox.retry(event, SECOND, now));
    inbox.put_back([batch[1].tag]);
    assert_eq!(inbox.unacknowledged(0), 1);
    let removed = inbox.remove([batch[2].tag]);
    assert!(removed.events.is_empty() && removed.some_are_gone);
    assert_eq!(numbers(&inbox.take(9, now).unwrap()), [6], "and nothing blocks it");

    inbox.clear_all();
    assert_eq!((inbox.waiting(), inbox.unacknowledged(0)), (0, 0));
}

#[test]
fn a_closed_partition_is_not_taken() {
    let now = Instant::now();
    let mut inbox = filled(HopKind::Ordered, &[&[1], &[2]]);
    inbox.set_closed(0, true);
    assert_eq!(numbers(&inbox.take(9, now).unwrap()), [2]);
    assert_eq!(inbox.take(9, now).unwrap_err(), None);
    assert_eq!(inbox.next_attempt(0), Some(1));
    inbox.set_closed(0, false);
    assert_eq!(numbers(&inbox.take(9, now).unwrap()), [1]);
}

#[test]
fn partitions_take_turns() {
    let now = Instant::now();
    let mut inbox = filled(HopKind::Ordered, &[&[1, 2], &[3, 4], &[5, 6]]);
    let mut served = Vec::new();
    while let Ok(batch) = inbox.take(1, now) {
        served.extend(numbers(&batch));
        inbox.remove([batch[0].tag]);
    }
    assert_eq!(served, [1, 3, 5, 2, 4, 6]);
}

#[test]
fn what_is_unacknowledged_is_removed_once() {
    let now = Instant::now();
    let mut inbox = filled(HopKind::Ordered, &[&[1, 2]]);
    let batch = inbox.take(9, now).unwrap();
    let tags = || batch.iter().map(|taken| taken.tag);
    inbox.put_back(tags());
    assert!(inbox.remove(tags()).some_are_gone);
    assert_eq!(numbers(&inbox.take(9, now).unwrap()), [1, 2]);
    assert!(inbox.remove(tags()).some_are_gone, "the same events, by tags of another delivery");
}

/// A call on an ordered inbox. A batch is picked by its index among the unacknowledged ones.
#[derive(Clone, Debug)]
enum Step {
    Push { room: usize },
    Take { max: usize },
    Ack { batch: usize, count: usize },
    Retry { batch: usize, count: usize, millis: u64 },
    Drop { batch: usize, count: usize },
    Pass { millis: u64 },
}

const ROOMS: usize = 5;
const PARTITIONS: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let (batch, count) = (0_usize..8, 1_usize..6);
    prop_oneof![
        4 => (0..ROOMS).prop_map(|room| Step::Push { room }),
        4 => (1_usize..6).prop_map(|max| Step::Take { max }),
        2 => (batch.clone(), count.clone()).prop_map(|(batch, count)| Step::Ack { batch, count }),
        1 => (batch.clone(), count.clone(), 0_u64..50)
            .prop_map(|(batch, count, millis)| Step::Retry { batch, count, millis }),
        1 => (batch, count).prop_map(|(batch, count)| Step::Drop { batch, count }),
        1 => (0_u64..40).prop_map(|millis| Step::Pass { millis }),
    ]
}

/// A delivery's tag, room and number.
type Delivered = (u64, usize, u64);
/// A batch's unacknowledged deliveries.
type Batch = Vec<Delivered>;

/// The state that the contract requires after the same steps.
#[derive(Default)]
struct Expected {
    /// The unacknowledged events in the order of sending, each with its attempt and the moment before which it is not
    /// delivered.
    rooms: [BTreeMap<u64, (u32, Option<Instant>)>; ROOMS],
    unacknowledged: Vec<Batch>,
}

impl Expected {
    /// Removes the first `count` deliveries of an unacknowledged batch.
    fn leave(&mut self, batch: usize, count: usize) -> Option<Batch> {
        let batch = batch.checked_rem(self.unacknowledged.len())?;
        let deliveries = &mut self.unacknowledged[batch];
        let left = deliveries.drain(..count.min(deliveries.len())).collect();
        self.unacknowledged.retain(|deliveries| !deliveries.is_empty());
        Some(left)
    }

    /// Removes acknowledged deliveries.
    fn forget(&mut self, deliveries: &[Delivered]) {
        for (_, room, number) in deliveries {
            self.rooms[*room].remove(number);
        }
    }

    fn take(&mut self, max: usize, now: Instant, batch: &[Taken<Numbered>]) {
        assert!((1..=max).contains(&batch.len()), "{} of at most {max}", batch.len());
        let room_of =
            |taken: &Taken<Numbered>| taken.event.payload.room().as_str()[1..].parse::<usize>().unwrap();
        let held: HashSet<usize> = self.unacknowledged.iter().flatten().map(|(_, room, _)| *room).collect();
        for (room, events) in self.rooms.iter().enumerate() {
            let of_room: Vec<_> = batch.iter().filter(|taken| room_of(taken) == room).collect();
            assert!(of_room.is_empty() || !held.contains(&room), "room {room} is in two batches");
            assert!(of_room.len() <= events.len(), "of room {room} more came than there is");
            for (taken, (number, (attempt, not_before))) in of_room.iter().zip(events) {
                assert_eq!(
                    (taken.event.payload.number, taken.attempt),
                    (*number, *attempt),
                    "of room {room}"
                );
                assert!(not_before.is_none_or(|not_before| not_before <= now), "{number} came too early");
            }
        }
        let deliveries = batch.iter().map(|taken| (taken.tag, room_of(taken), taken.event.payload.number));
        self.unacknowledged.push(deliveries.collect());
    }
}

proptest! {
    #[test]
    fn on_an_ordered_hop_no_room_is_in_two_batches_and_none_of_its_events_overtakes_another(
        steps in vec(step(), 0..120),
    ) {
        let mut inbox = Inbox::<Numbered>::new(HopKind::Ordered, u32::try_from(PARTITIONS).unwrap());
        let (mut expected, mut now, mut next) = (Expected::default(), Instant::now(), 0);
        for step in steps {
            match step {
                Step::Push { room } => {
                    inbox.push(room % PARTITIONS, next, numbered(&format!("r{room}"), next), 1, None);
                    expected.rooms[room].insert(next, (1, None));
                    next += 1;
                }
                Step::Take { max } => {
                    if let Ok(batch) = inbox.take(max, now) {
                        expected.take(max, now, &batch);
                    }
                }
                Step::Ack { batch, count } => {
                    let Some(left) = expected.leave(batch, count) else { continue };
                    let removed = inbox.remove(left.iter().map(|(tag, ..)| *tag));
                    prop_assert!(!removed.some_are_gone && removed.events.len() == left.len());
                    expected.forget(&left);
                }
                Step::Retry { batch, count, millis } => {
                    let Some(left) = expected.leave(batch, count) else { continue };
                    let after = Duration::from_millis(millis);
                    for event in inbox.remove(left.iter().map(|(tag, ..)| *tag)).events {
                        inbox.retry(event, after, now);
                    }
                    for (_, room, number) in left {
                        let event = expected.rooms[room].get_mut(&number).unwrap();
                        *event = (event.0 + 1, Some(now + after));
                    }
                }
                Step::Drop { batch, count } => {
                    let Some(left) = expected.leave(batch, count) else { continue };
                    inbox.put_back(left.iter().map(|(tag, ..)| *tag));
                }
                Step::Pass { millis } => now += Duration::from_millis(millis),
            }
        }

        // All unacknowledged events are delivered once their time has come.
        inbox.put_back(expected.unacknowledged.drain(..).flatten().map(|(tag, ..)| tag));
        while expected.rooms.iter().any(|room| !room.is_empty()) {
            match inbox.take(4, now) {
                Ok(batch) => {
                    expected.take(4, now, &batch);
                    let left = expected.leave(0, batch.len()).unwrap();
                    inbox.remove(left.iter().map(|(tag, ..)| *tag));
                    expected.forget(&left);
                }
                Err(opens_at) => {
                    let opens_at = opens_at.expect("something waits");
                    prop_assert!(opens_at > now && opens_at <= now + Duration::from_millis(50));
                    now = opens_at;
                }
            }
        }
        prop_assert_eq!((inbox.waiting(), inbox.take(1, now).unwrap_err()), (0, None));
    }
}
