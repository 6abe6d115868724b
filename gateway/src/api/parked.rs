//! Lists, shows, sends again and drops pushes that could not be sent. For the app's backend and `naru parked`; a service
//! gets the messages of all users.

use std::sync::Arc;

use http::StatusCode;
use naru_engines::store::{Device, ParkedCursor, ParkedPush, Pushes};
use naru_model::hops::{Lane, PushJob, PushTarget};
use naru_model::{DeviceId, Event, EventId, MessageId, RoomId, Seq, Timestamp, Trace, UserId};
use serde::Serialize;

use super::page::{Page, cursor};
use super::{Answer, Call, json, no_content};
use crate::refusal::Refusal;

/// How many pushes one page of the list holds: at most, and by default.
const PAGE: (usize, usize) = (200, 50);

/// A parked push as it is listed. The device's token is a secret, and is left out.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ParkedBody<'a> {
    event_id: EventId,
    lane: Lane,
    user_id: &'a UserId,
    device_id: Option<&'a DeviceId>,
    chat_room_id: &'a RoomId,
    message_id: MessageId,
    seq: Seq,
    reason: &'a str,
    attempts: u32,
    parked_at: Timestamp,
    expires_at: Timestamp,
    /// Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    /// Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
}

impl<'a> From<&'a ParkedPush> for ParkedBody<'a> {
    fn from(push: &'a ParkedPush) -> Self {
        let job = &push.job;
        Self {
            event_id: push.event_id,
            lane: job.lane,
            user_id: &job.recipient_id,
            device_id: job.target.as_ref().map(|target| &target.device_id),
            chat_room_id: &job.chat_room_id,
            message_id: job.message_id,
            seq: job.seq,
            reason: &push.reason,
            attempts: push.attempts,
            parked_at: push.parked_at,
            expires_at: job.expires_at,
            title: None,
            body: None,
        }
    }
}

pub(super) async fn list(call: &Call<'_>) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        parked: Vec<ParkedBody<'a>>,
        next_cursor: Option<String>,
    }
    let pushes = pushes(call)?;
    let Page { after, limit } = Page::asked(call, PAGE)?;
    let after = after.map(|(parked_at, event_id)| ParkedCursor { parked_at, event_id });
    // One more than asked for shows whether there are more.
    let mut parked = pushes.parked(after.as_ref(), limit + 1).await?;
    let more = parked.len() > limit;
    parked.truncate(limit);
    let next_cursor = parked.last().filter(|_| more).map(|last| cursor(last.parked_at, last.event_id));
    Ok(json(StatusCode::OK, &Body { parked: parked.iter().map(ParkedBody::from).collect(), next_cursor }))
}

pub(super) async fn show(call: &Call<'_>, event: EventId) -> Answer {
    let push = find(call, event).await?;
    let (title, body) = (Some(&*push.job.title), Some(&*push.job.body));
    Ok(json(StatusCode::OK, &ParkedBody { title, body, ..ParkedBody::from(&push) }))
}

/// Sends a push again, as if its message had just been missed.
///
/// The push is on its lane before it is off the list. If the process dies in between, it is pushed, and stays listed: sent
/// again once more, it is recognised by its id, which is the same, and not pushed twice. If its lane has parked it again
/// before it is off the list, that is another entry, which stays.
pub(super) async fn replay(call: &Call<'_>, event: EventId) -> Answer {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        event_id: EventId,
        lane: Lane,
        expires_at: Timestamp,
    }
    let push = find(call, event).await?;
    let place = ParkedCursor::at(&push);
    let job = renewed(call, push.job).await?;
    let body = Body { event_id: event, lane: job.lane, expires_at: job.expires_at };
    call.gateway.engines.bus.push(job.lane).send(vec![Event::new(job, Trace::start())]).await?;
    pushes(call)?.drop_parked_at(&place).await?;
    tracing::info!(event_id = %event, caller = %call.caller.user, "a parked push goes out again");
    Ok(json(StatusCode::ACCEPTED, &body))
}

pub(super) async fn drop(call: &Call<'_>, event: EventId) -> Answer {
    if !pushes(call)?.drop_parked(event).await? {
        return Err(Refusal::NotFound);
    }
    tracing::info!(event_id = %event, caller = %call.caller.user, "a parked push was dropped");
    Ok(no_content())
}

/// The store of parked pushes, for callers that may read them.
fn pushes<'a>(call: &Call<'a>) -> Result<&'a Arc<dyn Pushes>, Refusal> {
    call.needs_service("parked pushes need scope service")?;
    Ok(&call.gateway.engines.store.pushes)
}

async fn find(call: &Call<'_>, event: EventId) -> Result<ParkedPush, Refusal> {
    pushes(call)?.find_parked(event).await?.ok_or(Refusal::NotFound)
}

/// A parked job, as it goes out now: with a new time to live, and to its device as registered now. A phone that now has
/// another owner, or whose owner has signed out, does not get the push, and nobody that of a message which is no longer there.
async fn renewed(call: &Call<'_>, job: PushJob) -> Result<PushJob, Refusal> {
    let expires_at = Timestamp::now().after(call.gateway.config.push_ttl.into());
    let message = call.gateway.engines.store.messages.find(&[job.message_id]).await?.pop().flatten();
    if message.is_none_or(|message| message.deleted_at.is_some()) {
        return Err(Refusal::Conflict("its message was deleted, or has expired"));
    }
    let mut job = PushJob { expires_at, badge: None, room_name: None, ..job };
    if let Some(target) = &job.target {
        let owner = std::slice::from_ref(&job.recipient_id);
        let devices = call.gateway.engines.store.devices.of_users(owner).await?;
        let is_it = |device: &Device| device.id == target.device_id && device.platform.lane() == job.lane;
        let device = devices.into_iter().find(is_it);
        let device = device.ok_or(Refusal::Conflict("its device is not registered any more"))?;
        if device.hides_content && !job.hides_content {
            (job.hides_content, job.title, job.body) = (true, "".into(), "".into());
        }
        let Device { id: device_id, token, environment, .. } = device;
        job.target = Some(PushTarget { device_id, token, environment });
    }
    Ok(job)
}
