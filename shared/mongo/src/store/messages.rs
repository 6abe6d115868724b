//! `chat_messages`.

use std::collections::{BTreeMap, HashMap, HashSet};

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use naru_engines::store::{Messages, RunConflict, RunResult, Walked, Window};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::{Message, MessageId, RoomId, Seq, Timestamp};

use crate::database::{Database, Find, PER_STATEMENT, Update, entry_of};
use crate::document::{MessageDocument, if_field};
use crate::error::{ENGINE, after_effect};
use crate::field::{self, Field, texts};
use crate::open::{CHAT_MESSAGES, CHAT_ROOMS, INTAKE};
use serde::Deserialize;

#[async_trait]
impl Messages for Database {
    /// One round trip.
    async fn find(&self, ids: &[MessageId]) -> EngineResult<Vec<Option<Message>>> {
        let found = self.messages(doc! { "_id": { "$in": field::all(ids) } }, ids.len()).await?;
        let found: HashMap<_, _> = found.into_iter().map(|message| (message.id, message)).collect();
        Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
    }

    /// Two round trips: the heads that the rooms' documents name, then the messages from there on.
    async fn heads(&self, rooms: &[RoomId]) -> EngineResult<Vec<Seq>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Bumped {
            #[serde(rename = "_id")]
            room: RoomId,
            #[serde(default, deserialize_with = "if_field")]
            last_seq: Option<Seq>,
        }
        let find = Find::all(doc! { "_id": { "$in": texts(rooms) } });
        let bumped =
            self.find::<Bumped>(CHAT_ROOMS, find.only(doc! { "lastSeq": 1 }).at_most(rooms.len())).await?;
        // A room that has no document is searched from the beginning.
        let mut from: HashMap<RoomId, Seq> = rooms.iter().map(|room| (room.clone(), Seq::ZERO)).collect();
        from.extend(bumped.into_iter().map(|Bumped { room, last_seq }| (room, last_seq.unwrap_or_default())));
        let heads = self.heads_of(from).await?;
        Ok(rooms.iter().map(|room| heads.get(room).copied().unwrap_or_default()).collect())
    }

    /// One round trip, two when a message is refused.
    ///
    /// An ordered insert stops at its first failure and a server that dies in the middle has stored a prefix: hence no
    /// gap. All counts are read from `chat_messages`, so nothing else is written and nothing needs repair: when the process
    /// dies, the run is delivered again and stops at the first stored message.
    async fn append_run(&self, run: &[Message]) -> EngineResult<RunResult> {
        if run.is_empty() {
            return Ok(RunResult { stored: 0, stopped_by: None });
        }
        let documents: Vec<_> = run.iter().map(MessageDocument::from).collect();
        let refused = self.insert(CHAT_MESSAGES, documents, true).await?;
        let stored = refused.first().copied().unwrap_or(run.len());
        let stopped_by = match run.get(stored) {
            Some(first) => Some(self.met_by(first).await.map_err(after_effect)?),
            None => None,
        };
        Ok(RunResult { stored, stopped_by })
    }

    /// One round trip, one statement as a rule. It only raises values, so it may be repeated and overtaken.
    async fn bump(&self, newest: &[Message]) -> EngineResult<()> {
        let activities = self.activities(newest);
        let statements = newest.chunks(PER_STATEMENT).zip(activities.chunks(PER_STATEMENT));
        self.update_all(CHAT_ROOMS, statements.map(|(newest, moments)| raise(newest, moments)).collect())
            .await
    }

    /// One round trip.
    async fn range(&self, room: &RoomId, window: Window, limit: usize) -> EngineResult<(Vec<Message>, bool)> {
        let (seq, order) = match window {
            Window::After(seq) => (Some(doc! { "$gt": seq.to_bson() }), 1),
            Window::Before(seq) => (Some(doc! { "$lt": seq.to_bson() }), -1),
            Window::Latest => (None, -1),
        };
        let mut filter = doc! { "chatRoomId": room.as_str() };
        filter.extend(seq.map(|seq| ("seq".to_owned(), seq.into())));
        // One above the limit shows whether there are more.
        let find = Find::all(filter).sorted(doc! { "seq": order }).at_most(limit.saturating_add(1));
        let found = Database::find::<MessageDocument>(self, CHAT_MESSAGES, find).await?;
        let more = found.len() > limit;
        let mut page: Vec<Message> = found.into_iter().take(limit).map(Message::from).collect();
        // A hole is one of messages that expire at this moment, or did when a process died: all before it are about to.
        let hole = page.windows(2).rposition(|pair| pair[0].seq.0.abs_diff(pair[1].seq.0) > 1);
        match (window, hole) {
            (Window::After(_), Some(hole)) => drop(page.drain(..=hole)),
            (Window::Before(_) | Window::Latest, Some(_)) => {
                let first = page.windows(2).position(|pair| pair[0].seq.0.abs_diff(pair[1].seq.0) > 1);
                page.truncate(first.map_or(page.len(), |first| first + 1));
                return Ok((page, false));
            }
            (_, None) => {}
        }
        Ok((page, more))
    }

    /// One round trip. Only what is not deleted is changed, so it may be repeated.
    async fn delete(&self, ids: &[MessageId], at: Timestamp) -> EngineResult<()> {
        let tombstone = doc! { "$set": { "senderName": "", "content": "", "deletedAt": at.to_bson() } };
        let delete = |ids: &[MessageId]| {
            let messages = doc! { "_id": { "$in": field::all(ids) }, "deletedAt": null };
            Update::all(messages, tombstone.clone())
        };
        self.update_all(CHAT_MESSAGES, ids.chunks(PER_STATEMENT).map(delete).collect()).await
    }

    /// Four round trips, three more where something has expired, and one for each room whose first message is not where its document
    /// says: another system replaced that, or two gateways' clocks differ.
    ///
    /// What if the process dies here? What has expired is noted before it is removed, and so is not unread, and the next walk
    /// meets it again and removes it.
    async fn expire(
        &self,
        after: Option<MessageId>,
        before: Timestamp,
        limit: usize,
    ) -> EngineResult<Walked> {
        let mut range = doc! { "$lt": MessageId::first_at(before).to_bson() };
        range.extend(after.map(|after| ("$gt".to_owned(), after.to_bson().into())));
        let find = Find::all(doc! { "_id": range }).sorted(doc! { "_id": 1 });
        let find = find.only(doc! { "chatRoomId": 1, "seq": 1, "timestamp": 1 }).at_most(limit);
        let old = Database::find::<Old>(self, CHAT_MESSAGES, find).await?;
        let walked = Walked { removed: 0, next: old.last().filter(|_| old.len() == limit).map(|old| old.id) };
        if old.is_empty() {
            return Ok(walked);
        }
        let mut rooms: HashMap<RoomId, BTreeMap<Seq, MessageId>> = HashMap::new();
        let open = self.open_among(&old).await?;
        for old in old.iter().filter(|old| old.timestamp < before && !open.contains(&old.id)) {
            rooms.entry(old.chat_room_id.clone()).or_default().insert(old.seq, old.id);
        }
        let find = Find::all(doc! { "_id": { "$in": texts(rooms.keys()) } });
        let noted = find.only(doc! { "lastSeq": 1, "expiredTo": 1 }).at_most(rooms.len());
        let noted = Database::find::<Noted>(self, CHAT_ROOMS, noted).await?;
        let noted: HashMap<_, _> = noted.into_iter().map(|noted| (noted.room.clone(), noted)).collect();
        let last_seq = |room| noted.get(room).and_then(|noted: &Noted| noted.last_seq).unwrap_or_default();
        let heads = self.heads_of(rooms.keys().map(|room| (room.clone(), last_seq(room))).collect()).await?;

        let (mut notes, mut tombstones, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        for (room, places) in rooms {
            let before = noted.get(&room).and_then(|noted| noted.expired_to).unwrap_or_default();
            let mut expired = before;
            if let Some(first) = places.keys().next().filter(|first| **first > expired.next())
                && self.first_of(&room).await? == Some(*first)
            {
                expired = Seq(first.0 - 1);
            }
            let head = heads.get(&room).copied().unwrap_or_default();
            for (seq, id) in places {
                if seq == expired.next() {
                    expired = seq;
                } else if seq > expired {
                    break;
                }
                if seq < head { removed.push(id) } else { tombstones.push(id) }
            }
            if expired > before {
                let note = doc! { "$max": { "expiredTo": expired.to_bson() } };
                notes.push(Update::one(doc! { "_id": room.as_str() }, note));
            }
        }
        self.update_all(CHAT_ROOMS, notes).await?;
        if !tombstones.is_empty() {
            self.delete(&tombstones, Timestamp::now()).await?;
        }
        if removed.is_empty() {
            return Ok(walked);
        }
        let removed = doc! { "_id": { "$in": field::all(&removed) } };
        Ok(Walked { removed: self.remove(CHAT_MESSAGES, removed).await?, ..walked })
    }
}

