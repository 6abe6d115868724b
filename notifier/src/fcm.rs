//! Firebase Cloud Messaging, HTTP v1: <https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages/send>.
//!
//! A notification's tag is its message's id: a push that comes twice replaces itself, and two messages stay two. There is no
//! `collapse_key`: Google throttles collapsible messages (a burst of 20, then one in three minutes) and keeps four at most.

use async_trait::async_trait;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use naru_model::hops::{Lane, PushJob, PushTarget};
use naru_model::{Event, MessageId, RoomId, Timestamp};
use reqwest::Url;
use serde::Serialize;

use crate::apns::expiration;
use crate::aps::{Alert, Aps};
use crate::fit::fit;
use crate::google::ServiceAccount;
use crate::provider::Provider;
use crate::render::Appearance;
use crate::transport::{Transport, base_url, below};
use crate::verdict::{self, Scope, Verdict};
use crate::{BuildError, Config};

const GOOGLE: &str = "https://fcm.googleapis.com";
/// The longest message that FCM takes, in bytes, token and envelope included: so its own count, which leaves them out, is
/// kept in any case (<https://firebase.google.com/docs/cloud-messaging/customize-messages/set-message-type>).
const LONGEST: usize = 4096;
/// A name is cut before it leaves too little space for the content.
const LONGEST_NAME: usize = 512;
/// FCM keeps a message for four weeks at most.
const LONGEST_TTL_SECONDS: u64 = 28 * 24 * 3600;

/// FCM, for one Firebase project.
pub(crate) struct Fcm {
    transport: Transport,
    account: ServiceAccount,
    url: Url,
    appearance: Appearance,
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
        let appearance = Appearance::from(config);
        let transport =
            if url.scheme() == "http" { Transport::plain(config)? } else { Transport::new(config)? };
        Ok(Some(Self { transport, account, url, appearance }))
    }
}

#[async_trait]
impl Provider for Fcm {
    fn lane(&self) -> Lane {
        Lane::Fcm
    }

    /// On iPhones.
    fn shows_badge(&self) -> bool {
        true
    }

    async fn push(&self, event: &Event<PushJob>) -> Verdict {
        let now = Timestamp::now();
        let body = match event
            .payload
            .target
            .as_ref()
            .map(|target| message(&event.payload, target, &self.appearance, now))
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

/// <https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages#Message>. Each phone gets the part of its kind:
/// which kind it is of, its token does not tell.
#[derive(Serialize)]
struct Message<'a> {
    token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    notification: Option<Notification<'a>>,
    data: Data<'a>,
    android: Android<'a>,
    apns: Apns<'a>,
}

#[derive(Serialize)]
struct Notification<'a> {
    title: &'a str,
    body: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    chat_room_id: &'a RoomId,
    message_id: &'a MessageId,
    #[serde(skip_serializing_if = "Option::is_none")]
    chat_room_name: Option<&'a str>,
}

#[derive(Serialize)]
struct Android<'a> {
    priority: &'a str,
    ttl: String,
    notification: AndroidNotification<'a>,
}

#[derive(Serialize)]
struct AndroidNotification<'a> {
    tag: &'a MessageId,
    /// FCM takes that of the app's manifest where the app has not made this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    channel_id: Option<&'a str>,
    /// From Android 8 on the channel decides.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default_sound: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_loc_key: Option<&'a str>,
}

#[derive(Serialize)]
struct Apns<'a> {
    headers: ApnsHeaders<'a>,
    payload: ApnsPayload<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ApnsHeaders<'a> {
    apns_collapse_id: &'a MessageId,
    apns_expiration: String,
    apns_priority: &'a str,
}

#[derive(Serialize)]
struct ApnsPayload<'a> {
    aps: Aps<'a>,
}

#[derive(Serialize)]
struct Send<'a> {
    message: Message<'a>,
}

/// The request's body, [`LONGEST`] bytes at most: longer content is cut.
pub(crate) fn message(
    job: &PushJob,
    target: &PushTarget,
    appearance: &Appearance,
    now: Timestamp,
) -> Result<Bytes, Verdict> {
    let whole = body(job, target, appearance, now, &job.body)?;
    if whole.len() <= LONGEST || job.body.is_empty() {
        return Ok(whole);
    }
    let rest = body(job, target, appearance, now, "")?.len();
    let Some(left) = LONGEST.checked_sub(rest) else { return Err(Verdict::TooBig) };
    body(job, target, appearance, now, &fit(&job.body, left))
}

fn body(
    job: &PushJob,
    target: &PushTarget,
    appearance: &Appearance,
    now: Timestamp,
    text: &str,
) -> Result<Bytes, Verdict> {
    let title = appearance.title(job);
    let title = fit(&title, LONGEST_NAME);
    let hidden = job.hides_content.then_some(appearance.loc_key.as_str());
    let group = job.room_name.as_deref().filter(|_| hidden.is_none()).map(|name| fit(name, LONGEST_NAME));
    let message = Message {
        token: &target.token,
        notification: hidden.is_none().then_some(Notification { title: &title, body: text }),
        data: Data {
            chat_room_id: &job.chat_room_id,
            message_id: &job.message_id,
            chat_room_name: group.as_deref(),
        },
        android: Android {
            priority: "HIGH",
            ttl: format!("{}s", job.expires_at.since(now).as_secs().min(LONGEST_TTL_SECONDS)),
            notification: AndroidNotification {
                tag: &job.message_id,
                channel_id: appearance.android_channel.as_deref(),
                default_sound: appearance.sound.is_some(),
                body_loc_key: hidden,
            },
        },
        apns: Apns {
            headers: ApnsHeaders {
                apns_collapse_id: &job.message_id,
                apns_expiration: expiration(job).to_string(),
                apns_priority: "10",
            },
            payload: ApnsPayload {
                aps: Aps::new(job, appearance, hidden.map(|loc_key| Alert::Hidden { loc_key })),
            },
        },
    };
    let json = serde_json::to_vec(&Send { message });
    json.map(Bytes::from).map_err(|_| Verdict::Refused("a push by FCM that can't be written".into()))
}
