//! Apple's part of a payload, sent by APNs itself or through FCM:
//! <https://developer.apple.com/documentation/usernotifications/generating-a-remote-notification>.

use naru_model::RoomId;
use naru_model::hops::PushJob;
use serde::{Deserialize, Serialize};

use crate::render::Appearance;

/// The dictionary `aps`.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Aps<'a> {
    /// None: FCM makes it of its own `notification`.
    #[serde(skip_serializing_if = "Option::is_none")]
    alert: Option<Alert<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    badge: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interruption_level: Option<InterruptionLevel>,
    /// 1: the app's notification service extension may change the notification before it is shown.
    mutable_content: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    sound: Option<&'a str>,
    /// Groups a room's notifications.
    thread_id: &'a RoomId,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Alert<'a> {
    Shown {
        title: &'a str,
        /// The group's name.
        #[serde(skip_serializing_if = "Option::is_none")]
        subtitle: Option<&'a str>,
        body: &'a str,
    },
    /// The key of a text in the app's own strings.
    Hidden {
        #[serde(rename = "loc-key")]
        loc_key: &'a str,
    },
}

/// How far a notification interrupts its reader. Apple's `critical` needs another form of `sound`, and is not for chats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterruptionLevel {
    /// In the list only: no sound, and the screen stays dark.
    Passive,
    /// Apple's default.
    Active,
    /// It breaks through Focus and the summary; the app needs Apple's entitlement for it.
    TimeSensitive,
}

impl<'a> Aps<'a> {
    pub(crate) fn new(job: &'a PushJob, appearance: &'a Appearance, alert: Option<Alert<'a>>) -> Self {
        Self {
            alert,
            // No user needs a larger one, and the phone's number is 32 bits wide.
            badge: job.badge.map(|badge| u32::try_from(badge).unwrap_or(u32::MAX)),
            interruption_level: appearance.interruption_level,
            mutable_content: appearance.mutable_content.into(),
            sound: appearance.sound.as_deref(),
            thread_id: &job.chat_room_id,
        }
    }
}
