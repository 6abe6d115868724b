//! One connection from `WELCOME` to its close: frames in, frames out, and a close frame with the reason.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, Sink, SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use naru_engines::store::UserRecord;
use naru_model::Timestamp;
use naru_model::frame::{ClientFrame, Dropped, RoomPosition, ServerFrame};
use naru_model::live::{LiveEvent, News};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error as WsError};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::gateway::Gateway;
use crate::positions::PositionKind;
use crate::recover;
use crate::refusal::{Close, Refusal, to_text};
use crate::rooms::FRESH;
use crate::session_state::Session;
use crate::sync::SyncAnswer;
use crate::token::Identity;

pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// How long a close may take: the frames left in the queue, the close frame, the peer's answer to it …
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);
/// … and while the gateway drains, which has a deadline.
const CLOSE_WITHIN_DRAIN: Duration = Duration::from_secs(5);
/// How long the bytes that a peer still sends are read and discarded after the last close frame.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);
/// A session whose message was refused for its rate is not read for so long …
const TOO_FAST_PAUSE: Duration = Duration::from_millis(10);
/// … and one whose other frames are, for twice as long each time, up to this: what it sends is worth nothing to anybody, and
/// to read and refuse it costs the others.
const MAX_TOO_FAST_PAUSE: Duration = Duration::from_millis(320);
/// A connection whose peer sent nothing after this many pings is closed.
const PINGS_UNANSWERED: u32 = 2;

/// Serves one connection to its end.
pub(crate) async fn serve(
    gateway: Arc<Gateway>,
    socket: Socket,
    identity: Identity,
    record: Arc<UserRecord>,
) {
    let requests = gateway.proofs.requests.clone();
    let session = Session::new(identity, record, gateway.queue_limits.clone(), requests);
    tracing::debug!(session = %session.id, user = %session.identity.user, "connected");
    gateway.telemetry.connections.inc();
    gateway.sessions.add(&session);
    // A panic ends its own session only, and that one leaves presence like all others. Its socket is dropped.
    let conversation = AssertUnwindSafe(converse(&gateway, &session, socket)).catch_unwind().await;
    if conversation.is_err() {
        session.close(Close::Panic);
    }

    // The session leaves presence, then it gets no more frames, then its queue is written: so a message that was
    // published for this session is either written, or the fanout finds that it reached no session.
    let reason = session.closed().await;
    if let Err(error) = gateway.presence.detach(&session).await {
        tracing::debug!(%error, "presence was not told of a disconnect; the lease will");
    }
    gateway.sessions.remove(&session);
    if let Ok((stream, mut sink)) = conversation {
        let within = if gateway.drain.has_begun() { CLOSE_WITHIN_DRAIN } else { CLOSE_TIMEOUT };
        let deadline = Instant::now() + within;
        if !matches!(
            reason,
            Close::SlowConsumer | Close::ByPeer | Close::TokenExpired | Close::Revoked | Close::Overloaded
        ) {
            let _out_of_time = timeout_at(deadline, write_the_rest(&session, &mut sink)).await;
        }
        session.give_up();
        if let Ok(mut socket) = stream.reunite(sink) {
            // Boxed, because every connection would keep memory for its end.
            let closing = close(&gateway, &session, &mut socket, reason).boxed();
            // A connection that has failed is only dropped.
            if let Ok(Ok(())) = timeout_at(deadline, closing).await {
                let _out_of_time = timeout(DISCARD_TIMEOUT, close_tcp(socket.get_mut())).await;
            }
        }
    }
    gateway.telemetry.connections.dec();
    gateway.telemetry.count_closed(reason);
    tracing::debug!(session = %session.id, reason = reason.as_str(), "disconnected");
}

