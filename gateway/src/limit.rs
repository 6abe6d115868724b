//! How fast one user may send: one token bucket per user, for all of the user's sessions and requests together.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use naru_model::UserId;
use tokio::time::Instant;

use crate::refusal::Refusal;

/// Full buckets are dropped when this many are kept.
const PRUNE_AT: usize = 16_384;

pub(crate) struct Limiter {
    /// Messages per second; 0: no limit.
    rate: f64,
    /// Messages that may come at once.
    burst: f64,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    of: HashMap<UserId, Bucket>,
    prune_at: usize,
}

struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

impl Limiter {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        let buckets = Buckets { of: HashMap::new(), prune_at: PRUNE_AT };
        let rate = if burst == 0 { 0 } else { per_second };
        Self { rate: rate.into(), burst: burst.into(), buckets: Mutex::new(buckets) }
    }

    /// Takes one message from a user's bucket; the refusal holds the time until the next one.
    pub(crate) fn take(&self, user: &UserId) -> Result<(), Refusal> {
        if self.rate == 0.0 {
            return Ok(());
        }
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.of.len() >= buckets.prune_at {
            buckets.of.retain(|_, bucket| self.filled(bucket, now) < self.burst);
            buckets.prune_at = (buckets.of.len() * 2).max(PRUNE_AT);
        }
        if !buckets.of.contains_key(user) {
            buckets.of.insert(user.clone(), Bucket { tokens: self.burst, filled_at: now });
        }
        let Some(bucket) = buckets.of.get_mut(user) else {
            return Ok(());
        };
        *bucket = Bucket { tokens: self.filled(bucket, now), filled_at: now };
        if bucket.tokens < 1.0 {
            let retry_after = Duration::from_secs_f64((1.0 - bucket.tokens) / self.rate);
            return Err(Refusal::RateLimited { retry_after });
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    fn filled(&self, bucket: &Bucket, now: Instant) -> f64 {
        let since = now.saturating_duration_since(bucket.filled_at).as_secs_f64();
        (bucket.tokens + since * self.rate).min(self.burst)
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
            limiter.take(&ada).unwrap();
        }
        let refused = limiter.take(&ada).unwrap_err();
        assert_eq!(refused, Refusal::RateLimited { retry_after: Duration::from_millis(100) });
        limiter.take(&ben).unwrap();
        tokio::time::advance(Duration::from_millis(100)).await;
        limiter.take(&ada).unwrap();
        assert!(limiter.take(&ada).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn full_buckets_are_forgotten() {
        let limiter = Limiter::new(10, 3);
        for number in 0..3 * PRUNE_AT {
            limiter.take(&UserId::new(format!("u{number}")).unwrap()).unwrap();
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(limiter.buckets.lock().unwrap().of.len() <= 2 * PRUNE_AT);
    }
}
