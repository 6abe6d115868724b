//! Firebase Cloud Messaging, HTTP v1: <https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages/send>.
//!
//! A notification's tag is its message's id: a push that comes twice replaces itself, and two messages stay two. There is no
//! `collapse_key`: Google throttles collapsible messages (a burst of 20, then one in three minutes) and keeps four at most.

use async_trait::async_trait;
use bytes::Bytes;
use fcm::{
    AndroidConfig, AndroidMessagePriority, AndroidNotification, FirebaseMap, IntoFirebaseMap, MessageBody,
    Notification, Receiver,
};
use http::header::CONTENT_TYPE;
use naru_model::hops::{Lane, PushJob, PushTarget};
use naru_model::{Event, Timestamp};
use reqwest::Url;
use serde::Serialize;
use serde_json::{Value, json};

use crate::fit::fit;
use crate::google::ServiceAccount;
use crate::provider::Provider;
use crate::transport::{Transport, base_url, below};
use crate::verdict::{self, Scope, Verdict};
use crate::{BuildError, Config};

const GOOGLE: &str = "https://fcm.googleapis.com";
/// The longest message that FCM takes, in bytes, token and envelope included: so its own count, which leaves them out, is
/// kept in any case (<https://firebase.google.com/docs/cloud-messaging/customize-messages/set-message-type>).
const LONGEST: usize = 4096;
/// A name is cut before it leaves too little room for the content.
const LONGEST_TITLE: usize = 512;
/// FCM keeps a message for four weeks at most.
const LONGEST_TTL_SECONDS: u64 = 28 * 24 * 3600;

/// FCM, for one Firebase project.
pub(crate) struct Fcm {
    transport: Transport,
    account: ServiceAccount,
    url: Url,
    loc_key: String,
}

impl Fcm {
    /// FCM, if it is configured.
    ///
    /// # Errors
    /// When the service account's file or another one that it needs can't be used.
    pub(crate) fn configured(config: &Config) -> Result<Option<Self>, BuildError> {
        let Some(file) = &config.fcm_service_account_file else { return Ok(None) };
        let account = ServiceAccount::open(file, config)?;
        let base = base_url("fcm_base_url", config.fcm_base_url.as_deref(), GOOGLE)?;
        let url = below(&base, &["v1", "projects", &account.project_id, "messages:send"]);
        let loc_key = config.push_loc_key.clone();
        let transport =
            if url.scheme() == "http" { Transport::plain(config)? } else { Transport::new(config)? };
        Ok(Some(Self { transport, account, url, loc_key }))
    }
}

#[async_trait]
impl Provider for Fcm {
    fn lane(&self) -> Lane {
        Lane::Fcm
    }

    async fn push(&self, event: &Event<PushJob>) -> Verdict {
        let now = Timestamp::now();
        let body = match event
            .payload
            .target
            .as_ref()
            .map(|target| message(&event.payload, target, &self.loc_key, now))
        {
            Some(Ok(body)) => body,
            Some(Err(verdict)) => return verdict,
            None => return Verdict::Refused("a push by FCM without a device".into()),
        };
        let token = match self.account.token().await {
            Ok(token) => token,
            Err(verdict) => return verdict,
        };
        let called_at = Timestamp::now();
        let request = |client: &reqwest::Client| {
            client
                .post(self.url.clone())
                .bearer_auth(&token.text)
                .header(CONTENT_TYPE, "application/json")
                .header("traceparent", event.trace.to_string())
                .body(body.clone())
        };
        match self.transport.call(None, request).await {
            Ok(answer) => {
                let verdict = verdict::fcm::of_fcm(&answer, called_at, Timestamp::now());
                let is_about_us = matches!(verdict, Verdict::OurConfiguration { scope: Scope::Provider, .. });
                if answer.status == 401 && is_about_us {
                    // The next try has another access token.
                    self.account.refused(&token).await;
                }
                verdict
            }
            Err(no_answer) => verdict::try_later(format!("FCM: {no_answer}")),
        }
    }
}

struct Data<'a>(&'a PushJob);

impl IntoFirebaseMap for Data<'_> {
    fn as_map(&self) -> FirebaseMap {
        let mut map = FirebaseMap::new();
        map.insert("chatRoomId", &self.0.chat_room_id);
        map.insert("messageId", &self.0.message_id);
        map
    }
}

#[derive(Serialize)]
struct Send<'a, T> {
    message: &'a T,
}

/// The request's body, [`LONGEST`] bytes at most: longer content is cut.
fn message(job: &PushJob, target: &PushTarget, loc_key: &str, now: Timestamp) -> Result<Bytes, Verdict> {
    let title = fit(&job.title, LONGEST_TITLE);
    let whole = body(job, target, loc_key, now, &title, &job.body)?;
    if whole.len() <= LONGEST || job.body.is_empty() {
        return Ok(whole);
    }
    let rest = body(job, target, loc_key, now, &title, "")?.len();
    let Some(room) = LONGEST.checked_sub(rest) else { return Err(Verdict::TooBig) };
    body(job, target, loc_key, now, &title, &fit(&job.body, room))
}

fn body(
    job: &PushJob,
    target: &PushTarget,
    loc_key: &str,
    now: Timestamp,
    title: &str,
    text: &str,
) -> Result<Bytes, Verdict> {
    let left = usize::try_from(job.expires_at.since(now).as_secs().min(LONGEST_TTL_SECONDS)).unwrap_or(0);
    let notification = AndroidNotification::new().tag(job.message_id.to_string());
    let notification = if job.hides_content { notification.body_loc_key(loc_key) } else { notification };
    let android =
        AndroidConfig::new().priority(AndroidMessagePriority::High).ttl(left).notification(notification);
    let message = MessageBody::new(Receiver::token(&*target.token)).data(Data(job)).map_err(unwritable)?;
    let message = message.android(android);
    let json = if job.hides_content {
        // Apple apps behind FCM have the key in their own strings. The crate has no type for a nested payload.
        let mut message = serde_json::to_value(message).map_err(unwritable)?;
        message["apns"] = json!({ "payload": { "aps": { "alert": { "loc-key": loc_key } } } });
        serde_json::to_vec(&Send::<Value> { message: &message })
    } else {
        let message = message.notification(Notification::new().title(title).body(text));
        serde_json::to_vec(&Send { message: &message })
    };
    Ok(json.map_err(unwritable)?.into())
}

fn unwritable(_: impl std::error::Error) -> Verdict {
    Verdict::Refused("a push by FCM that can't be written".into())
}
