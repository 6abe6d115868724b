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
use crate::auth::{Signed, now_seconds};
use crate::keys::{KEY_ID, TEAM_ID};
use crate::provider::Provider;
use crate::record::Record;

/// For how many seconds a token is valid.
const MAX_AGE_SECONDS: i64 = 3_600;
/// By how many seconds the signer's clock may be ahead.
const MAX_SKEW_SECONDS: i64 = 60;
/// How many tokens are taken before the interval between them counts, so that a notifier may be restarted.
const FREE: usize = 2;
/// The shortest time between two new tokens after those.
const INTERVAL: Duration = Duration::from_secs(20 * 60);

/// Checks provider tokens, and how often they change.
pub(crate) struct ProviderTokens {
    verifier: DecodingKey,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// When the taken tokens were issued, in seconds since 1970.
    issued: HashSet<i64>,
    /// When the newest was first taken.
    newest: Option<Instant>,
}

impl ProviderTokens {
    pub(crate) fn new(verifier: DecodingKey) -> Self {
        Self { verifier, taken: Mutex::default() }
    }

    /// Checks the token of a request.
    pub(crate) fn check(&self, token: &str, record: &Record) -> Result<(), ApnsReason> {
        let signed = Signed::verify(token, Algorithm::ES256, &self.verifier)
            .ok_or(ApnsReason::InvalidProviderToken)?;
        record.count_jwt(Provider::Apns, token);
        let issued = signed.seconds("iat").ok_or(ApnsReason::InvalidProviderToken)?;
        let now = now_seconds();
        if signed.key_id.as_deref() != Some(KEY_ID)
            || signed.text("iss") != Some(TEAM_ID)
            || issued > now + MAX_SKEW_SECONDS
        {
            return Err(ApnsReason::InvalidProviderToken);
        }
        if now - issued > MAX_AGE_SECONDS {
            return Err(ApnsReason::ExpiredProviderToken);
        }
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.issued.contains(&issued) {
            return Ok(());
        }
        let too_soon = taken.newest.is_some_and(|newest| newest.elapsed() < INTERVAL);
        if taken.issued.len() >= FREE && too_soon {
            return Err(ApnsReason::TooManyProviderTokenUpdates);
        }
        taken.issued.insert(issued);
        taken.newest = Some(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use rcgen::KeyPair;
    use serde_json::json;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tokens_that_change_too_often_are_refused_until_the_interval_is_over() {
        let key = KeyPair::generate().unwrap();
        let tokens = ProviderTokens::new(DecodingKey::from_ec_der(key.public_key_raw()));
        let record = Record::default();
        let issued = now_seconds();
        let check = |age: i64| {
            let header = Header { kid: Some(KEY_ID.to_owned()), ..Header::new(Algorithm::ES256) };
            let claims = json!({"iss": TEAM_ID, "iat": issued - age});
            let signer = EncodingKey::from_ec_der(&key.serialize_der());
            tokens.check(&encode(&header, &claims, &signer).unwrap(), &record)
        };
        assert_eq!((check(30), check(20)), (Ok(()), Ok(())));
        assert_eq!(check(10), Err(ApnsReason::TooManyProviderTokenUpdates));
        assert_eq!(check(30), Ok(()), "it is not new");
        tokio::time::advance(INTERVAL).await;
        assert_eq!(check(10), Ok(()));
        assert_eq!(check(0), Err(ApnsReason::TooManyProviderTokenUpdates));
        // The same claims signed again are another token, and not a newer one.
        assert_eq!(record.counts(Provider::Apns).jwts_seen, 6);
    }
}
