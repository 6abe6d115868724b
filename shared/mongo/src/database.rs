//! One MongoDB database and its few kinds of requests: each is one round trip, has a time limit, and returns a classified
//! failure.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use futures_util::TryStreamExt;
use mongodb::error::{Error, ErrorKind};
use mongodb::{ClientSession, Collection};
use naru_engines::store::{StoreClock, activity_after};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::{Message, StoreTime, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::error::{DUPLICATE_KEY, ENGINE, Request, contended, is_duplicate, is_too_early};
use crate::field::Field;
use crate::open::{META, WRITES};

/// How many statements one `update` command has. The server accepts 100,000, and 48 MB of them.
const STATEMENTS: usize = 10_000;
/// How many documents one statement changes. More would save nothing, and a server that holds its lock for a whole
/// statement would delay all other writes meanwhile.
pub(crate) const PER_STATEMENT: usize = 100;
/// How often an upsert is tried while others of the same key come first.
const UPSERTS: usize = 8;

/// The database. Its handle requests `w: majority, j: true` for every write, and a primary and the majority's state for
/// every read: answered data can't be rolled back, and an answered write is visible.
pub(crate) struct Database {
    handle: mongodb::Database,
    answer_within: Duration,
    /// The time of the last answer.
    clock: StoreClock,
    /// The latest activity to which this process has bumped a room.
    latest_activity: Mutex<Timestamp>,
}

pub(crate) struct Find {
    filter: Document,
    sort: Option<Document>,
    projection: Option<Document>,
    limit: Option<usize>,
    not_before: Option<StoreTime>,
}

impl Find {
    pub(crate) const fn all(filter: Document) -> Self {
        Self { filter, sort: None, projection: None, limit: None, not_before: None }
    }

    /// From a state that is not before this time, or not at all.
    pub(crate) fn since(self, not_before: Option<StoreTime>) -> Self {
        Self { not_before, ..self }
    }

    pub(crate) fn sorted(self, by: Document) -> Self {
        Self { sort: Some(by), ..self }
    }

    /// Reads only these fields.
    pub(crate) fn only(self, projection: Document) -> Self {
        Self { projection: Some(projection), ..self }
    }

    pub(crate) fn at_most(self, limit: usize) -> Self {
        Self { limit: Some(limit), ..self }
    }
}

/// One statement of an `update` command.
#[derive(Clone, Serialize)]
pub(crate) struct Update {
    #[serde(rename = "q")]
    filter: Document,
    #[serde(rename = "u")]
    change: Bson,
    upsert: bool,
    multi: bool,
}

impl Update {
    /// Changes the matching document, if there is one. The change consists of operators or is a pipeline.
    pub(crate) fn one(filter: Document, change: impl Into<Bson>) -> Self {
        Self { filter, change: change.into(), upsert: false, multi: false }
    }

    /// Changes all matching documents, as a rule by a pipeline that distinguishes them (see [`entry_of`]). Each change is
    /// independent.
    ///
    /// One statement for many documents, wherever none has to be created: the server then writes its log once, not once
    /// for each.
    pub(crate) fn all(filter: Document, change: impl Into<Bson>) -> Self {
        Self { multi: true, ..Self::one(filter, change) }
    }

    /// Changes the matching document, or creates it if there is none. Instead of a change, it may be the whole document.
    pub(crate) fn or_insert(filter: Document, change: impl Into<Bson>) -> Self {
        Self { upsert: true, ..Self::one(filter, change) }
    }
}

/// In a pipeline: the element of `values` at the place of the document's `_id` in `ids`, which must have it.
pub(crate) fn entry_of(ids: &[Bson], values: Vec<Bson>) -> Document {
    // A room's id may begin with a dollar.
    let place = doc! { "$indexOfArray": [{ "$literal": ids }, "$_id"] };
    doc! { "$arrayElemAt": [{ "$literal": values }, place] }
}

/// The relevant part of the answer to an `update` command.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Updated {
    write_errors: Vec<StatementError>,
    write_concern_error: Option<StatementError>,
}

