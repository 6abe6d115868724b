//! What other services and operators find in the database: the documents, and the indexes of the crate's documentation.

use std::collections::BTreeSet;

use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::IndexModel;
use naru_engines::store::{Advance, Closing, Device, MemberChange, MemberSettings, ParkedPush, Platform};
use naru_model::hops::{Accepted, Lane, Payload, PushEnvironment, PushJob, PushTarget};
use naru_model::message::{Outcome, Rejection};
use naru_model::{
    ClientMessageId, DeviceId, GatewayId, MessageId, Origin, RoomId, RoomKind, Seq, SessionId, Timestamp,
};

use crate::fixtures::{Fresh, group, user};

const COLLECTIONS: [&str; 11] = [
    "intake",
    "chat_messages",
    "chat_rooms",
    "room_versions",
    "members",
    "devices",
    "users",
    "erasures",
    "pushes",
    "parked",
    "meta",
];

/// A row of the table of indexes, as far as a server knows it.
fn row(collection: &str, index: &IndexModel) -> String {
    let keys = index.keys.iter().map(|(field, order)| match order {
        Bson::Int32(1) => field.clone(),
        _ => format!("{field}↓"),
    });
    let keys = keys.collect::<Vec<_>>().join(", ");
    let options = index.options.clone().unwrap_or_default();
    let mut notes = String::new();
    if options.unique == Some(true) {
        notes.push_str(", unique");
    }
    if let Some(only) = options.partial_filter_expression {
        assert_eq!(only, doc! { "open": true });
        notes.push_str(", only where `open: true`");
    }
    if let Some(after) = options.expire_after {
        assert_eq!(after.as_secs(), 3 * 24 * 60 * 60);
        notes.push_str(", forgotten after three days");
    }
    format!("//! | `{keys}` | `{collection}`{notes} | ")
}

#[tokio::test]
async fn indexes_are_as_documented() {
    let fresh = Fresh::new();
    drop(fresh.store().await);
    let mut found = BTreeSet::new();
    for name in COLLECTIONS {
        let indexes = fresh.raw(name).await.list_indexes().await;
        let Ok(indexes) = indexes else { continue };
        let indexes: Vec<IndexModel> = indexes.try_collect().await.unwrap();
        found.extend(
            indexes.iter().filter(|index| index.keys != doc! { "_id": 1 }).map(|index| row(name, index)),
        );
    }
    let (_, table) = include_str!("../src/lib.rs").split_once("//! | index | of | for |").unwrap();
    let (table, _) = table.split_once("//!\n").unwrap();
    let documented = table.lines().filter(|line| line.starts_with("//! | `"));
    let documented: BTreeSet<String> = documented
        .map(|line| line.match_indices(" | ").nth(2).map_or(line, |(end, _)| &line[..end + 3]).to_owned())
        .collect();
    assert_eq!(found, documented);
}

/// The documents of a collection, with what differs from run to run replaced.
async fn documents(fresh: &Fresh, collection: &str) -> Vec<Document> {
    let sorted = fresh.raw(collection).await.find(doc! {}).sort(doc! { "_id": 1 }).await.unwrap();
    let mut documents: Vec<Document> = sorted.try_collect().await.unwrap();
    for document in &mut documents {
        let made_by_server = !["intake", "chat_messages"].contains(&collection);
        for (field, value) in document.iter_mut() {
            match (field.as_str(), &value) {
                ("_id", Bson::ObjectId(_)) if made_by_server => *value = "an ObjectId".into(),
                ("appended", Bson::Timestamp(_)) => *value = "a Timestamp".into(),
                ("createdAt" | "recordedAt", Bson::DateTime(_)) => *value = "a date".into(),
                ("activity", Bson::DateTime(date)) if date.timestamp_millis() != MOMENT.as_millis() => {
                    *value = "a date".into();
                }
                _ => {}
            }
        }
    }
    documents
}

const MOMENT: Timestamp = Timestamp::from_millis(1_795_339_800_042);

fn accepted(number: u8) -> Accepted {
    Accepted {
        id: MessageId::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number]),
        chat_room_id: RoomId::new("모임").unwrap(),
        sender_id: user("ada"),
        sender_name: "Ada".into(),
        content: "안녕하세요".into(),
        timestamp: MOMENT,
        client_message_id: ClientMessageId::new(format!("c-{number}")).unwrap(),
        after: None,
        origin: None,
        trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap(),
    }
}

