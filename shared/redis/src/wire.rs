//! What is published, as bytes. A `CHAT` is read by other systems; the rest is Naru's own.

use std::sync::Arc;

use naru_engines::live::Signal;
use naru_model::SessionId;
use naru_model::live::{Confirmation, LiveEvent, News};
use serde::{Deserialize, Serialize};

use crate::names::room_of;

/// The version of [`Letter`]. A gateway leaves letters of another version unread.
const VERSION: u8 = 1;

/// What a gateway sends to itself to hear whether it still hears.
pub(crate) const BEAT: &[u8] = br#"{"version":1,"type":"BEAT"}"#;

/// What is said to one gateway only.
#[derive(Serialize, Deserialize)]
struct Letter {
    version: u8,
    #[serde(flatten)]
    content: Content,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "UPPERCASE")]
enum Content {
    Confirmed { confirmations: Arc<[Confirmation]> },
    Evict { session: SessionId },
}

/// Why a payload was not understood. It says nothing of what is in it: that may be somebody's words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// Not JSON, or not the JSON that belongs here.
    Malformed,
    /// A letter of another version of Naru.
    Version(u8),
    /// Something else than a message of the room that the channel is for.
    Misplaced,
}

pub(crate) fn write_event(event: &LiveEvent) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(event)
}

pub(crate) fn write_confirmations(confirmations: Vec<Confirmation>) -> serde_json::Result<Vec<u8>> {
    write_letter(Content::Confirmed { confirmations: confirmations.into() })
}

pub(crate) fn write_eviction(session: &SessionId) -> serde_json::Result<Vec<u8>> {
    write_letter(Content::Evict { session: session.clone() })
}

fn write_letter(content: Content) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Letter { version: VERSION, content })
}

/// Reads what came on the channel of one gateway.
pub(crate) fn read_letter(payload: &[u8]) -> Result<Signal, Unread> {
    #[derive(Deserialize)]
    struct Head {
        version: u8,
    }
    let letter: Result<Letter, _> = serde_json::from_slice(payload);
    match letter {
        Ok(Letter { version: VERSION, content }) => Ok(match content {
            Content::Confirmed { confirmations } => Signal::Confirmed(confirmations),
            Content::Evict { session } => Signal::Evict(session),
        }),
        Ok(Letter { version, .. }) => Err(Unread::Version(version)),
        Err(_) => match serde_json::from_slice(payload) {
            Ok(Head { version }) if version != VERSION => Err(Unread::Version(version)),
            _ => Err(Unread::Malformed),
        },
    }
}

/// Reads what came on a channel for all gateways. On `chat:<room>` nothing but that room's messages counts.
pub(crate) fn read_event(channel: &str, payload: &[u8]) -> Result<Signal, Unread> {
    let event: LiveEvent = serde_json::from_slice(payload).map_err(|_| Unread::Malformed)?;
    let is_chat = matches!(event.news, News::Chat(_));
    match room_of(channel) {
        Some(room) if !is_chat || event.news.room().as_str() != room => Err(Unread::Misplaced),
        _ => Ok(Signal::Event(Arc::new(event))),
    }
}

#[cfg(test)]
mod tests {
    use naru_model::message::Outcome;
    use naru_model::{MessageId, Seq};

    use super::*;

    #[test]
    fn letters_are_pinned_and_read_back() {
        let id = MessageId::from_bytes([7; 12]);
        let confirmation = Confirmation { id, outcome: Outcome::Saved { seq: Seq(3) } };
        let confirmed = write_confirmations(vec![confirmation.clone()]).unwrap();
        assert_eq!(
            String::from_utf8(confirmed.clone()).unwrap(),
            r#"{"version":1,"type":"CONFIRMED","confirmations":[{"id":"070707070707070707070707","outcome":"saved","seq":3}]}"#
        );
        assert_eq!(read_letter(&confirmed), Ok(Signal::Confirmed([confirmation].into())));

        let session = SessionId::new("한 \"s\"").unwrap();
        let evict = write_eviction(&session).unwrap();
        assert_eq!(
            String::from_utf8(evict.clone()).unwrap(),
            r#"{"version":1,"type":"EVICT","session":"한 \"s\""}"#
        );
        assert_eq!(read_letter(&evict), Ok(Signal::Evict(session)));
    }

    #[test]
    fn what_is_not_understood_is_told_apart() {
        let letter = |text: &str| read_letter(text.as_bytes());
        assert_eq!(letter(r#"{"version":2,"type":"EVICT","session":"a"}"#), Err(Unread::Version(2)));
        assert_eq!(letter(r#"{"version":2,"type":"WAVE","hands":2}"#), Err(Unread::Version(2)));
        for text in ["", "{", "[]", r#"{"version":1,"type":"WAVE"}"#, r#"{"type":"EVICT","session":"a"}"#] {
            assert_eq!(letter(text), Err(Unread::Malformed), "{text}");
        }
        let typing = br#"{"recipients":["ben"],"type":"TYPING","chatRoomId":"a","userId":"ada"}"#;
        assert!(read_event("naru:news", typing).is_ok());
        assert_eq!(read_event("chat:a", typing), Err(Unread::Misplaced));
        assert_eq!(read_event("chat:a", b"\xff"), Err(Unread::Malformed));
    }
}
