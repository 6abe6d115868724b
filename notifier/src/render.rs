//! A message as its recipient's phone shows it.

use std::borrow::Cow;
use std::time::Duration;

use naru_engines::store::Device;
use naru_model::hops::{Lane, PushJob, PushTarget};
use naru_model::{Message, UserId};

use crate::Config;
use crate::aps::InterruptionLevel;

/// The push that notifies one recipient of a message through one lane. The same message makes the same push, so its event id
/// and its expiry are the same however often it is made. It expires `ttl` after the message was accepted.
pub(crate) fn push(
    message: &Message,
    recipient: &UserId,
    lane: Lane,
    target: Option<PushTarget>,
    ttl: Duration,
) -> PushJob {
    PushJob {
        lane,
        message_id: message.id,
        chat_room_id: message.chat_room_id.clone(),
        seq: message.seq,
        recipient_id: recipient.clone(),
        title: message.sender_name.clone(),
        body: message.content.clone(),
        hides_content: false,
        badge: None,
        room_name: None,
        target,
        expires_at: message.timestamp.after(ttl),
    }
}

/// Hidden content is not in the push at all.
pub(crate) fn hide(job: &mut PushJob) {
    (job.title, job.body, job.hides_content) = ("".into(), "".into(), true);
}

pub(crate) fn target(device: &Device) -> PushTarget {
    PushTarget { device_id: device.id.clone(), token: device.token.clone(), environment: device.environment }
}

/// How pushes look and sound, by configuration.
#[derive(Clone, Debug)]
pub(crate) struct Appearance {
    pub(crate) loc_key: String,
    pub(crate) sound: Option<String>,
    pub(crate) mutable_content: bool,
    pub(crate) interruption_level: Option<InterruptionLevel>,
    pub(crate) android_channel: Option<String>,
    group_title: String,
}

impl From<&Config> for Appearance {
    fn from(config: &Config) -> Self {
        Self {
            loc_key: config.push_loc_key.clone(),
            sound: config.push_sound.clone(),
            mutable_content: config.push_mutable_content,
            interruption_level: config.push_interruption_level,
            android_channel: config.push_android_channel.clone(),
            group_title: config.push_group_title.clone(),
        }
    }
}

impl Appearance {
    /// The title where there is one line for sender and group.
    pub(crate) fn title<'a>(&self, job: &'a PushJob) -> Cow<'a, str> {
        let Some(group) = &job.room_name else { return Cow::Borrowed(&job.title) };
        let (mut title, mut rest) = (String::new(), self.group_title.as_str());
        while let Some(brace) = rest.find('{') {
            let (before, from_brace) = rest.split_at(brace);
            title.push_str(before);
            rest = if let Some(after) = from_brace.strip_prefix("{sender}") {
                title.push_str(&job.title);
                after
            } else if let Some(after) = from_brace.strip_prefix("{group}") {
                title.push_str(group);
                after
            } else {
                title.push('{');
                &from_brace[1..]
            };
        }
        title.push_str(rest);
        Cow::Owned(title)
    }
}
