//! Engines that misbehave within their contracts, for tests of the code that uses them.
//!
//! One mechanism: [`intercepted`] puts an [`Interceptor`] around every call of every part. An interceptor is called
//! [before](Interceptor::before) a call reaches the engine and [after](Interceptor::after) it had its effect, and may wait
//! or fail at either. Everything else here is an interceptor ([`Slow`], [`Flaky`], [`Outage`], [`Counted`], [`Recorder`]),
//! narrowed with [`Only`] and combined by intercepting again; except [`reordering`] and [`losing`], which act on the
//! events that a queue carries, and [`CutOff`], a store with a server that is behind.
//!
//! ```text
//! let counted = Arc::new(Counted::default());
//! let engines = intercepted(embedded.engines(), counted.clone());
//! let engines = intercepted(engines, Arc::new(Only(&["live.publish"], Flaky::new(seed, 0.1))));
//! ```
//!
//! An interceptor that lets every call pass has no effect: intercepted engines pass the conformance suite.

mod bus;
mod cut_off;
mod intercepted;
mod interceptors;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use naru_model::RoomId;

pub use bus::{losing, reordering};
pub use cut_off::CutOff;
pub use intercepted::{Intercepted, intercepted, intercepted_bus, intercepted_store};
pub use interceptors::{Counted, Flaky, Only, Outage, Recorder, Slow, When};

use naru_engines::EngineResult;

/// One call of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The engine's part: a field of [`Engines`](naru_engines::Engines), of its store, or a hop's name, such as `push.fcm`.
    pub part: &'static str,
    /// The method. A queue's are `send`, `receiver`, `receive`, `ack` and `retry`.
    pub method: &'static str,
    /// The rooms it is about, one per item, by which a test finds its own calls.
    pub rooms: Vec<RoomId>,
}

impl Call {
    /// Whether `name` means this call: a part (`live`), or a part's method (`live.publish`).
    pub fn is(&self, name: &str) -> bool {
        name.strip_prefix(self.part)
            .is_some_and(|rest| rest.is_empty() || rest.strip_prefix('.') == Some(self.method))
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.part, self.method)
    }
}

/// Code between a worker and its engines.
///
/// Of a subscription's `next` only `before` is called, and its failure is reported as an interruption in which signals
/// are lost. The other calls that wait (`receive`) can be cancelled in an interceptor as anywhere else.
#[async_trait]
pub trait Interceptor: Send + Sync {
    /// The call is about to be made. An error is returned in its place: the call has no effect.
    async fn before(&self, _call: &Call) -> EngineResult<()> {
        Ok(())
    }

    /// The call had its effect. An error is returned in place of the engine's answer.
    async fn after(&self, _call: &Call) -> EngineResult<()> {
        Ok(())
    }
}

#[async_trait]
impl<T: Interceptor + ?Sized> Interceptor for Arc<T> {
    async fn before(&self, call: &Call) -> EngineResult<()> {
        (**self).before(call).await
    }

    async fn after(&self, call: &Call) -> EngineResult<()> {
        (**self).after(call).await
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A seeded random source (SplitMix64, Steele et al. 2014): the same seed, the same faults.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap_or(u64::MAX)).unwrap_or(0)
    }

    /// True with this probability (0 never, 1 always).
    fn within(&mut self, share: f64) -> bool {
        // A float in 0..1 can hold the upper 53 bits.
        #[expect(clippy::as_conversions, reason = "exact: both are below 2^53")]
        let rolled = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        rolled < share
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