#[derive(Deserialize)]
struct StatementError {
    #[serde(default)]
    index: usize,
    code: i32,
}

impl Database {
    pub(crate) fn new(handle: mongodb::Database, answer_within: Duration) -> Self {
        let (clock, latest_activity) = (StoreClock::default(), Mutex::new(Timestamp::from_millis(0)));
        Self { handle, answer_within, clock, latest_activity }
    }

    pub(crate) const fn clock(&self) -> &StoreClock {
        &self.clock
    }

    /// A session for one request: its answer tells the time. It costs nothing, because without one the driver takes one by itself.
    async fn session(&self) -> Result<ClientSession, Error> {
        self.handle.client().start_session().await
    }

    /// Notes the time of an answer that a majority stands behind.
    fn note_time(&self, session: &ClientSession) {
        if let Some(time) = session.operation_time().and_then(StoreTime::from_bson) {
            self.clock.note(time);
        }
    }

    /// The rooms' activities after these messages, in their order. Between processes only the timestamps decide: a process
    /// whose clock is behind lists its rooms behind those of the one before it, until its clock has caught up.
    pub(crate) fn activities(&self, newest: &[Message]) -> Vec<Timestamp> {
        let mut latest = self.latest_activity.lock().unwrap_or_else(PoisonError::into_inner);
        let next = |message: &Message| {
            *latest = activity_after(*latest, message.timestamp);
            *latest
        };
        newest.iter().map(next).collect()
    }