/// An old message.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Old {
    #[serde(rename = "_id", with = "field")]
    id: MessageId,
    chat_room_id: RoomId,
    #[serde(with = "field")]
    seq: Seq,
    #[serde(with = "field")]
    timestamp: Timestamp,
}

/// What a room's document says of its messages.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Noted {
    #[serde(rename = "_id")]
    room: RoomId,
    #[serde(default, deserialize_with = "if_field")]
    last_seq: Option<Seq>,
    #[serde(default, deserialize_with = "if_field")]
    expired_to: Option<Seq>,
}

impl Database {
    /// Which of these messages' intake entries are open.
    async fn open_among(&self, messages: &[Old]) -> EngineResult<HashSet<MessageId>> {
        #[derive(Deserialize)]
        struct Open {
            #[serde(rename = "_id", with = "field")]
            id: MessageId,
        }
        let ids: Vec<MessageId> = messages.iter().map(|old| old.id).collect();
        let open = Find::all(doc! { "_id": { "$in": field::all(&ids) }, "open": true });
        let open = Database::find::<Open>(self, INTAKE, open.only(doc! { "_id": 1 })).await?;
        Ok(open.into_iter().map(|open| open.id).collect())
    }

    /// The place of a room's first message.
    async fn first_of(&self, room: &RoomId) -> EngineResult<Option<Seq>> {
        #[derive(Deserialize)]
        struct First {
            #[serde(with = "field")]
            seq: Seq,
        }
        let first = Find::all(doc! { "chatRoomId": room.as_str() }).sorted(doc! { "seq": 1 }).at_most(1);
        let first =
            Database::find::<First>(self, CHAT_MESSAGES, first.only(doc! { "_id": 0, "seq": 1 })).await?;
        Ok(first.first().map(|first| first.seq))
    }

