//! A client sends its positions and gets exactly the messages after them, from the store, whatever their age.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Once};

use naru_engines::store::{DevicePosition, Store, Window};
use naru_model::frame::{Object, ServerFrame, Sync, SyncFrom, SyncedRoom};
use naru_model::live::News;
use naru_model::{Message, Room, RoomId, Seq, StoreEpoch};

use crate::limit::Limits;
use crate::proof::Proofs;
use crate::refusal::{Refusal, to_text};
use crate::room_heads::RoomHeads;
use crate::session_state::Session;
use crate::turns::Turns;

/// How many messages one answer holds of one room …
const PER_ROOM: usize = 200;
/// … and in all; the rest is asked for again.
const IN_ALL: usize = 1_000;

/// How many rooms one look-up of heads holds.
const LOOK_UP: usize = 1_000;

/// What the answer to a `SYNC` is made with.
pub(crate) struct SyncAnswer<'a> {
    pub(crate) session: &'a Session,
    pub(crate) store: &'a Store,
    pub(crate) epoch: StoreEpoch,
    pub(crate) turns: &'a Turns,
    pub(crate) limits: &'a Limits,
    pub(crate) room_heads: &'a RoomHeads,
    pub(crate) proofs: &'a Proofs,
}

impl SyncAnswer<'_> {
    /// Sends the messages in order, then `SYNCED`. Messages are read from the store when the session's queue has a place for
    /// them, so a client that does not read has few in memory; each read has a turn, and none is held while the client reads.
    ///
    /// # Errors
    /// `ROOM_NOT_FOUND` when any of the rooms is not the caller's; then no message is sent.
    pub(crate) async fn send(self, wanted: Sync) -> Result<(), Refusal> {
        let Self { session, store, epoch, .. } = self;
        let (wanted, are_named) = match wanted.rooms {
            Some(rooms) => (each_once(rooms.into_iter().map(|Object(from)| from)), true),
            None => (self.of_device().await?, false),
        };
        self.limits.answered_sync(&session.identity, wanted.len(), 0);
        let own = self.with_heads(wanted, are_named).await?;
        session
            .is_known_in(self.room_heads.learn(own.iter().map(|(from, head)| (&from.chat_room_id, *head))));
        let mut left = IN_ALL;
        let mut synced = Vec::with_capacity(own.len());
        for (SyncFrom { chat_room_id, after_seq }, head) in own {
            warn_if_beyond(after_seq, head, epoch);
            let (seq, complete) = (after_seq.min(head), after_seq >= head);
            let mut room = SyncedRoom { chat_room_id, seq, complete, epoch, first_seq: None };
            let mut left_of_room = left.min(PER_ROOM);
            while !room.complete && left_of_room > 0 {
                let limit = left_of_room.min(session.limits.parts);
                let missing = usize::try_from(head.0.saturating_sub(room.seq.0)).unwrap_or(usize::MAX);
                if !session.parts_are_written(limit.min(missing)).await {
                    return Ok(());
                }
                let window = Window::After(room.seq);
                let turn = self.turns.next(&session.identity).await?;
                let (mut messages, more) = store.messages.range(&room.chat_room_id, window, limit).await?;
                drop(turn);
                // What was saved since comes live.
                messages.retain(|message| message.seq <= head);
                left_of_room -= messages.len();
                left -= messages.len();
                // Places have no gap: what is missing between was removed by `message_ttl`.
                if let Some(first) = messages.first().filter(|first| first.seq > room.seq.next()) {
                    room.first_seq = Some(first.seq);
                }
                room.seq = messages.last().map_or(room.seq, |message| message.seq);
                room.complete = !more || messages.last().is_none_or(|message| message.seq == head);
                messages.into_iter().for_each(|message| self.send_message(message));
            }
            synced.push(room);
        }
        session.send_part(to_text(&ServerFrame::Synced { rooms: &synced }), None);
        Ok(())
    }

    fn send_message(&self, message: Message) {
        let is_own = message.sender_id == self.session.identity.user;
        let to_prove = if is_own { None } else { self.proofs.to_prove(&message) };
        let mut text = to_text(&News::Chat(message));
        // It may wait for long, and takes its capacity.
        text.shrink_to_fit();
        self.limits.answered_sync(&self.session.identity, 0, text.len());
        self.session.send_part(text, to_prove);
    }

    /// Those of these rooms that are the caller's, with their heads. Of rooms that the caller has named all must be.
    async fn with_heads(
        &self,
        wanted: Vec<SyncFrom>,
        are_named: bool,
    ) -> Result<Vec<(SyncFrom, Seq)>, Refusal> {
        let Self { session, store, .. } = self;
        let ids: Vec<RoomId> = wanted.iter().map(|from| from.chat_room_id.clone()).collect();
        let (mut wanted, mut own) = (wanted.into_iter(), Vec::with_capacity(ids.len()));
        for some in ids.chunks(LOOK_UP) {
            let _turn = self.turns.next(&session.identity).await?;
            let heads = store.messages.heads(some).await?;
            // Later than the heads, and not by an older state: nobody gets what was accepted after their removal.
            let rooms = store.rooms.current_since(some, store.clock.latest()).await?;
            let is_own = |room: Option<Arc<Room>>| room.is_some_and(|room| room.has(&session.identity.user));
            // The rest of the wanted comes last, since a zip takes from its first part once more than it has pairs.
            for ((head, room), from) in heads.into_iter().zip(rooms).zip(wanted.by_ref()) {
                match is_own(room) {
                    true => own.push((from, head)),
                    false if are_named => return Err(Refusal::RoomNotFound),
                    false => {}
                }
            }
        }
        Ok(own)
    }

    /// The positions of this session's device in its user's rooms.
    async fn of_device(&self) -> Result<Vec<SyncFrom>, Refusal> {
        let identity = &self.session.identity;
        let Some(device) = &identity.device else {
            return Err(Refusal::Invalid("SYNC without rooms needs a token with a device".to_owned()));
        };
        let _turn = self.turns.next(identity).await?;
        let positions = self.store.positions.of_device(&identity.user, device).await?;
        let from =
            |position: DevicePosition| SyncFrom { chat_room_id: position.room, after_seq: position.received };
        Ok(positions.into_iter().map(from).collect())
    }
}

/// Warns, once, that a client has more than there is: as a rule, of a restore without the next epoch.
fn warn_if_beyond(after: Seq, head: Seq, epoch: StoreEpoch) {
    static TOLD: Once = Once::new();
    if after > head {
        TOLD.call_once(|| {
            tracing::warn!(
                %epoch,
                "a client says that it has messages of a room that the store does not have. If the data was restored from a \
                 backup: stop Naru, run `naru restored`, and start it again (docs/RESTORE.md). Until then clients drop new \
                 messages as known ones"
            );
        });
    }
}

/// Each room once, from the earliest of its positions.
fn each_once(rooms: impl Iterator<Item = SyncFrom>) -> Vec<SyncFrom> {
    let (mut each, mut places) = (Vec::<SyncFrom>::new(), HashMap::new());
    for from in rooms {
        match places.entry(from.chat_room_id.clone()) {
            Entry::Occupied(place) => {
                let first: &mut SyncFrom = &mut each[*place.get()];
                first.after_seq = first.after_seq.min(from.after_seq);
            }
            Entry::Vacant(place) => {
                place.insert(each.len());
                each.push(from);
            }
        }
    }
    each
}
