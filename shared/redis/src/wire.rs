//! Published payloads, as JSON. Other systems read `CHAT`; the rest is Naru's own.

use std::borrow::Cow;
use std::sync::Arc;

use naru_engines::live::Signal;
use naru_model::live::{Confirmation, LiveEvent, News};
use naru_model::{RoomId, Seq, SessionId, UserId};
use serde::{Deserialize, Serialize};

use crate::names::room_of;

/// The version of [`GatewayMessage`]. A gateway skips those of another version.
const VERSION: u8 = 1;

/// A gateway's payload to itself, to check that its subscription works.
pub(crate) const HEARTBEAT: &[u8] = br#"{"version":1,"type":"HEARTBEAT"}"#;

/// A message to one gateway, or to every one.
#[derive(Serialize, Deserialize)]
pub(crate) struct GatewayMessage {
    version: u8,
    #[serde(flatten)]
    content: Content,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
enum Content {
    Confirmed { confirmations: Arc<[Confirmation]> },
    Evict { session: SessionId },
    UserChanged { user: UserId },
}

impl GatewayMessage {
    pub(crate) fn confirmations(confirmations: Vec<Confirmation>) -> Self {
        Self { version: VERSION, content: Content::Confirmed { confirmations: confirmations.into() } }
    }

    pub(crate) fn eviction(session: &SessionId) -> Self {
        Self { version: VERSION, content: Content::Evict { session: session.clone() } }
    }

    pub(crate) fn user_changed(user: &UserId) -> Self {
        Self { version: VERSION, content: Content::UserChanged { user: user.clone() } }
    }
}

/// Why a payload can't be read, without any of its content, which may be a message's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// Not JSON, or not of the expected shape.
    Malformed,
    /// A message to a gateway from another version of Naru.
    Version(u8),
    /// Not a message of the room that the channel is for.
    Misplaced,
}

/// Reads a payload from one gateway's channel, or that of every gateway.
pub(crate) fn read_gateway_message(payload: &[u8]) -> Result<Signal, Unreadable> {
    #[derive(Deserialize)]
    struct Head {
        version: u8,
    }
    let message: Result<GatewayMessage, _> = serde_json::from_slice(payload);
    match message {
        Ok(GatewayMessage { version: VERSION, content }) => Ok(match content {
            Content::Confirmed { confirmations } => Signal::Confirmed(confirmations),
            Content::Evict { session } => Signal::Evict(session),
            Content::UserChanged { user } => Signal::UserChanged(user),
        }),
        Ok(GatewayMessage { version, .. }) => Err(Unreadable::Version(version)),
        Err(_) => match serde_json::from_slice(payload) {
            Ok(Head { version }) if version != VERSION => Err(Unreadable::Version(version)),
            _ => Err(Unreadable::Malformed),
        },
    }
}

/// The fields that are read of an event that concerns no session here, borrowed from the payload. The rest is skipped
/// without being unescaped.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EventHead<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    chat_room_id: Cow<'a, str>,
    seq: Option<Seq>,
}

/// Reads a payload from a channel for all gateways: the whole event when one of its recipients is here, else only the
/// place of a message and nothing of other news. On `chat:<room>` only that room's messages are accepted.
pub(crate) fn read_event(
    channel: &str,
    payload: &[u8],
    has_session: &dyn Fn(&str) -> bool,
) -> Result<Option<Signal>, Unreadable> {
    let check_place = |is_chat: bool, room: &str| match room_of(channel) {
        Some(own) if !is_chat || own != room => Err(Unreadable::Misplaced),
        _ => Ok(()),
    };
    if may_concern(payload, has_session) {
        let event: LiveEvent = serde_json::from_slice(payload).map_err(|_| Unreadable::Malformed)?;
        check_place(matches!(event.news, News::Chat(_)), event.news.room().as_str())?;
        return Ok(Some(Signal::Event(Arc::new(event))));
    }
    let head: EventHead<'_> = serde_json::from_slice(payload).map_err(|_| Unreadable::Malformed)?;
    let is_chat = head.kind == "CHAT";
    check_place(is_chat, &head.chat_room_id)?;
    if !is_chat {
        return Ok(None);
    }
    let room = RoomId::new(head.chat_room_id).map_err(|_| Unreadable::Malformed)?;
    let seq = head.seq.ok_or(Unreadable::Malformed)?;
    Ok(Some(Signal::SeqOnly { room, seq }))
}

