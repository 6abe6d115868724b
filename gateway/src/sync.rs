//! A client sends its positions and gets exactly the messages after them, from the store, whatever their age.

use std::sync::Arc;

use naru_engines::store::{Store, Window};
use naru_model::RoomId;
use naru_model::frame::{Object, ServerFrame, Sync, SyncFrom, SyncedRoom};
use naru_model::live::News;
use tokio::sync::Semaphore;

use crate::proof::Proofs;
use crate::refusal::{Refusal, to_text};
use crate::room_heads::RoomHeads;
use crate::session_state::Session;
use crate::unproven::ToProve;

/// How many messages one answer holds of one room …
const PER_ROOM: usize = 200;
/// … and in all; the rest is asked for again.
const IN_ALL: usize = 1_000;
/// An answer may fill one part in this many of a session's queue: live messages need the rest.
const SHARE: usize = 4;

/// Answers a `SYNC`: the messages in order, then `SYNCED`.
///
/// # Errors
/// `ROOM_NOT_FOUND` when any of the rooms is not the caller's; then no message is sent.
pub(crate) async fn answer(
    session: &Session,
    wanted: Sync,
    store: &Store,
    room_heads: &RoomHeads,
    proofs: &Proofs,
) -> Result<(), Refusal> {
    let wanted = match wanted.rooms {
        Some(rooms) => {
            let rooms: Vec<SyncFrom> = rooms.into_iter().map(|Object(from)| from).collect();
            let ids: Vec<RoomId> = rooms.iter().map(|from| from.chat_room_id.clone()).collect();
            let found = store.rooms.current(&ids).await?;
            let are_own =
                found.iter().all(|room| room.as_ref().is_some_and(|room| room.has(&session.identity.user)));
            if !are_own {
                return Err(Refusal::RoomNotFound);
            }
            rooms
        }
        None => of_device(store, session).await?,
    };
    let ids: Vec<RoomId> = wanted.iter().map(|from| from.chat_room_id.clone()).collect();
    let heads = store.messages.heads(&ids).await?;
    session.is_known_in(room_heads.learn(ids.iter().zip(heads.iter().copied())));
    let share = Arc::new(Semaphore::new((session.places / SHARE).max(1)));
    let mut left = IN_ALL;
    let mut synced = Vec::with_capacity(wanted.len());
    for (SyncFrom { chat_room_id, after_seq }, head) in wanted.into_iter().zip(heads) {
        let mut room = SyncedRoom { chat_room_id, seq: after_seq.min(head), complete: true };
        if after_seq < head {
            let limit = left.min(PER_ROOM);
            let window = Window::After(after_seq);
            let (messages, more) = match limit {
                0 => (Vec::new(), true),
                limit => store.messages.range(&room.chat_room_id, window, limit).await?,
            };
            left -= messages.len();
            room.seq = messages.last().map_or(after_seq, |message| message.seq);
            room.complete = !more;
            for message in messages {
                let is_own = message.sender_id == session.identity.user;
                let to_prove = if is_own { None } else { proofs.to_prove(&message) };
                if !in_turn(session, &share, to_text(&News::Chat(message)), to_prove).await {
                    return Ok(());
                }
            }
        }
        synced.push(room);
    }
    in_turn(session, &share, to_text(&ServerFrame::Synced { rooms: &synced }), None).await;
    Ok(())
}

/// Sends one frame of an answer when its share of the queue has room; `false` when the session ends before.
async fn in_turn(session: &Session, share: &Arc<Semaphore>, text: String, to_prove: Option<ToProve>) -> bool {
    tokio::select! {
        permit = share.clone().acquire_owned() => match permit {
            Ok(permit) => {
                session.send_in_turn(text, to_prove, permit);
                true
            }
            Err(_) => false,
        },
        () = session.stopped() => false,
    }
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
