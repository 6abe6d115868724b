//! The app's main backend as a push provider: it can reach its users' phones.

use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::hmac;
use naru_model::hops::{Lane, PushJob};
use naru_model::{Event, MessageId, RoomId, Timestamp, UserId};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Url};
use serde::Serialize;

use crate::provider::Provider;
use crate::transport;
use crate::verdict::{self, Verdict};
use crate::{BuildError, Config};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    user_id: &'a UserId,
    title: &'a str,
    body: &'a str,
    data: Data<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    chat_room_id: &'a RoomId,
    message_id: MessageId,
    #[serde(skip_serializing_if = "Option::is_none")]
    chat_room_name: Option<&'a str>,
}

/// What a backend may rely on is in PROTOCOL.md, "Pushes".
pub(crate) struct Webhook {
    client: Client,
    url: Url,
    key: Option<hmac::Key>,
}

impl Webhook {
    /// The webhook that is configured, if one is.
    ///
    /// # Errors
    /// When its URL or the certificate file can't be used.
    pub(crate) fn configured(config: &Config) -> Result<Option<Self>, BuildError> {
        let Some(url) = &config.push_webhook_url else {
            return Ok(None);
        };
        // Neither the URL nor a parser's error is shown: it may hold a password.
        let url = Url::parse(url.expose()).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let key = config.push_webhook_secret.as_ref();
        /// Connections are kept for this long between pushes.
        const IDLE: Duration = Duration::from_secs(60);
        let client = transport::client(config)?
            .retry(reqwest::retry::never())
            .timeout(config.push_webhook_timeout.into())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(config.push_concurrency.get());
        Ok(Some(Self {
            client: client.build().map_err(BuildError::Client)?,
            url: url.ok_or(BuildError::WebhookUrl)?,
            key: key.map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes())),
        }))
    }
}

#[async_trait]
impl Provider for Webhook {
    fn lane(&self) -> Lane {
        Lane::Webhook
    }

    async fn push(&self, event: &Event<PushJob>) -> Verdict {
        let body = match body(&event.payload) {
            Ok(body) => body,
            Err(error) => return Verdict::Refused(error.to_string().into()),
        };
        let mut request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("x-naru-event-id", event.event_id.to_string())
            .header("traceparent", event.trace.to_string());
        // Of this try: a backend refuses an old one, which may have been recorded and sent again by another.
        let timestamp = Timestamp::now().as_millis() / 1000;
        request = request.header("x-naru-timestamp", timestamp);
        if let Some(key) = &self.key {
            let head = format!("{timestamp}.{}.", event.event_id);
            request = request
                .header("x-naru-signature", signature(key, &[&body]))
                .header("x-naru-signature-v2", signature(key, &[head.as_bytes(), &body]));
        }
        // Only the head counts: a backend may send no body.
        match request.body(body).send().await {
            Ok(response) => {
                let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
                verdict::of_webhook(response.status().as_u16(), retry_after, Timestamp::now())
            }
            Err(error) => verdict::try_later(transport::no_answer(&error).to_string()),
        }
    }
}

/// Serialised once: the signed bytes are the sent ones.
pub(crate) fn body(job: &PushJob) -> serde_json::Result<Vec<u8>> {
    let data = Data {
        chat_room_id: &job.chat_room_id,
        message_id: job.message_id,
        chat_room_name: job.room_name.as_deref(),
    };
    serde_json::to_vec(&Body { user_id: &job.recipient_id, title: &job.title, body: &job.body, data })
}

/// `sha256=<hex HMAC-SHA256(secret, the parts)>`.
fn signature(key: &hmac::Key, parts: &[&[u8]]) -> String {
    use std::fmt::Write;

    let mut signed = hmac::Context::with_key(key);
    parts.iter().for_each(|part| signed.update(part));
    let mut text = String::from("sha256=");
    for byte in signed.sign().as_ref() {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_rfc_4231s() {
        // RFC 4231, test case 2.
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"Jefe");
        assert_eq!(
            signature(&key, &[b"what do ya ", b"want for nothing?"]),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn the_body_is_what_the_contract_says() {
        let job = PushJob {
            lane: Lane::Webhook,
            message_id: MessageId::from_bytes([7; 12]),
            chat_room_id: RoomId::new("A_B").unwrap(),
            seq: naru_model::Seq(1),
            recipient_id: UserId::new("B").unwrap(),
            title: "Ada".into(),
            body: "안녕하세요 \"B\"\u{0}".into(),
            hides_content: false,
            badge: None,
            room_name: None,
            target: None,
            expires_at: Timestamp::from_millis(0),
        };
        assert_eq!(
            String::from_utf8(body(&job).unwrap()).unwrap(),
            r#"{"userId":"B","title":"Ada","body":"안녕하세요 \"B\"\u0000","data":{"chatRoomId":"A_B","messageId":"070707070707070707070707"}}"#
        );
    }
}
