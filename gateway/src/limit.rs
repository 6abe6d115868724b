//! How fast one user, or one address, may send: token buckets.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use naru_model::frame::{BadFrame, ClientFrame};
use naru_model::{RoomId, UserId};
use tokio::time::Instant;

use crate::config::Config;
use crate::refusal::Refusal;
use crate::token::Identity;

/// Full buckets are dropped when this many are kept.
const PRUNE_AT: usize = 16_384;
/// How often a room is told that one user is typing: a second, and at once.
const TYPING_TOLD: (u32, u32) = (1, 5);
/// What a WebSocket handshake costs of its user's rate of calls.
pub(crate) const CONNECT_COST: f64 = 10.0;
/// So many bytes that go out to the other members cost as much as a message, and no message costs more than so many others.
const BYTES_PER_MESSAGE: f64 = 65_536.0;
const MAX_MESSAGE_COST: f64 = 10.0;
/// So many bytes of an answer, or of a frame that is refused, cost as much as a call, or a ping …
const BYTES_PER_COST: f64 = 8192.0;
/// … and so many rooms of a `SYNC`.
const ROOMS_PER_COST: f64 = 25.0;
/// The connections that one address may open at once, in seconds of its rate.
const CONNECT_BURST: u32 = 10;

/// One token bucket for each key, for all of a user's sessions and requests together.
pub(crate) struct Limiter<K> {
    /// Tokens per second; 0: no limit.
    rate: f64,
    /// Tokens that may be taken at once.
    burst: f64,
    buckets: Mutex<Buckets<K>>,
}

struct Buckets<K> {
    of: HashMap<K, Bucket>,
    prune_at: usize,
}

struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

impl<K: Clone + Eq + Hash> Limiter<K> {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        let buckets = Buckets { of: HashMap::new(), prune_at: PRUNE_AT };
        let rate = if burst == 0 { 0 } else { per_second };
        Self { rate: rate.into(), burst: burst.into(), buckets: Mutex::new(buckets) }
    }

    /// Takes tokens from a bucket; the refusal holds the time until there are as many. More than the bucket holds are taken as
    /// all that it holds.
    pub(crate) fn take(&self, key: &K, tokens: f64) -> Result<(), Refusal> {
        let tokens = tokens.min(self.burst);
        self.change(key, |left| {
            if left < tokens {
                let retry_after = Duration::from_secs_f64((tokens - left) / self.rate);
                return (left, Err(Refusal::RateLimited { retry_after }));
            }
            (left - tokens, Ok(()))
        })
        .unwrap_or(Ok(()))
    }

    /// Takes tokens for what has been done already: those that are not there yet are owed, as many as a bucket holds at most.
    pub(crate) fn charge(&self, key: &K, tokens: f64) {
        self.change(key, |left| ((left - tokens).max(-self.burst), ()));
    }

    /// Changes how many tokens are left in a bucket; none where there is no limit.
    fn change<T>(&self, key: &K, change: impl FnOnce(f64) -> (f64, T)) -> Option<T> {
        if self.rate == 0.0 {
            return None;
        }
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.of.len() >= buckets.prune_at {
            buckets.of.retain(|_, bucket| self.filled(bucket, now) < self.burst);
            buckets.prune_at = (buckets.of.len() * 2).max(PRUNE_AT);
        }
        if !buckets.of.contains_key(key) {
            buckets.of.insert(key.clone(), Bucket { tokens: self.burst, filled_at: now });
        }
        let bucket = buckets.of.get_mut(key)?;
        let (tokens, answer) = change(self.filled(bucket, now));
        *bucket = Bucket { tokens, filled_at: now };
        Some(answer)
    }

    fn filled(&self, bucket: &Bucket, now: Instant) -> f64 {
        let since = now.saturating_duration_since(bucket.filled_at).as_secs_f64();
        (bucket.tokens + since * self.rate).min(self.burst)
    }
}

/// The limits of all but messages, which have their own.
pub(crate) struct Limits {
    frames: Limiter<UserId>,
    calls: Limiter<UserId>,
    connects: Limiter<IpAddr>,
    typing: Limiter<(UserId, RoomId)>,
}

impl Limits {
    pub(crate) fn new(config: &Config) -> Self {
        let connects = config.rate_connects_per_address;
        Self {
            frames: Limiter::new(config.rate_frames_per_second, config.rate_frames_burst),
            calls: Limiter::new(config.rate_calls_per_second, config.rate_calls_burst),
            connects: Limiter::new(connects, connects.saturating_mul(CONNECT_BURST)),
            typing: Limiter::new(TYPING_TOLD.0, TYPING_TOLD.1),
        }
    }

    /// Takes a frame of a user. An app's backend is not limited.
    pub(crate) fn frame(
        &self,
        identity: &Identity,
        frame: &Result<ClientFrame, BadFrame>,
        bytes: usize,
    ) -> Result<(), Refusal> {
        let cost = match frame {
            // Its rate is that of messages.
            Ok(ClientFrame::Chat(_)) => return Ok(()),
            Ok(ClientFrame::Sync(_)) => 4.0,
            // A client may send one for each message that it gets; many of a room are made one.
            Ok(ClientFrame::Received(_) | ClientFrame::Read(_) | ClientFrame::Typing { .. }) => 0.1,
            Ok(ClientFrame::Ping | ClientFrame::Drop(_)) => 1.0,
            Err(_) => 1.0 + bytes as f64 / BYTES_PER_COST,
        };
        self.frame_of(identity, cost)
    }

