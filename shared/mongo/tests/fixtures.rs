//! What tests begin with.

use std::thread;

use bson::Document;
use mongodb::{Client, Collection};
use naru_engines::store::{NewRoom, Store};
use naru_model::room::sorted_members;
use naru_model::{ClientMessageId, Message, MessageId, RoomId, RoomKind, Seq, Timestamp, UserId};
use naru_mongo::{Mongo, Options};
use naru_services::Kind;

/// A database of its own, on the server that all tests share. Dropping it drops its data.
pub struct Fresh {
    pub name: String,
}

impl Fresh {
    pub fn new() -> Self {
        Self { name: format!("naru_test_{}", MessageId::generate()) }
    }

    /// Another process of the same deployment.
    pub async fn open(&self) -> Mongo {
        Mongo::open(url(), &self.name, Options::default()).await.expect("a server")
    }

    pub async fn store(&self) -> Store {
        self.open().await.store()
    }

    /// As anyone else sees it.
    pub async fn raw(&self, collection: &str) -> Collection<Document> {
        client().await.database(&self.name).collection(collection)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        let dropped = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { client().await.database(&name).drop().await })?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        });
        if !thread::panicking() {
            dropped.join().expect("no panic").expect("the database is dropped");
        }
    }
}

pub fn url() -> &'static str {
    naru_services::url(Kind::Mongodb)
}

async fn client() -> Client {
    Client::with_uri_str(url()).await.expect("a server")
}

pub fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

pub fn room(name: &str) -> RoomId {
    RoomId::new(name).unwrap()
}

pub fn group(id: &str, members: &[&str]) -> NewRoom {
    NewRoom {
        id: room(id),
        kind: RoomKind::Group,
        name: None,
        member_ids: sorted_members(members.iter().map(|name| user(name))),
        maker_id: None,
    }
}

pub fn said(room: &RoomId, sender: &UserId, seq: u64) -> Message {
    let id = MessageId::generate();
    Message {
        id,
        chat_room_id: room.clone(),
        seq: Seq(seq),
        sender_id: sender.clone(),
        sender_name: "Ada".into(),
        content: format!("number {seq}").into(),
        timestamp: Timestamp::now(),
        client_message_id: ClientMessageId::from(id),
        deleted_at: None,
    }
}