/// Whether a recipient is here, or may be. Naru writes the recipients first, and a user id holds nothing that JSON
/// escapes, no quote and no bracket: so no JSON needs to be parsed. A payload of another shape may concern any session.
fn may_concern(payload: &[u8], has_session: &dyn Fn(&str) -> bool) -> bool {
    let recipients =
        payload.strip_prefix(br#"{"recipients":["#).and_then(|rest| rest.split(|byte| *byte == b']').next());
    recipients.is_none_or(|recipients| {
        // Every second piece between quotes is an id.
        let ids = recipients.split(|byte| *byte == b'"').skip(1).step_by(2);
        ids.filter_map(|id| str::from_utf8(id).ok()).any(has_session)
    })
}

#[cfg(test)]
mod tests {
    use naru_model::message::Outcome;
    use naru_model::{ClientMessageId, Message, MessageId, Timestamp};

    use super::*;

    fn chat() -> LiveEvent {
        LiveEvent {
            recipients: ["ben", "eve-._~!$&'()*+,;=:@|"].map(|user| UserId::new(user).unwrap()).into(),
            origin: Some(SessionId::new("한 \"s\"").unwrap()),
            news: News::Chat(Message {
                id: MessageId::from_bytes([1; 12]),
                chat_room_id: RoomId::new("\"a\" \\ 방").unwrap(),
                seq: Seq(7),
                sender_id: UserId::new("ada").unwrap(),
                sender_name: "Ada".into(),
                content: "\"recipients\":[\"nobody\"] 👋\n".into(),
                timestamp: Timestamp::from_millis(1_795_339_800_042),
                client_message_id: ClientMessageId::new("c-1").unwrap(),
                deleted_at: None,
            }),
        }
    }

    fn read(channel: &str, payload: &str, here: &str) -> Result<Option<Signal>, Unreadable> {
        read_event(channel, payload.as_bytes(), &|user| user == here)
    }

    #[test]
    fn messages_to_a_gateway_are_pinned_and_read_back() {
        let id = MessageId::from_bytes([7; 12]);
        let confirmation = Confirmation { id, outcome: Outcome::Saved { seq: Seq(3) } };
        let confirmed =
            serde_json::to_string(&GatewayMessage::confirmations(vec![confirmation.clone()])).unwrap();
        assert_eq!(
            confirmed,
            r#"{"version":1,"type":"CONFIRMED","confirmations":[{"id":"070707070707070707070707","outcome":"saved","seq":3}]}"#
        );
        assert_eq!(read_gateway_message(confirmed.as_bytes()), Ok(Signal::Confirmed([confirmation].into())));

        let session = SessionId::new("한 \"s\"").unwrap();
        let evict = serde_json::to_string(&GatewayMessage::eviction(&session)).unwrap();
        assert_eq!(evict, r#"{"version":1,"type":"EVICT","session":"한 \"s\""}"#);
        assert_eq!(read_gateway_message(evict.as_bytes()), Ok(Signal::Evict(session)));

        let user = UserId::new("auth0|5f7c").unwrap();
        let changed = serde_json::to_string(&GatewayMessage::user_changed(&user)).unwrap();
        assert_eq!(changed, r#"{"version":1,"type":"USER_CHANGED","user":"auth0|5f7c"}"#);
        assert_eq!(read_gateway_message(changed.as_bytes()), Ok(Signal::UserChanged(user)));
    }

    #[test]
    fn an_event_is_read_whole_when_a_recipient_is_here_and_else_only_its_place() {
        let event = chat();
        let payload = serde_json::to_string(&event).unwrap();
        let room = event.news.room().clone();
        let channel = format!("chat:{room}");
        let seq_only = Ok(Some(Signal::SeqOnly { room, seq: Seq(7) }));
        let whole = Ok(Some(Signal::Event(event.into())));
        for here in ["ben", "eve-._~!$&'()*+,;=:@|"] {
            assert_eq!(read(&channel, &payload, here), whole, "{here}");
        }
        for here in ["ada", "nobody", "be", ""] {
            assert_eq!(read(&channel, &payload, here), seq_only, "{here}");
        }

        let typing = r#"{"recipients":["ben"],"type":"TYPING","chatRoomId":"a","userId":"ada"}"#;
        let whole = Ok(Some(Signal::Event(serde_json::from_str::<LiveEvent>(typing).unwrap().into())));
        assert_eq!(read("naru:news", typing, "ben"), whole);
        assert_eq!(read("naru:news", typing, "ada"), Ok(None));
    }

    #[test]
    fn of_an_event_for_others_the_content_is_skipped() {
        let payload = r#"{"recipients":["ben"],"type":"CHAT","content":{"nested":["\ud800"]},"seq":3,"chatRoomId":"a"}"#;
        assert_eq!(read("chat:a", payload, "ben"), Err(Unreadable::Malformed));
        let room = RoomId::new("a").unwrap();
        assert_eq!(read("chat:a", payload, "eve"), Ok(Some(Signal::SeqOnly { room, seq: Seq(3) })));
    }

    #[test]
    fn an_event_whose_recipients_do_not_come_first_is_read_whole() {
        let typing = r#"{"type":"TYPING","chatRoomId":"a","userId":"ada","recipients":["ben"]}"#;
        let whole = Ok(Some(Signal::Event(serde_json::from_str::<LiveEvent>(typing).unwrap().into())));
        for here in ["ben", "nobody"] {
            assert_eq!(read("naru:news", typing, here), whole);
        }
    }

    #[test]
    fn what_is_not_understood_is_told_apart() {
        let message = |text: &str| read_gateway_message(text.as_bytes());
        assert_eq!(message(r#"{"version":2,"type":"EVICT","session":"a"}"#), Err(Unreadable::Version(2)));
        assert_eq!(message(r#"{"version":2,"type":"WAVE","hands":2}"#), Err(Unreadable::Version(2)));
        for text in ["", "{", "[]", r#"{"version":1,"type":"WAVE"}"#, r#"{"type":"EVICT","session":"a"}"#] {
            assert_eq!(message(text), Err(Unreadable::Malformed), "{text}");
        }
        let typing = r#"{"recipients":["ben"],"type":"TYPING","chatRoomId":"a","userId":"ada"}"#;
        let chat = serde_json::to_string(&chat()).unwrap();
        for here in ["ben", "nobody"] {
            assert_eq!(read("chat:a", typing, here), Err(Unreadable::Misplaced));
            assert_eq!(read("chat:a", &chat, here), Err(Unreadable::Misplaced));
            assert_eq!(read("chat:a", &chat[1..], here), Err(Unreadable::Malformed));
            assert_eq!(read_event("chat:a", b"\xff", &|user| user == here), Err(Unreadable::Malformed));
            let no_place = r#"{"recipients":["ben"],"type":"CHAT","chatRoomId":"a"}"#;
            assert_eq!(read("chat:a", no_place, here), Err(Unreadable::Malformed));
        }
    }
}
