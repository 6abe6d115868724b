//! `chat_messages`.

use std::collections::HashMap;

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use futures_util::future::try_join;
use naru_engines::store::{Messages, Run, RunConflict, Window};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::{Message, MessageId, RoomId, Seq, UserId};

use crate::database::{Database, Find, Update, entry_of};
use crate::document::MessageDocument;
use crate::error::{ENGINE, after_effect};
use crate::field::{self, Field};
use crate::open::{CHAT_MESSAGES, CHAT_ROOMS, MEMBERS};
use crate::store::member;

#[async_trait]
impl Messages for Database {
    /// One round trip.
    async fn find(&self, ids: &[MessageId]) -> EngineResult<Vec<Option<Message>>> {
        let found = self.messages(doc! { "_id": { "$in": field::all(ids) } }, ids.len()).await?;
        let found: HashMap<_, _> = found.into_iter().map(|message| (message.id, message)).collect();
        Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
    }

    /// One round trip.
    async fn heads(&self, rooms: &[RoomId]) -> EngineResult<Vec<Seq>> {
        let heads = self.heads_of(rooms).await?;
        Ok(rooms.iter().map(|room| heads.get(room).copied().unwrap_or_default()).collect())
    }

    /// Two round trips, three when something stops the run: the insert, (what stopped it,) then at the same time one
    /// command that moves its rooms in lists and one that moves its senders' read positions.
    ///
    /// An ordered insert stops at its first failure and a server that dies in the middle has stored a prefix: hence no
    /// gap. Everything that is *counted* — last message, last place, unread messages — is read from `chat_messages`, so
    /// it can't disagree with what is stored.
    ///
    /// What if the process dies here? Before or within the insert: the run comes again. Between the insert and the two
    /// commands: rooms stand too low in lists and senders have unread words of their own, until the run comes again
    /// and stops at what is already saved: then both commands are made good for all of the run that is stored, not
    /// only for what stopped it, since no other of its messages will be offered again. Both only ever raise, so they
    /// may be repeated and overtaken.
    async fn append_run(&self, run: &[Message]) -> EngineResult<Run> {
        if run.is_empty() {
            return Ok(Run { stored: 0, stopped_by: None });
        }
        let documents: Vec<_> = run.iter().map(MessageDocument::from).collect();
        let refused = self.insert(CHAT_MESSAGES, documents, true).await?;
        let stored = refused.first().copied().unwrap_or(run.len());
        let (run, left) = run.split_at(stored.min(run.len()));
        let (saved_before, stopped_by) = match left.first() {
            None => (Vec::new(), None),
            Some(first) => {
                let met = self.met_by(first, left).await.map_err(after_effect)?;
                (met.saved_before, Some(met.conflict))
            }
        };
        self.count(run.iter().chain(&saved_before)).await.map_err(after_effect)?;
        Ok(Run { stored, stopped_by })
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
        // One more than asked for tells whether there are more.
        let find = Find::all(filter).sorted(doc! { "seq": order }).at_most(limit.saturating_add(1));
        let found = Database::find::<MessageDocument>(self, CHAT_MESSAGES, find).await?;
        let more = found.len() > limit;
        Ok((found.into_iter().take(limit).map(Message::from).collect(), more))
    }
}

/// What stopped a run.
struct Met {
    /// Why the first message that is left could not be stored.
    conflict: RunConflict,
    /// Those of the messages that are left which were stored before.
    saved_before: Vec<Message>,
}

impl Database {
    async fn messages(&self, filter: Document, at_most: usize) -> EngineResult<Vec<Message>> {
        let found =
            Database::find::<MessageDocument>(self, CHAT_MESSAGES, Find::all(filter).at_most(at_most))
                .await?;
        Ok(found.into_iter().map(Message::from).collect())
    }

    /// Looks up, in one query, why `first` was refused, and which of those that are `left` are stored already.
    ///
    /// A message may meet itself and another one in its place: then it is saved, and the other one does not matter.
    async fn met_by(&self, first: &Message, left: &[Message]) -> EngineResult<Met> {
        let ids: Vec<_> = left.iter().map(|message| message.id.to_bson()).collect();
        let place = doc! { "chatRoomId": first.chat_room_id.as_str(), "seq": first.seq.to_bson() };
        let found = self.messages(doc! { "$or": [{ "_id": { "$in": ids } }, place] }, left.len() + 1).await?;
        let (saved_before, others): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|found| left.iter().any(|message| message.id == found.id));
        let conflict = match saved_before.iter().find(|saved| saved.id == first.id) {
            Some(saved) => RunConflict::AlreadySaved(saved.clone()),
            None if saved_before.iter().chain(&others).any(|other| is_at(other, first)) => {
                RunConflict::SeqTaken
            }
            // Refused for the sake of a document that the majority does not have yet, and may never have.
            None => {
                let why = "chat_messages: not settled among the servers";
                return Err(EngineError::unavailable(ENGINE, Applied::Unknown, why));
            }
        };
        Ok(Met { conflict, saved_before })
    }

    /// Makes stored messages count in lists of rooms, and as read by their senders.
    async fn count<'a>(&self, messages: impl Iterator<Item = &'a Message>) -> EngineResult<()> {
        let mut newest: HashMap<&RoomId, &Message> = HashMap::new();
        let mut own: HashMap<(&RoomId, &UserId), Seq> = HashMap::new();
        for message in messages {
            let last = newest.entry(&message.chat_room_id).or_insert(message);
            if message.seq > last.seq {
                *last = message;
            }
            let read = own.entry((&message.chat_room_id, &message.sender_id)).or_default();
            *read = message.seq.max(*read);
        }
        // The moment of the newest message, not the latest moment: gateways' clocks differ.
        let rooms = (!newest.is_empty()).then(|| raise(&newest));
        // Sending reads up to one's own message.
        let members = own.into_iter().map(|((room, sender), seq)| {
            Update::or_insert(member(room, sender), doc! { "$max": { "read": seq.to_bson() } })
        });
        let (rooms, members) = (rooms.into_iter().collect(), members.collect());
        try_join(self.update_all(CHAT_ROOMS, rooms), self.update_all(MEMBERS, members)).await.map(drop)
    }
}

/// Raises rooms to their newest messages; one that is there or beyond stays.
fn raise(newest: &HashMap<&RoomId, &Message>) -> Update {
    let ids: Vec<Bson> = newest.keys().map(|room| room.as_str().into()).collect();
    let seqs = newest.values().map(|message| message.seq.to_bson().into());
    let moments = newest.values().map(|message| message.timestamp.to_bson().into());
    let (seq, moment) = (entry_of(&ids, seqs.collect()), entry_of(&ids, moments.collect()));
    // To a pipeline, all text is above all numbers.
    let is_there = doc! { "$and": [{ "$isNumber": "$lastSeq" }, { "$gte": ["$lastSeq", seq.clone()] }] };
    let raised = doc! { "$set": {
        "activity": { "$cond": [is_there.clone(), "$activity", moment] },
        "lastSeq": { "$cond": [is_there, "$lastSeq", seq] },
    } };
    Update::all(doc! { "_id": { "$in": ids } }, vec![raised])
}

fn is_at(one: &Message, other: &Message) -> bool {
    (&one.chat_room_id, one.seq) == (&other.chat_room_id, other.seq)
}
