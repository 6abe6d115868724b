//! Everything the outside sees, pinned: frames, what lies in queues, what the live layer carries. A change here is
//! a change of the contract, which only ever grows.

use insta::assert_json_snapshot;
use naru_model::frame::{Ack, ServerFrame, SyncedRoom};
use naru_model::hops::{Accepted, Lane, Offline, PushEnvironment, PushJob, PushTarget, Saved};
use naru_model::live::{Confirmation, LiveEvent, News, Position};
use naru_model::message::{Outcome, Rejection};
use naru_model::{
    ClientMessageId, DeviceId, Event, GatewayId, MemberVersion, Message, MessageId, Origin, RoomId, Seq,
    SessionId, StoreEpoch, Timestamp, Trace, UserId,
};

fn trace() -> Trace {
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap()
}

fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

fn origin() -> Origin {
    Origin {
        gateway: GatewayId::new("gateway-1").unwrap(),
        session: Some(SessionId::new("session-1").unwrap()),
    }
}

fn accepted() -> Accepted {
    Accepted {
        id: "65f0c0ffee65f0c0ffee65f0".parse().unwrap(),
        chat_room_id: RoomId::new("A_B").unwrap(),
        sender_id: user("A"),
        sender_name: "Alice".into(),
        content: "안녕하세요".into(),
        timestamp: Timestamp::from_millis(1_795_339_800_042),
        client_message_id: ClientMessageId::new("c-1").unwrap(),
        after: Some(MessageId::from_bytes([1; 12])),
        origin: Some(origin()),
        trace: trace(),
    }
}

fn message() -> Message {
    accepted().at(Seq(7))
}

fn push() -> PushJob {
    PushJob {
        lane: Lane::Apns,
        message_id: message().id,
        chat_room_id: message().chat_room_id,
        seq: Seq(7),
        recipient_id: user("B"),
        title: "Alice".into(),
        body: "안녕하세요".into(),
        hides_content: false,
        badge: None,
        room_name: None,
        target: Some(PushTarget {
            device_id: DeviceId::new("phone").unwrap(),
            token: "token".into(),
            environment: PushEnvironment::Sandbox,
        }),
        expires_at: Timestamp::from_millis(1_795_426_200_042),
    }
}

#[test]
fn events_in_the_queues() {
    let saved = Saved { message: message(), member_version: MemberVersion::FIRST, origin: Some(origin()) };
    let offline = Offline { message: message(), recipients: vec![user("B")] };
    let hidden = PushJob { title: "".into(), body: "".into(), hides_content: true, badge: Some(3), ..push() };
    assert_json_snapshot!("accepted", Event::new(accepted(), trace()));
    assert_json_snapshot!("saved", Event::new(saved, trace()));
    assert_json_snapshot!("offline", Event::new(offline, trace()));
    assert_json_snapshot!("push", Event::new(push(), trace()));
    assert_json_snapshot!("push_hidden", Event::new(hidden, trace()));
    let group = PushJob { room_name: Some("Project X".into()), ..push() };
    assert_json_snapshot!("push_group", Event::new(group, trace()));
}

#[test]
fn what_the_live_layer_carries() {
    let to_both =
        |news| LiveEvent { recipients: [user("A"), user("B")].into(), origin: origin().session, news };
    let position = Position {
        chat_room_id: message().chat_room_id,
        user_id: user("B"),
        seq: Seq(7),
        timestamp: message().timestamp,
    };
    assert_json_snapshot!("live_chat", to_both(News::Chat(message())));
    assert_json_snapshot!("live_read", to_both(News::Read(position)));
    let mut deleted = message();
    deleted.delete(Timestamp::from_millis(1_795_339_900_000));
    assert_json_snapshot!("live_tombstone", to_both(News::Chat(deleted)));
    let saved = Confirmation { id: message().id, outcome: Outcome::Saved { seq: Seq(7) } };
    let rejected =
        Confirmation { id: message().id, outcome: Outcome::Rejected { reason: Rejection::NotAMember } };
    assert_json_snapshot!("confirmations", [saved, rejected]);
}

#[test]
fn frames_a_phone_gets() {
    let accepted = accepted();
    let session = SessionId::new("session-1").unwrap();
    let ack = Ack {
        client_message_id: accepted.client_message_id.clone(),
        id: accepted.id,
        chat_room_id: accepted.chat_room_id.clone(),
        seq: Seq(7),
        timestamp: accepted.timestamp,
    };
    let rooms = [SyncedRoom {
        chat_room_id: accepted.chat_room_id.clone(),
        seq: Seq(7),
        complete: true,
        epoch: StoreEpoch(3),
        first_seq: None,
    }];
    let position = Position {
        chat_room_id: accepted.chat_room_id.clone(),
        user_id: user("B"),
        seq: Seq(7),
        timestamp: accepted.timestamp,
    };
    let typing = News::Typing { chat_room_id: accepted.chat_room_id.clone(), user_id: user("B") };
    assert_json_snapshot!(
        "frames_server",
        [
            ServerFrame::Welcome {
                user_id: &accepted.sender_id,
                session_id: &session,
                server_time: accepted.timestamp,
                max_content_bytes: 8192,
                max_frame_bytes: 65_536,
                ping_seconds: 25,
                epoch: StoreEpoch(3),
            },
            ServerFrame::Ack(&ack),
            ServerFrame::Synced { rooms: &rooms },
            ServerFrame::Resync { reason: "interrupted", rooms: None, retry_after_ms: Some(250) },
            ServerFrame::Pong,
            ServerFrame::Error {
                code: "UNAVAILABLE",
                message: "try again",
                client_message_id: Some(&accepted.client_message_id),
                retry_after_ms: Some(1000),
            },
        ]
    );
    assert_json_snapshot!(
        "frames_news",
        [News::Chat(message()), News::Received(position.clone()), News::Read(position), typing,]
    );
}

#[test]
fn an_event_reads_back_as_it_was_written() {
    let event = Event::new(accepted(), trace());
    let json = serde_json::to_string(&event).unwrap();
    assert_eq!(serde_json::from_str::<Event<Accepted>>(&json).unwrap(), event);
    let live = LiveEvent { recipients: [user("B")].into(), origin: None, news: News::Chat(message()) };
    let json = serde_json::to_string(&live).unwrap();
    assert_eq!(serde_json::from_str::<LiveEvent>(&json).unwrap(), live);
}

/// As the versions before wrote it. They run beside this one while a deployment is renewed, and their events wait in
/// queues: these stay readable for ever.
#[test]
fn a_push_of_an_earlier_version_is_read() {
    let json = include_str!("earlier/push.json");
    assert_eq!(serde_json::from_str::<Event<PushJob>>(json).unwrap(), Event::new(push(), trace()));
}
