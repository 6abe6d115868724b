//! The interceptors.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use naru_model::RoomId;
use tokio::sync::watch;

use super::{Call, Dice, Interceptor, locked};
use naru_engines::{Applied, EngineError, EngineResult};

/// An interceptor for these calls only: parts (`live`) or methods (`live.publish`).
#[derive(Debug)]
pub struct Only<T>(pub &'static [&'static str], pub T);

#[async_trait]
impl<T: Interceptor> Interceptor for Only<T> {
    async fn before(&self, call: &Call) -> EngineResult<()> {
        if self.0.iter().any(|name| call.is(name)) { self.1.before(call).await } else { Ok(()) }
    }

    async fn after(&self, call: &Call) -> EngineResult<()> {
        if self.0.iter().any(|name| call.is(name)) { self.1.after(call).await } else { Ok(()) }
    }
}

/// Delays every call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slow {
    /// On the way to the engine.
    pub before: Duration,
    /// On the way back.
    pub after: Duration,
}

#[async_trait]
impl Interceptor for Slow {
    async fn before(&self, _: &Call) -> EngineResult<()> {
        tokio::time::sleep(self.before).await;
        Ok(())
    }

    async fn after(&self, _: &Call) -> EngineResult<()> {
        tokio::time::sleep(self.after).await;
        Ok(())
    }
}

/// A share of the calls fails: half of them before their effect ([`Applied::No`]), half after ([`Applied::Unknown`]).
///
/// The nth call of one method has the same result under one seed, however calls of different methods interleave.
#[derive(Debug)]
pub struct Flaky {
    seed: u64,
    share: f64,
    calls: Mutex<HashMap<String, u64>>,
}

impl Flaky {
    /// Fails this share of the calls (0 none, 1 all). The seed is printed, so that a failed test shows it.
    pub fn new(seed: u64, share: f64) -> Self {
        eprintln!("faults: {share} of the calls fail, by seed {seed}");
        Self { seed, share, calls: Mutex::default() }
    }