/// Reads and writes frames until the session is to end.
async fn converse(
    gateway: &Gateway,
    session: &Arc<Session>,
    socket: Socket,
) -> (SplitStream<Socket>, SplitSink<Socket, Message>) {
    // A session that came while the gateway began to drain may have been added after all others were closed.
    if gateway.drain.has_begun() {
        session.close(Close::GoingAway);
    }
    // The store and presence may take their time; a session that is to end does not wait for them.
    let attaching = async {
        gateway.users.tell_new(session).await;
        gateway.presence.attach(session).await
    };
    let is_known = tokio::select! {
        is_known = attaching => is_known,
        _ = session.closed() => false,
    };
    // From `add` on live messages may come; no frame is written before this one.
    session.send_first(welcome(gateway, session));

    let (mut sink, mut stream) = socket.split();
    let reading = async { session.close(read(gateway, session, &mut stream).await) };
    let writing = async { session.close(write(session, &mut sink).await) };
    // Boxed, because hardly any session needs it.
    let attaching = OptionFuture::from(
        (!is_known).then(|| recover::attach_late(session, &gateway.presence, &gateway.telemetry).boxed()),
    );
    tokio::join!(reading, writing, attaching);
    (stream, sink)
}

fn welcome(gateway: &Gateway, session: &Session) -> String {
    to_text(&ServerFrame::Welcome {
        user_id: &session.identity.user,
        session_id: &session.id,
        server_time: Timestamp::now(),
        max_content_bytes: gateway.config.max_content_bytes,
        max_frame_bytes: gateway.config.max_frame_bytes,
        ping_seconds: gateway.config.ping_interval.0.as_secs(),
        epoch: gateway.epoch,
    })
}

/// Reads frames until the session is to end. What ends it by time is polled beside the frames: a frame whose answer waits for
/// its client (a `SYNC`) delays neither the token's expiry, nor pings, nor the drain.
async fn read(gateway: &Gateway, session: &Arc<Session>, stream: &mut SplitStream<Socket>) -> Close {
    if gateway.drain.has_begun() {
        session.drain();
    }
    let left = session.identity.expires_at.since(Timestamp::now());
    tokio::select! {
        reason = session.closed() => reason,
        () = tokio::time::sleep(left) => Close::TokenExpired,
        reason = ping(session, gateway.config.ping_interval.0) => reason,
        reason = read_frames(gateway, session, stream) => reason,
    }
}

/// Pings the client at intervals, until it gives no sign of life.
async fn ping(session: &Session, interval: Duration) -> Close {
    let mut pings = tokio::time::interval_at(Instant::now() + interval, interval);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pings.tick().await;
        if session.ping() > PINGS_UNANSWERED {
            return Close::Policy;
        }
    }
}

async fn read_frames(gateway: &Gateway, session: &Arc<Session>, stream: &mut SplitStream<Socket>) -> Close {
    let mut pause = TOO_FAST_PAUSE;
    loop {
        let mut is_too_fast = false;
        let message = tokio::select! {
            // When the gateway drains, frames that come now are not read: the client resends them to another gateway.
            () = session.stopped() => return session.closed().await,
            message = async {
                session.has_capacity().await;
                stream.next().await
            } => message,
        };
        session.is_alive();
        match message {
            Some(Ok(Message::Text(text))) => is_too_fast = receive(gateway, session, &text).await,
            Some(Ok(Message::Binary(_))) => {
                let limited = gateway.limits.frame_of(&session.identity, 1.0);
                is_too_fast = limited.is_err();
                let not_text = || Refusal::Invalid("frames are text, not binary".to_owned());
                refuse(gateway, session, &limited.err().unwrap_or_else(not_text));
            }
            Some(Ok(Message::Pong(payload))) => gateway.proofs.prove(session, session.pong(&payload)),
            // The library has answered it.
            Some(Ok(Message::Ping(_))) => {
                is_too_fast = gateway.limits.frame_of(&session.identity, 1.0).is_err();
            }
            Some(Ok(Message::Frame(_))) => {}
            Some(Ok(Message::Close(_))) | None => return Close::ByPeer,
            Some(Err(error)) => return reason(&error),
        }
        let was_too_fast = session.was_too_fast();
        if is_too_fast {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_TOO_FAST_PAUSE);
        } else if was_too_fast {
            tokio::time::sleep(TOO_FAST_PAUSE).await;
        } else {
            pause = (pause / 2).max(TOO_FAST_PAUSE);
        }
    }
}

/// Answers a frame that is not about a message with an error.
fn refuse(gateway: &Gateway, session: &Session, refusal: &Refusal) {
    gateway.telemetry.count_refused(refusal);
    session.refused(refusal);
    session.send(refusal.frame(None));
}

