//! The conformance suite: every case, each on a database of its own.

use std::sync::Arc;

use async_trait::async_trait;
use bson::doc;
use naru_conformance::conformance_suite;
use naru_conformance::{ForeignStore, Subject};
use naru_engines::store::Store;

use crate::fixtures::Fresh;

#[async_trait]
impl Subject<Store> for Fresh {
    async fn open(&mut self) -> Store {
        *self = Self::new();
        self.store().await
    }

    async fn reopen(&mut self) -> Store {
        self.store().await
    }

    async fn beside(&mut self, _: &Store) -> Store {
        self.store().await
    }
}

#[async_trait]
impl Subject<ForeignStore> for Fresh {
    async fn open(&mut self) -> ForeignStore {
        *self = Self::new();
        self.reopen().await
    }

    async fn reopen(&mut self) -> ForeignStore {
        let rooms = self.raw("chat_rooms").await;
        let write = Arc::new(move |id, user1, user2| {
            let rooms = rooms.clone();
            let (id, user1, user2): (naru_model::RoomId, naru_model::UserId, naru_model::UserId) =
                (id, user1, user2);
            let document = doc! { "_id": id.as_str(), "user1Id": user1.as_str(), "user2Id": user2.as_str() };
            Box::pin(async move {
                rooms.insert_one(document).await.expect("it is written");
            }) as _
        });
        ForeignStore { store: self.store().await, write }
    }
}

fn fresh() -> Fresh {
    Fresh::new()
}

conformance_suite!(store, foreign: fresh);
