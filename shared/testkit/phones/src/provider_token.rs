//! APNs' provider tokens: a JWT by which a team authenticates.
//!
//! Source: Apple, "Establishing a token-based connection to APNs": ES256, `kid` in the header, `iss` and `iat`; older than
//! an hour is refused; no more than one new token in 20 minutes. Apple does not define when a token is new; here it is by
//! its `iat`, so that several processes of one provider may each sign the same claims.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey};
use tokio::time::Instant;

use crate::answer::ApnsReason;
use crate::jwt;
use crate::keys::{KEY_ID, Keys, TEAM_ID};
use crate::record::{Counters, count};

/// For how many seconds a token is valid.
const LONGEST: i64 = 3_600;
/// By how many seconds the signer's clock may be ahead.
const SKEW: i64 = 60;
/// How many tokens are taken before the interval between them counts, so that a provider may be restarted.
const FREE: usize = 2;

/// Checks provider tokens, and how often they change.
pub(crate) struct ProviderTokens {
    verifier: DecodingKey,
    interval: Duration,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The tokens with a good signature.
    tokens: HashSet<String>,
    /// When the taken tokens were issued, in seconds since 1970, and when the newest was first taken.
    taken: HashSet<i64>,
    newest: Option<Instant>,
}

impl ProviderTokens {
    /// A new token is taken `interval` after the one before. There is one key, so the interval is per key.
    pub(crate) fn new(keys: &Keys, interval: Duration) -> Self {
        Self { verifier: keys.apns_verifier(), interval, seen: Mutex::default() }
    }

    /// Checks the token of a request.
    pub(crate) fn check(&self, token: &str, counters: &Counters) -> Result<(), ApnsReason> {
        let signed = jwt::verify(token, Algorithm::ES256, &self.verifier)
            .map_err(|_| ApnsReason::InvalidProviderToken)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.tokens.insert(token.to_owned()) {
            count(&counters.jwts_seen);
        }
        let issued = signed.seconds("iat").ok_or(ApnsReason::InvalidProviderToken)?;
        let now = jwt::now_seconds();
        if signed.key_id.as_deref() != Some(KEY_ID)
            || signed.text("iss") != Some(TEAM_ID)
            || issued > now + SKEW
        {
            return Err(ApnsReason::InvalidProviderToken);
        }
        if now - issued > LONGEST {
            return Err(ApnsReason::ExpiredProviderToken);
        }
        if seen.taken.contains(&issued) {
            return Ok(());
        }
        let too_soon = seen.newest.is_some_and(|newest| newest.elapsed() < self.interval);
        if seen.taken.len() >= FREE && too_soon {
            return Err(ApnsReason::TooManyProviderTokenUpdates);
        }
        seen.taken.insert(issued);
        seen.newest = Some(Instant::now());
        Ok(())
    }
}