fn reason(error: &WsError) -> Close {
    match error {
        WsError::Capacity(CapacityError::MessageTooLong { .. }) => Close::TooBig,
        WsError::Utf8(_) => Close::NotUtf8,
        WsError::Protocol(
            tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => Close::ByPeer,
        WsError::Protocol(_) => Close::Protocol,
        _ => Close::ByPeer,
    }
}

/// Takes one frame. Whether it was refused because its user sends too many.
async fn receive(gateway: &Gateway, session: &Arc<Session>, text: &str) -> bool {
    let frame = ClientFrame::parse(text);
    let limited = gateway.limits.frame(&session.identity, &frame, text.len());
    let is_too_fast = limited.is_err();
    let frame = match frame {
        Ok(frame) => frame,
        Err(bad) => {
            let refusal = limited.err().unwrap_or_else(|| Refusal::from(&bad));
            gateway.telemetry.count_refused(&refusal);
            session.refused(&refusal);
            let ticket = (bad.is_chat && bad.client_message_id.is_none()).then(|| session.ticket());
            session.answer(ticket, refusal.frame(bad.client_message_id.as_ref()));
            session.wake();
            return is_too_fast;
        }
    };
    if let Err(refusal) = limited {
        refuse(gateway, session, &refusal);
        return is_too_fast;
    }
    let answered = match frame {
        ClientFrame::Chat(chat) => {
            gateway.acceptor.accept_frame(session, chat).await;
            Ok(())
        }
        ClientFrame::Drop(Dropped { chat_room_id, client_message_id }) => {
            session.forget(&chat_room_id, &client_message_id);
            Ok(())
        }
        // Boxed, because every connection would keep memory for its answer.
        ClientFrame::Sync(wanted) => match gateway.budget.admit() {
            Ok(()) => {
                let Gateway { engines, epoch, turns, limits, room_heads, proofs, .. } = gateway;
                let (store, epoch) = (&engines.store, *epoch);
                let answer = SyncAnswer { session, store, epoch, turns, limits, room_heads, proofs };
                answer.send(wanted).boxed().await
            }
            Err(refusal) => Err(refusal),
        },
        ClientFrame::Received(position) => advance(gateway, session, position, PositionKind::Received).await,
        ClientFrame::Read(position) => advance(gateway, session, position, PositionKind::Read).await,
        ClientFrame::Typing { chat_room_id } => typing(gateway, session, chat_room_id).await,
        ClientFrame::Ping => {
            session.send(to_text(&ServerFrame::Pong));
            Ok(())
        }
    };
    if let Err(refusal) = answered {
        // What is refused may have been looked up in the store, so it counts as much as any other frame.
        let _all_the_same = gateway.limits.frame_of(&session.identity, 1.0);
        refuse(gateway, session, &refusal);
    }
    false
}

/// Takes a position of the session's user in a room; it proves the room's messages up to it.
async fn advance(
    gateway: &Gateway,
    session: &Session,
    position: RoomPosition,
    kind: PositionKind,
) -> Result<(), Refusal> {
    gateway.proofs.prove(session, session.received(&position.chat_room_id, position.seq));
    gateway.positions.advance(session, position, kind).await
}

async fn typing(
    gateway: &Gateway,
    session: &Session,
    chat_room_id: naru_model::RoomId,
) -> Result<(), Refusal> {
    let user_id = &session.identity.user;
    let room = gateway.rooms.of_member_within(FRESH, &chat_room_id, user_id).await?;
    let room = room.ok_or(Refusal::RoomNotFound)?;
    if !gateway.limits.is_typing_told(user_id, &chat_room_id) {
        return Ok(());
    }
    let event = LiveEvent {
        recipients: room.member_ids.iter().filter(|member| *member != user_id).cloned().collect(),
        origin: Some(session.id.clone()),
        news: News::Typing { chat_room_id, user_id: user_id.clone() },
    };
    Ok(gateway.engines.live.publish(vec![event]).await?)
}

/// Writes the frames of the queue until the session is to end.
async fn write(session: &Arc<Session>, sink: &mut (impl Sink<Message, Error = WsError> + Unpin)) -> Close {
    let pump = async {
        loop {
            session.filled().await;
            if write_what_waits(session, sink).await.is_err() {
                return Close::ByPeer;
            }
        }
    };
    tokio::select! {
        reason = pump => reason,
        reason = session.closed() => reason,
    }
}

/// Writes all frames of the queue with one flush. A frame leaves the queue when the sink can take it at once: cancelled,
/// this loses none.
async fn write_what_waits(
    session: &Arc<Session>,
    sink: &mut (impl Sink<Message, Error = WsError> + Unpin),
) -> Result<(), WsError> {
    loop {
        poll_fn(|context| sink.poll_ready_unpin(context)).await?;
        let Some(message) = session.try_next() else { break };
        sink.start_send_unpin(message)?;
    }
    sink.flush().await
}

/// Writes the frames left in the queue, and a ping after them. (Those of a slow consumer, and of one whose token has ended, are
/// dropped: the store has them all.)
async fn write_the_rest(
    session: &Arc<Session>,
    sink: &mut (impl Sink<Message, Error = WsError> + Unpin),
) -> Result<(), WsError> {
    write_what_waits(session, sink).await?;
    session.ask_for_the_rest();
    write_what_waits(session, sink).await
}

/// Ends the WebSocket with a close frame. A peer that has sent its close frame gets the answer to it, with its own code.
async fn close(
    gateway: &Gateway,
    session: &Session,
    socket: &mut Socket,
    reason: Close,
) -> Result<(), WsError> {
    match reason.frame() {
        // The library has prepared the answer when it read the peer's close frame.
        None => socket.flush().await?,
        Some((code, reason)) => {
            let frame = CloseFrame { code: code.into(), reason: Utf8Bytes::from_static(reason) };
            socket.close(Some(frame)).await?;
        }
    }
    if !matches!(reason, Close::ByPeer | Close::TooBig | Close::NotUtf8 | Close::Protocol) {
        while let Some(message) = socket.next().await {
            if let Message::Pong(payload) = message? {
                gateway.proofs.prove(session, session.pong(&payload));
            }
        }
    }
    Ok(())
}

/// Closes this side of a TCP connection, which is the server's to do first (RFC 6455, 7.1.1), and discards what the peer sends
/// until it has closed its own: a socket that is closed with unread bytes is reset, and a reset may overtake the close frame.
async fn close_tcp(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let mut discarded = [0; 2048];
    if stream.shutdown().await.is_ok() {
        while let Ok(1..) = stream.read(&mut discarded).await {}
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use naru_model::{MessageId, RoomId, Seq};

    use super::*;
    use crate::proof_requests::ProofRequests;
    use crate::unproven::ToProve;

    /// The written frames, and a line for each flush.
    #[derive(Default)]
    struct Written(Vec<String>);

    impl Sink<Message> for Written {
        type Error = WsError;

        fn poll_ready(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), WsError>> {
            Poll::Ready(Ok(()))
        }

        fn start_send(mut self: std::pin::Pin<&mut Self>, message: Message) -> Result<(), WsError> {
            let text = if message.is_ping() { "ping".to_owned() } else { message.to_string() };
            self.0.push(text);
            Ok(())
        }

        fn poll_flush(mut self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), WsError>> {
            self.0.push("flush".to_owned());
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), WsError>> {
            Poll::Ready(Ok(()))
        }
    }

    fn session() -> Arc<Session> {
        Session::of_ada(8, ProofRequests::by_ping())
    }

    #[tokio::test]
    async fn a_burst_is_written_with_one_flush() {
        let (session, mut sink) = (session(), Written::default());
        ["one", "two", "three"].into_iter().for_each(|text| session.send(text.to_owned()));
        write_what_waits(&session, &mut sink).await.unwrap();
        assert_eq!(sink.0, ["one", "two", "three", "flush"]);
    }

    #[tokio::test]
    async fn the_last_writes_are_followed_by_a_ping() {
        let (session, mut sink) = (session(), Written::default());
        let (room, id) = (RoomId::new("r").unwrap(), MessageId::generate());
        let to_prove = ToProve { room, seq: Seq(1), id, timestamp: Timestamp::now() };
        session.send_message("one".into(), Some(to_prove));
        session.send("two".to_owned());
        write_the_rest(&session, &mut sink).await.unwrap();
        assert_eq!(sink.0, ["one", "two", "flush", "ping", "flush"]);
        write_the_rest(&session, &mut sink).await.unwrap();
        assert_eq!(sink.0[5..], ["flush", "flush"], "what a ping covers needs no other");
    }
}