    async fn messages(&self, filter: Document, at_most: usize) -> EngineResult<Vec<Message>> {
        let found =
            Database::find::<MessageDocument>(self, CHAT_MESSAGES, Find::all(filter).at_most(at_most))
                .await?;
        Ok(found.into_iter().map(Message::from).collect())
    }

    /// Looks up, in one query, why this message was refused.
    ///
    /// When both the message itself and another one in its place are found, it is saved; the other does not matter.
    async fn met_by(&self, refused: &Message) -> EngineResult<RunConflict> {
        let place = doc! { "chatRoomId": refused.chat_room_id.as_str(), "seq": refused.seq.to_bson() };
        let found = self.messages(doc! { "$or": [{ "_id": refused.id.to_bson() }, place] }, 2).await?;
        match found.iter().find(|found| found.id == refused.id) {
            Some(saved) => Ok(RunConflict::AlreadySaved(saved.clone())),
            None if !found.is_empty() => Ok(RunConflict::SeqTaken),
            // Refused because of a document that the majority does not have yet, and may never have.
            None => {
                let why = "chat_messages: the servers do not agree yet";
                Err(EngineError::unavailable(ENGINE, Applied::Unknown, why))
            }
        }
    }
}

/// Raises rooms to their newest messages; a room there or beyond stays as it is.
fn raise(newest: &[Message], activities: &[Timestamp]) -> Update {
    let ids: Vec<Bson> = newest.iter().map(|message| message.chat_room_id.as_str().into()).collect();
    let seqs = newest.iter().map(|message| message.seq.to_bson().into());
    let moments = activities.iter().map(|activity| activity.to_bson().into());
    let (seq, moment) = (entry_of(&ids, seqs.collect()), entry_of(&ids, moments.collect()));
    // In a pipeline, strings compare above numbers.
    let is_there = doc! { "$and": [{ "$isNumber": "$lastSeq" }, { "$gte": ["$lastSeq", seq.clone()] }] };
    let raised = doc! { "$set": {
        "activity": { "$cond": [is_there.clone(), "$activity", moment] },
        "lastSeq": { "$cond": [is_there, "$lastSeq", seq] },
    } };
    Update::all(doc! { "_id": { "$in": ids } }, vec![raised])
}