    /// Takes what costs as much as `cost` pings.
    pub(crate) fn frame_of(&self, identity: &Identity, cost: f64) -> Result<(), Refusal> {
        if identity.is_service { Ok(()) } else { self.frames.take(&identity.user, cost) }
    }

    /// Takes an HTTP call of this cost.
    pub(crate) fn call(&self, identity: &Identity, cost: f64) -> Result<(), Refusal> {
        if identity.is_service { Ok(()) } else { self.calls.take(&identity.user, cost) }
    }

    /// Charges for the bytes of a call's answer.
    pub(crate) fn answered_call(&self, identity: &Identity, bytes: u64) {
        if !identity.is_service {
            self.calls.charge(&identity.user, bytes as f64 / BYTES_PER_COST);
        }
    }

    /// Charges for a part of the answer to a `SYNC`.
    pub(crate) fn answered_sync(&self, identity: &Identity, rooms: usize, bytes: usize) {
        if !identity.is_service {
            let cost = rooms as f64 / ROOMS_PER_COST + bytes as f64 / BYTES_PER_COST;
            self.frames.charge(&identity.user, cost);
        }
    }

    /// Takes a WebSocket handshake from an address. One customer has 64 bits of an IPv6 address for itself.
    pub(crate) fn connect(&self, address: IpAddr) -> Result<(), Refusal> {
        let network = match address {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            address => address,
        };
        self.connects.take(&network, 1.0)
    }

    /// Whether the room is to be told that a user is typing: it was not told too often.
    pub(crate) fn is_typing_told(&self, user: &UserId, room: &RoomId) -> bool {
        self.typing.take(&(user.clone(), room.clone()), 1.0).is_ok()
    }
}

/// What a message costs of its sender's rate beyond one, by what goes out to its recipients.
pub(crate) fn cost_beyond_one(bytes: usize, recipients: usize) -> f64 {
    ((bytes * recipients) as f64 / BYTES_PER_MESSAGE).clamp(1.0, MAX_MESSAGE_COST) - 1.0
}

/// What a call costs of its caller's rate, by what it makes the store do.
pub(crate) fn cost_of_call(method: &Method, resource: &[&str]) -> f64 {
    match (method.as_str(), resource) {
        ("GET", ["rooms"]) | ("POST" | "DELETE", ["rooms", _, "members", ..]) => 10.0,
        ("GET", ["rooms", _, "messages"] | ["presence"]) => 5.0,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_user_has_a_burst_then_the_rate_and_touches_no_other_user() {
        let limiter = Limiter::new(10, 3);
        let (ada, ben) = (UserId::new("ada").unwrap(), UserId::new("ben").unwrap());
        for _ in 0..3 {
            limiter.take(&ada, 1.0).unwrap();
        }
        let refused = limiter.take(&ada, 1.0).unwrap_err();
        assert_eq!(refused, Refusal::RateLimited { retry_after: Duration::from_millis(100) });
        limiter.take(&ben, 1.0).unwrap();
        tokio::time::advance(Duration::from_millis(100)).await;
        limiter.take(&ada, 1.0).unwrap();
        assert!(limiter.take(&ada, 1.0).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_costs_more_than_a_bucket_holds_takes_a_full_one() {
        let limiter = Limiter::new(10, 3);
        limiter.take(&"ada", 100.0).unwrap();
        let refused = limiter.take(&"ada", 100.0).unwrap_err();
        assert_eq!(refused, Refusal::RateLimited { retry_after: Duration::from_millis(300) });
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_done_already_is_owed_up_to_a_full_bucket() {
        let limiter = Limiter::new(10, 3);
        limiter.charge(&"ada", 100.0);
        let refused = limiter.take(&"ada", 1.0).unwrap_err();
        assert_eq!(refused, Refusal::RateLimited { retry_after: Duration::from_millis(400) });
        tokio::time::advance(Duration::from_millis(400)).await;
        limiter.take(&"ada", 1.0).unwrap();
    }

    #[test]
    fn a_message_costs_what_goes_out() {
        let costs = [(100, 1), (8_192, 8), (8_192, 40), (65, 999), (8_192, 999)]
            .map(|(bytes, recipients)| 1.0 + cost_beyond_one(bytes, recipients));
        assert_eq!(costs, [1.0, 1.0, 5.0, 1.0, 10.0]);
    }

    #[tokio::test(start_paused = true)]
    async fn full_buckets_are_forgotten() {
        let limiter = Limiter::new(10, 3);
        for number in 0..3 * PRUNE_AT {
            limiter.take(&UserId::new(format!("u{number}")).unwrap(), 1.0).unwrap();
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(limiter.buckets.lock().unwrap().of.len() <= 2 * PRUNE_AT);
    }
}