#[tokio::test]
async fn documents_have_these_shapes() {
    let fresh = Fresh::new();
    let store = fresh.store().await;
    let origin =
        Origin { gateway: GatewayId::new("g1").unwrap(), session: Some(SessionId::new("s1").unwrap()) };
    let open = Accepted { after: Some(accepted(1).id), origin: Some(origin), ..accepted(3) };
    store.intake.append(&[accepted(1), accepted(2), open]).await.unwrap();
    let ends = [
        Closing { id: accepted(1).id, outcome: Outcome::Saved { seq: Seq(1) } },
        Closing { id: accepted(2).id, outcome: Outcome::Rejected { reason: Rejection::NotAMember } },
    ];
    store.intake.close(&ends).await.unwrap();
    store.intake.drop_contents(&[accepted(2).id]).await.unwrap();

    let group = naru_engines::store::NewRoom {
        name: Some("모임".into()),
        maker_id: Some(user("ada")),
        ..group("모임", &["ada", "ben", "eve"])
    };
    store.rooms.create(group.clone()).await.unwrap();
    let direct = naru_engines::store::NewRoom {
        id: RoomId::direct(&user("ada"), &user("ben")),
        kind: RoomKind::Direct,
        name: None,
        maker_id: None,
        member_ids: group.member_ids[..2].into(),
    };
    store.rooms.create(direct).await.unwrap();
    store.rooms.change(&group.id, MemberChange::Remove(user("eve")), 10).await.unwrap();
    store.messages.append_run(&[accepted(1).at(Seq(1)), accepted(4).at(Seq(2))]).await.unwrap();
    store.messages.delete(&[accepted(4).id], MOMENT).await.unwrap();
    store.messages.bump(&[accepted(1).at(Seq(1))]).await.unwrap();
    let phone = DeviceId::new("Ben's $phone.1").unwrap();
    let step = Advance {
        room: group.id.clone(),
        user: user("ben"),
        device: Some(phone.clone()),
        received: Seq(1),
        read: Seq::ZERO,
    };
    store.positions.advance(&[step]).await.unwrap();
    let muted = MemberSettings { muted: true, muted_until: Some(MOMENT) };
    store.rooms.configure(&group.id, &user("ben"), muted).await.unwrap();

    let device = Device {
        user: user("ben"),
        id: phone.clone(),
        platform: Platform::Apns,
        token: "token".into(),
        environment: PushEnvironment::Sandbox,
        locale: Some("ko-KR".into()),
        hides_content: true,
        registered_at: MOMENT,
    };
    store.devices.claim(device).await.unwrap();
    store.users.end_sessions(&user("ben"), Some(MOMENT)).await.unwrap();
    assert!(store.users.block(&user("ben"), &user("auth0|eve"), 9).await.unwrap());
    store.users.begin_erasure(&user("ben"), MOMENT).await.unwrap();
    store.users.begin_erasure(&user("ada"), MOMENT).await.unwrap();
    assert!(store.users.complete_erasure(&user("ada"), 1, MOMENT).await.unwrap());
    let target =
        PushTarget { device_id: phone, token: "token".into(), environment: PushEnvironment::Sandbox };
    let job = PushJob {
        lane: Lane::Apns,
        message_id: accepted(1).id,
        chat_room_id: group.id,
        seq: Seq(1),
        recipient_id: user("ben"),
        title: "Ada".into(),
        body: "안녕하세요".into(),
        hides_content: false,
        badge: None,
        room_name: None,
        target: Some(target),
        expires_at: MOMENT,
    };
    let event_id = job.event_id();
    store.pushes.record(&[(event_id, "apns-id".to_owned())]).await.unwrap();
    let parked = ParkedPush {
        event_id,
        job,
        reason: "the key was refused".to_owned(),
        attempts: 3,
        parked_at: MOMENT,
    };
    store.pushes.park(&[parked]).await.unwrap();

    for collection in COLLECTIONS {
        let documents = documents(&fresh, collection).await;
        // The order of fields is the server's, where it makes a document from an update.
        insta::with_settings!({ sort_maps => true }, { insta::assert_json_snapshot!(collection, documents) });
    }
}