    /// The activity of a room that is made now.
    pub(crate) fn activity_now(&self) -> Timestamp {
        Timestamp::now().max(*self.latest_activity.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) const fn handle(&self) -> &mongodb::Database {
        &self.handle
    }

    fn raw(&self, collection: &str) -> Collection<RawDocumentBuf> {
        self.handle.collection(collection)
    }

    /// Without a time limit, a driver that lost a server's host, not only its process, would wait for ever.
    async fn ask<T>(
        &self,
        request: Request,
        about: &str,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> EngineResult<T> {
        match timeout(self.answer_within, answer).await {
            Ok(answer) => answer.map_err(|error| request.failed(about, &error)),
            Err(_) => Err(request.timed_out(about)),
        }
    }

    /// Whether the primary answers.
    pub(crate) async fn ping(&self) -> EngineResult<()> {
        self.ask(Request::Read, "ping", self.handle.run_command(doc! { "ping": 1 }).into_future())
            .await
            .map(drop)
    }

    /// Whether it takes writes: a full disk answers all the same.
    pub(crate) async fn check_writes(&self) -> EngineResult<()> {
        let written = doc! { "$set": { "at": Timestamp::now().to_bson() } };
        self.update_all(META, vec![Update::or_insert(doc! { "_id": WRITES }, written)]).await
    }

    /// The matching documents: one round trip, unless they exceed 16 MB.
    pub(crate) async fn find<T: DeserializeOwned>(
        &self,
        collection: &'static str,
        find: Find,
    ) -> EngineResult<Vec<T>> {
        let documents = self.documents(collection, find).await?;
        documents.iter().map(|document| read(collection, document)).collect()
    }

    /// The same, as they are stored.
    pub(crate) async fn documents(
        &self,
        collection: &'static str,
        find: Find,
    ) -> EngineResult<Vec<RawDocumentBuf>> {
        // To MongoDB, 0 means no limit.
        if find.limit == Some(0) {
            return Ok(Vec::new());
        }
        let raw = self.raw(collection);
        let mut action = raw.find(find.filter);
        if let Some(sort) = find.sort {
            action = action.sort(sort);
        }
        if let Some(projection) = find.projection {
            action = action.projection(projection);
        }
        // A batch that could hold more than the limit ends the cursor with the first answer.
        let max =
            find.limit.map_or(i32::MAX.unsigned_abs(), |limit| u32::try_from(limit).unwrap_or(u32::MAX));
        action = action.batch_size(max.saturating_add(1).min(i32::MAX.unsigned_abs()));
        if let Some(limit) = find.limit {
            action = action.limit(i64::try_from(limit).unwrap_or(i64::MAX));
        }
        let not_before = find.not_before;
        let documents = async {
            let mut session = self.session().await?;
            if let Some(not_before) = not_before {
                session.advance_operation_time(not_before.to_bson());
            }
            let mut cursor = action.session(&mut session).await?;
            let documents = cursor.stream(&mut session).try_collect::<Vec<_>>().await?;
            self.note_time(&session);
            Ok(documents)
        };
        match timeout(self.answer_within, documents).await {
            Err(_) => Err(Request::Read.timed_out(collection)),
            // Of a server that was cut off, which has not come so far.
            Ok(Err(error)) if not_before.is_some() && is_too_early(&error) => Err(EngineError::unavailable(
                ENGINE,
                Applied::No,
                format!("{collection}: the server is behind what was accepted"),
            )),
            Ok(answer) => answer.map_err(|error| Request::Read.failed(collection, &error)),
        }
    }

    /// The first matching document.
    pub(crate) async fn find_one<T: DeserializeOwned>(
        &self,
        collection: &'static str,
        filter: Document,
    ) -> EngineResult<Option<T>> {
        Ok(self.find(collection, Find::all(filter).at_most(1)).await?.pop())
    }

    /// The result of a pipeline on a collection, or on none when it begins with `$documents`.
    pub(crate) async fn aggregate<T: DeserializeOwned>(
        &self,
        collection: Option<&'static str>,
        pipeline: Vec<Document>,
    ) -> EngineResult<Vec<T>> {
        let about = collection.unwrap_or("aggregate");
        let documents = async {
            let whole = i32::MAX.unsigned_abs();
            let cursor = match collection {
                Some(collection) => {
                    self.raw(collection)
                        .aggregate(pipeline)
                        .batch_size(whole)
                        .with_type::<RawDocumentBuf>()
                        .await
                }
                None => self.handle.aggregate(pipeline).batch_size(whole).with_type::<RawDocumentBuf>().await,
            };
            cursor?.try_collect::<Vec<_>>().await
        };
        let documents = self.ask(Request::Read, about, documents).await?;
        documents.iter().map(|document| read(about, document)).collect()
    }

    /// Inserts documents; answers the places of those that a unique index refused: at most one when the insert is
    /// ordered, since no document after it is tried.
    pub(crate) async fn insert<T: Serialize + Send + Sync>(
        &self,
        collection: &'static str,
        documents: Vec<T>,
        ordered: bool,
    ) -> EngineResult<Vec<usize>> {
        let insert = async {
            let collection = self.handle.collection::<T>(collection);
            let mut session = self.session().await?;
            let refused =
                match collection.insert_many(&documents).ordered(ordered).session(&mut session).await {
                    Ok(_) => Vec::new(),
                    Err(error) => match &*error.kind {
                        // Without the write concern, no insert is certain, and its time may be rolled back with it.
                        ErrorKind::InsertMany(failed) if failed.write_concern_error.is_none() => {
                            failed.write_errors.clone().unwrap_or_default()
                        }
                        _ => return Err(error),
                    },
                };
            self.note_time(&session);
            Ok(refused)
        };
        let refused = self.ask(Request::Write, collection, insert).await?;
        let place = |error: mongodb::error::IndexedWriteError| match error.code {
            DUPLICATE_KEY => Ok(error.index),
            code => Err(Request::Write.refused(collection, code)),
        };
        refused.into_iter().map(place).collect()
    }

    /// Inserts one document; `false` when a unique index refused it.
    pub(crate) async fn insert_one<T: Serialize + Send + Sync>(
        &self,
        collection: &'static str,
        document: T,
    ) -> EngineResult<bool> {
        self.insert(collection, vec![document], true).await.map(|refused| refused.is_empty())
    }

    /// Makes all these changes, in any order. Each is independent; when this returns, all of them are on the majority.
    ///
    /// An `update` command, since the driver's own bulk write needs MongoDB 8.
    pub(crate) async fn update_all(
        &self,
        collection: &'static str,
        updates: Vec<Update>,
    ) -> EngineResult<()> {
        for updates in updates.chunks(STATEMENTS) {
            let mut left = updates.to_vec();
            for _ in 0..UPSERTS {
                if left.is_empty() {
                    break;
                }
                let mut beaten = self.try_updates(collection, &left).await?;
                beaten.sort_unstable();
                let mut place = 0..;
                left.retain(|_| {
                    place.next().is_some_and(|place: usize| beaten.binary_search(&place).is_ok())
                });
            }
            if !left.is_empty() {
                return Err(contended(collection, Applied::Unknown));
            }
        }
        Ok(())
    }

    /// Makes these changes, in any order; answers the places of those that a unique index refused: upserts whose key
    /// exists in a document that does not match, or in one that came first.
    pub(crate) async fn try_updates(
        &self,
        collection: &'static str,
        updates: &[Update],
    ) -> EngineResult<Vec<usize>> {
        if updates.is_empty() {
            return Ok(Vec::new());
        }
        let unwritable =
            |_| EngineError::permanent(ENGINE, format!("{collection}: not to be written as BSON"));
        // `run_command` does not inherit the write concern.
        let command = doc! {
            "update": collection,
            "updates": bson::serialize_to_bson(updates).map_err(unwritable)?,
            "ordered": false,
            "writeConcern": { "w": "majority", "j": true },
        };
        let answer =
            self.ask(Request::Write, collection, self.handle.run_command(command).into_future()).await?;
        let unreadable =
            |_| EngineError::permanent(ENGINE, format!("{collection}: an unknown kind of answer"));
        let answer: Updated = bson::deserialize_from_document(answer).map_err(unreadable)?;
        if let Some(error) = answer.write_concern_error {
            return Err(Request::Write.refused(collection, error.code));
        }
        let place = |error: StatementError| match error.code {
            DUPLICATE_KEY => Ok(error.index),
            code => Err(Request::Write.refused(collection, code)),
        };
        answer.write_errors.into_iter().map(place).collect()
    }

    /// Changes the matching document; whether there was one.
    pub(crate) async fn update_one(
        &self,
        collection: &'static str,
        filter: Document,
        change: Document,
    ) -> EngineResult<bool> {
        let raw = self.raw(collection);
        let updated =
            self.ask(Request::Write, collection, raw.update_one(filter, change).into_future()).await?;
        Ok(updated.matched_count > 0)
    }

    /// Replaces the matching document, or inserts one if there is none; `false` when a unique index refused it.
    pub(crate) async fn replace<T: Serialize + Send + Sync>(
        &self,
        collection: &'static str,
        filter: Document,
        document: &T,
    ) -> EngineResult<bool> {
        let replace = async {
            let collection = self.handle.collection::<T>(collection);
            match collection.replace_one(filter, document).upsert(true).await {
                Ok(_) => Ok(true),
                Err(error) if is_duplicate(&error) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.ask(Request::Write, collection, replace).await
    }

    /// Removes all matching documents; how many there were.
    pub(crate) async fn remove(&self, collection: &'static str, filter: Document) -> EngineResult<u64> {
        let raw = self.raw(collection);
        let removed = self.ask(Request::Write, collection, raw.delete_many(filter).into_future()).await?;
        Ok(removed.deleted_count)
    }
}

/// Reads a document; an unreadable one is logged, and passed over.
pub(crate) fn readable<T: DeserializeOwned>(collection: &str, document: &RawDocument) -> Option<T> {
    let read = read(collection, document);
    read.inspect_err(|error| tracing::error!(%error, "a document can't be read; it is passed over")).ok()
}

/// Reads a document. An unreadable one is reported by collection, `_id` and field name, without content.
fn read<T: DeserializeOwned>(collection: &str, document: &RawDocument) -> EngineResult<T> {
    bson::deserialize_from_slice(document.as_bytes()).map_err(|error| {
        let id = document.get("_id").ok().flatten().map(|id| format!("{id:?}")).unwrap_or_default();
        let field = error.key.map(|key| format!(", field {key}")).unwrap_or_default();
        EngineError::poison(ENGINE, format!("{collection}, document {id}{field}"))
    })
}