    fn roll(&self, call: &Call, applied: Applied) -> EngineResult<()> {
        let moment = format!("{call}, applied: {applied:?}");
        let seed = moment.bytes().fold(self.seed, |seed, byte| Dice(seed ^ u64::from(byte)).next());
        let nth = {
            let mut calls = locked(&self.calls);
            let nth = calls.entry(moment).or_default();
            *nth += 1;
            *nth
        };
        if Dice(seed.wrapping_add(nth << 32)).within(self.share / 2.0) {
            return Err(EngineError::unavailable(
                "faults",
                applied,
                format!("call {nth} of {call} was to fail"),
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl Interceptor for Flaky {
    async fn before(&self, call: &Call) -> EngineResult<()> {
        self.roll(call, Applied::No)
    }

    async fn after(&self, call: &Call) -> EngineResult<()> {
        self.roll(call, Applied::Unknown)
    }
}

/// An outage on demand: while it is cut, calls fail, and those under way get an error for their answer.
#[derive(Debug)]
pub struct Outage {
    cut: watch::Sender<bool>,
}

impl Default for Outage {
    fn default() -> Self {
        Self { cut: watch::Sender::new(false) }
    }
}

impl Outage {
    /// Begins (`true`) or ends (`false`) the outage.
    pub fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    fn pass(&self, call: &Call, applied: Applied) -> EngineResult<()> {
        if *self.cut.borrow() {
            return Err(EngineError::unavailable("faults", applied, format!("{call} was cut off")));
        }
        Ok(())
    }
}

#[async_trait]
impl Interceptor for Outage {
    async fn before(&self, call: &Call) -> EngineResult<()> {
        self.pass(call, Applied::No)
    }

    async fn after(&self, call: &Call) -> EngineResult<()> {
        self.pass(call, Applied::Unknown)
    }
}

/// Counts calls, so that a test can assert "one round trip, however many messages".
#[derive(Debug, Default)]
pub struct Counted {
    calls: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl Counted {
    /// How many calls were made of a part or a part's method.
    pub fn count(&self, name: &str) -> u64 {
        let meant = |part, method| Call { part, method, rooms: Vec::new() }.is(name);
        locked(&self.calls)
            .iter()
            .filter(|((part, method), _)| meant(part, method))
            .map(|(_, count)| count)
            .sum()
    }

    /// Every method that was called, as `part.method`, and how often.
    pub fn all(&self) -> BTreeMap<String, u64> {
        locked(&self.calls)
            .iter()
            .map(|((part, method), count)| (format!("{part}.{method}"), *count))
            .collect()
    }

    /// Counts from 0 again.
    pub fn reset(&self) {
        locked(&self.calls).clear();
    }
}

#[async_trait]
impl Interceptor for Counted {
    async fn before(&self, call: &Call) -> EngineResult<()> {
        *locked(&self.calls).entry((call.part, call.method)).or_default() += 1;
        Ok(())
    }
}

/// The step of a call that was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The call was about to be made.
    Asked,
    /// The call had its effect.
    Answered,
}

/// Keeps the order of calls, so that a test can assert "the offline event was sent before the message was published".
#[derive(Debug, Default)]
pub struct Recorder {
    log: Mutex<Vec<(When, Call)>>,
}

impl Recorder {
    /// The recorded steps, in order.
    pub fn log(&self) -> Vec<(When, Call)> {
        locked(&self.log).clone()
    }

    /// Whether, for this room, the first call of `first` had its effect before any call of `then` was made, and both
    /// were made. Names are parts or methods, as in [`Call::is`].
    pub fn came_before(&self, room: &RoomId, first: &str, then: &str) -> bool {
        let log = locked(&self.log);
        let place = |when, name: &str| {
            log.iter().position(|(at, call)| *at == when && call.is(name) && call.rooms.contains(room))
        };
        match (place(When::Answered, first), place(When::Asked, then)) {
            (Some(effect), Some(asked)) => effect < asked,
            _ => false,
        }
    }
}

#[async_trait]
impl Interceptor for Recorder {
    async fn before(&self, call: &Call) -> EngineResult<()> {
        locked(&self.log).push((When::Asked, call.clone()));
        Ok(())
    }

    async fn after(&self, call: &Call) -> EngineResult<()> {
        locked(&self.log).push((When::Answered, call.clone()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: &'static str) -> Call {
        Call { part: "push.fcm", method, rooms: Vec::new() }
    }

    #[test]
    fn a_call_is_its_part_and_its_method() {
        for name in ["push.fcm", "push.fcm.send"] {
            assert!(call("send").is(name), "{name}");
        }
        for name in ["push", "push.fcm.", "push.fcm.receive", "push.fcmx", ""] {
            assert!(!call("send").is(name), "{name}");
        }
    }

    #[tokio::test]
    async fn what_came_before_is_told_per_room() {
        let room = |name: &str| RoomId::new(name).unwrap();
        let call = |part, rooms: &[&str]| Call {
            part,
            method: "send",
            rooms: rooms.iter().map(|name| room(name)).collect(),
        };
        let recorder = Recorder::default();
        let (offline, live) = (call("offline", &["a", "b"]), call("live", &["a", "c"]));
        recorder.before(&offline).await.unwrap();
        recorder.before(&call("live", &["b"])).await.unwrap();
        recorder.after(&offline).await.unwrap();
        recorder.before(&live).await.unwrap();
        recorder.after(&live).await.unwrap();
        assert!(recorder.came_before(&room("a"), "offline.send", "live"));
        assert!(!recorder.came_before(&room("b"), "offline", "live"), "asked before the effect of the other");
        assert!(!recorder.came_before(&room("c"), "offline", "live"), "one of them was never made");
        assert_eq!(recorder.log().len(), 5);
    }

    #[tokio::test]
    async fn only_what_is_named_is_tapped_and_counted() {
        let counted = std::sync::Arc::new(Counted::default());
        let only = Only(&["push.fcm.send"], counted.clone());
        for method in ["send", "receive", "send"] {
            only.before(&call(method)).await.unwrap();
        }
        assert_eq!((counted.count("push.fcm"), counted.count("push.fcm.send")), (2, 2));
        assert_eq!(counted.all(), BTreeMap::from([("push.fcm.send".to_owned(), 2)]));
        counted.reset();
        assert_eq!(counted.count("push.fcm"), 0);
    }

    #[tokio::test]
    async fn a_call_that_was_under_way_when_it_was_cut_may_have_had_its_effect() {
        let outage = Outage::default();
        outage.before(&call("send")).await.unwrap();
        outage.cut(true);
        for (failed, expected) in [
            (outage.before(&call("send")).await, Applied::No),
            (outage.after(&call("send")).await, Applied::Unknown),
        ] {
            assert!(matches!(failed, Err(EngineError::Unavailable { applied, .. }) if applied == expected));
        }
        outage.cut(false);
        outage.before(&call("send")).await.unwrap();
    }

    #[test]
    fn the_same_seed_fails_the_same_calls() {
        let fates = |seed| {
            let flaky = Flaky::new(seed, 0.4);
            (0..1_000).map(|_| flaky.roll(&call("send"), Applied::No).is_err()).collect::<Vec<_>>()
        };
        assert_eq!(fates(7), fates(7));
        assert_ne!(fates(7), fates(8));
        let failed = fates(7).into_iter().filter(|failed| *failed).count();
        assert!((150..250).contains(&failed), "a fifth fails before the effect: {failed} of 1000");
    }

    #[test]
    fn all_or_none_fail_at_the_ends() {
        let fails = |share, applied| {
            let flaky = Flaky::new(1, share);
            (0..100).any(|_| flaky.roll(&call("send"), applied).is_err())
        };
        assert!(!fails(0.0, Applied::No) && !fails(0.0, Applied::Unknown));
        assert!(fails(1.0, Applied::No) && fails(1.0, Applied::Unknown));
    }
}
