//! A client sends its positions and gets exactly the messages after them, from the store, whatever their age.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Once};

use naru_engines::store::{Store, Window};
use naru_model::frame::{Object, ServerFrame, Sync, SyncFrom, SyncedRoom};
use naru_model::live::News;
use naru_model::{Room, RoomId, Seq, StoreEpoch};

use crate::proof::Proofs;
use crate::refusal::{Refusal, to_text};
use crate::room_heads::RoomHeads;
use crate::session_state::Session;

/// How many messages one answer holds of one room …
const PER_ROOM: usize = 200;
/// … and in all; the rest is asked for again.
const IN_ALL: usize = 1_000;

/// Answers a `SYNC`: the messages in order, then `SYNCED`. Messages are read from the store when the session's queue has a place
/// for them, so a client that does not read has few in memory.
///
/// # Errors
/// `ROOM_NOT_FOUND` when any of the rooms is not the caller's; then no message is sent.
pub(crate) async fn answer(
    session: &Session,
    wanted: Sync,
    store: &Store,
    epoch: StoreEpoch,
    room_heads: &RoomHeads,
    proofs: &Proofs,
) -> Result<(), Refusal> {
    let (mut wanted, are_named) = match wanted.rooms {
        Some(rooms) => (each_once(rooms.into_iter().map(|Object(from)| from)), true),
        None => (of_device(store, session).await?, false),
    };
    let ids: Vec<RoomId> = wanted.iter().map(|from| from.chat_room_id.clone()).collect();
    let mut heads = store.messages.heads(&ids).await?;
    // Later than the heads, and not by an older state: nobody gets what was accepted after their removal.
    let rooms = store.rooms.current_since(&ids, store.clock.latest()).await?;
    let is_own = |room: Option<Arc<Room>>| room.is_some_and(|room| room.has(&session.identity.user));
    let are_own: Vec<bool> = rooms.into_iter().map(is_own).collect();
    if are_own.contains(&false) {
        if are_named {
            return Err(Refusal::RoomNotFound);
        }
        let mut own = are_own.iter();
        wanted.retain(|_| own.next() == Some(&true));
        let mut own = are_own.iter();
        heads.retain(|_| own.next() == Some(&true));
    }
    let ids: Vec<RoomId> = wanted.iter().map(|from| from.chat_room_id.clone()).collect();
    session.is_known_in(room_heads.learn(ids.iter().zip(heads.iter().copied())));
    let mut left = IN_ALL;
    let mut synced = Vec::with_capacity(wanted.len());
    for (SyncFrom { chat_room_id, after_seq }, head) in wanted.into_iter().zip(heads) {
        warn_if_beyond(after_seq, head, epoch);
        let (seq, complete) = (after_seq.min(head), after_seq >= head);
        let mut room = SyncedRoom { chat_room_id, seq, complete, epoch };
        let mut left_of_room = left.min(PER_ROOM);
        while !room.complete && left_of_room > 0 {
            let limit = left_of_room.min(session.limits.parts);
            let missing = usize::try_from(head.0.saturating_sub(room.seq.0)).unwrap_or(usize::MAX);
            if !session.parts_are_written(limit.min(missing)).await {
                return Ok(());
            }
            let window = Window::After(room.seq);
            let (mut messages, more) = store.messages.range(&room.chat_room_id, window, limit).await?;
            // What was saved since comes live.
            messages.retain(|message| message.seq <= head);
            left_of_room -= messages.len();
            left -= messages.len();
            room.seq = messages.last().map_or(room.seq, |message| message.seq);
            room.complete = !more || messages.last().is_none_or(|message| message.seq == head);
            for message in messages {
                let is_own = message.sender_id == session.identity.user;
                let to_prove = if is_own { None } else { proofs.to_prove(&message) };
                session.send_part(to_text(&News::Chat(message)), to_prove);
            }
        }
        synced.push(room);
    }
    session.send_part(to_text(&ServerFrame::Synced { rooms: &synced }), None);
    Ok(())
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

/// The positions of this session's device in its user's rooms.
async fn of_device(store: &Store, session: &Session) -> Result<Vec<SyncFrom>, Refusal> {
    let Some(device) = &session.identity.device else {
        return Err(Refusal::Invalid("SYNC without rooms needs a token with a device".to_owned()));
    };
    let positions = store.positions.of_device(&session.identity.user, device).await?;
    Ok(positions
        .into_iter()
        .map(|position| SyncFrom { chat_room_id: position.room, after_seq: position.received })
        .collect())
}
