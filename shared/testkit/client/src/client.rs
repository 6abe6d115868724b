//! One WebSocket session for a test: a client that always reads, and keeps frames that the test hasn't asked for yet.

use std::{collections::VecDeque, fmt, sync::Arc};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{Empty, Join, Sink, empty, join, sink},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::{Mutex, mpsc, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{
            CloseFrame, Role,
            frame::{
                Frame,
                coding::{CloseCode, Data, OpCode},
            },
        },
    },
};
use tokio_util::{either::Either, task::AbortOnDropHandle};

use crate::{Connect, ConnectError, TEST_TIMEOUT, connect::small_buffers};

/// An item that a session receives.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// One JSON frame.
    Frame(Value),
    /// The end of the session; no frame follows it.
    Closed {
        /// The server's close code; 1005 for a close frame without one, 1006 for an end without a close frame.
        code: u16,
        /// The server's reason, or the error that ended the connection.
        reason: String,
    },
}

impl fmt::Display for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(frame) => write!(f, "{frame}"),
            Self::Closed { code, reason } => write!(f, "closed with {code} {reason:?}"),
        }
    }
}

/// How the client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Reads, and answers WebSocket pings as every client library does.
    Answering,
    /// Reads, but never answers a WebSocket ping: messages are delivered, but not proven.
    WithoutPongs,
    /// Reads nothing, as a phone without network. Frames that were read before stay available.
    Paused,
}

/// One session. Dropping it drops the TCP connection without a close frame, as [`Client::abort`] does.
///
/// Sending never fails here, because a successful write does not prove arrival either: the server's answers show what
/// became of a frame. Frames that a call skips while it looks for another stay for later calls, in order.
#[derive(Debug)]
pub struct Client {
    writer: SharedWriter,
    incoming: mpsc::UnboundedReceiver<Incoming>,
    skipped: VecDeque<Incoming>,
    reading: watch::Sender<Reading>,
    reader: AbortOnDropHandle<()>,
}

/// The only half of the session that writes to the network.
type Writer = WebSocketStream<Join<Empty, OwnedWriteHalf>>;
type SharedWriter = Arc<Mutex<Writer>>;

/// The half that reads; after the handshake its own writes (automatic pongs and close replies) are discarded, so that
/// [`read`] decides whether a ping is answered.
type Reader = WebSocketStream<Join<OwnedReadHalf, Either<OwnedWriteHalf, Sink>>>;

impl Client {
    /// Opens a session with `Authorization: Bearer`. See [`Connect`] for other ways.
    pub async fn connect(base_url: &str, token: &str) -> Result<Self, ConnectError> {
        Connect::to(base_url, token).client().await
    }

    pub(crate) async fn open(connect: &Connect) -> Result<Self, ConnectError> {
        let (read_half, write_half) = connect.tcp().await?.into_split();
        let mut reader = connect.handshake(join(read_half, Either::Left(write_half))).await?;
        let Either::Left(write_half) =
            std::mem::replace(reader.get_mut().writer_mut(), Either::Right(sink()))
        else {
            unreachable!("the handshake does not change its stream")
        };
        let writer = join(empty(), write_half);
        let writer = WebSocketStream::from_raw_socket(writer, Role::Client, Some(small_buffers())).await;
        let writer = Arc::new(Mutex::new(writer));

        let (sender, incoming) = mpsc::unbounded_channel();
        let (reading, behaviour) = watch::channel(Reading::Answering);
        let task = tokio::spawn(read(reader, writer.clone(), behaviour, sender));
        Ok(Self { writer, incoming, skipped: VecDeque::new(), reading, reader: AbortOnDropHandle::new(task) })
    }

    /// Sends any text, well-formed or not, as one text frame.
    pub async fn send_text(&mut self, text: &str) {
        self.send(Message::text(text)).await;
    }

    /// Sends a binary frame, which the contract forbids.
    pub async fn send_binary(&mut self, bytes: &[u8]) {
        self.send(Message::binary(bytes.to_vec())).await;
    }

    /// Sends any bytes as a text frame, invalid UTF-8 included.
    pub async fn send_raw_bytes(&mut self, bytes: &[u8]) {
        let payload = Bytes::copy_from_slice(bytes);
        self.send(Message::Frame(Frame::message(payload, OpCode::Data(Data::Text), true))).await;
    }

    pub async fn send_json(&mut self, frame: &Value) {
        self.send_text(&frame.to_string()).await;
    }

    pub async fn chat(&mut self, room: &str, content: &str, client_message_id: &str) {
        let frame = json!({"type": "CHAT", "chatRoomId": room, "content": content, "clientMessageId": client_message_id});
        self.send_json(&frame).await;
    }

    /// Changes how the client reads, from the next frame on.
    pub fn reading(&self, reading: Reading) {
        self.reading.send_replace(reading);
    }

    /// The next frame or the close; `None` after the end.
    pub async fn next(&mut self) -> Option<Incoming> {
        if let Some(skipped) = self.skipped.pop_front() {
            return Some(skipped);
        }
        let Ok(next) = timeout(TEST_TIMEOUT, self.incoming.recv()).await else {
            panic!("waited {TEST_TIMEOUT:?} for any frame: none came");
        };
        next
    }

    /// The next frame of this type.
    pub async fn expect(&mut self, frame_type: &str) -> Value {
        self.expect_where(frame_type, |_| true).await
    }

    /// The next frame of this type for which `wanted` holds.
    pub async fn expect_where(&mut self, frame_type: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.find(frame_type, |incoming| match incoming {
            Incoming::Frame(frame) if frame["type"] == frame_type && wanted(frame) => Some(frame.clone()),
            _ => None,
        })
        .await
    }

    /// The `WELCOME`, which must come first.
    pub async fn welcome(&mut self) -> Value {
        match self.next().await {
            Some(Incoming::Frame(frame)) if frame["type"] == "WELCOME" => frame,
            Some(other) => panic!("waited for WELCOME, got {other}"),
            None => panic!("waited for WELCOME: the session is over"),
        }
    }

    /// Waits for the end of the session: its close code and reason.
    pub async fn closed(&mut self) -> (u16, String) {
        self.find("the close", |incoming| match incoming {
            Incoming::Closed { code, reason } => Some((*code, reason.clone())),
            Incoming::Frame(_) => None,
        })
        .await
    }

    /// All frames that the server sent before it answered a `PING` sent now, and all skipped before, in order.
    pub async fn until_pong(&mut self) -> Vec<Value> {
        self.send_json(&json!({"type": "PING"})).await;
        self.expect("PONG").await;
        let frames = self.skipped.drain(..).map(|incoming| match incoming {
            Incoming::Frame(frame) => frame,
            Incoming::Closed { .. } => unreachable!("nothing comes after the end, so no PONG either"),
        });
        frames.collect()
    }

    /// Proves, without waiting for time to pass, that no frame of this type had been sent to this session when it
    /// answered a `PING`. Frames of other types stay for later calls.
    pub async fn quiet(&mut self, frame_type: &str) {
        let frames = self.until_pong().await;
        if let Some(unwanted) = frames.iter().find(|frame| frame["type"] == frame_type) {
            panic!("wanted no {frame_type}, got {unwanted}");
        }
        self.skipped.extend(frames.into_iter().map(Incoming::Frame));
    }

    /// Sends a close frame (1000) and waits until the server has answered it.
    pub async fn close(mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        self.send(Message::Close(Some(frame))).await;
        self.closed().await;
    }

    /// Drops the TCP connection without a close frame, as a phone does that loses its network.
    pub async fn abort(self) {
        self.reader.abort();
        // The reader task holds the other half of the connection, which closes when the task has ended.
        let _ = self.reader.await;
    }

    async fn send(&self, message: Message) {
        let _ = timeout(TEST_TIMEOUT, self.writer.lock().await.send(message))
            .await
            .expect("the server stopped reading: a frame could not be written in time");
    }

    /// Removes the first item that `pick` selects, skipped items first; the others stay in order.
    async fn find<T>(&mut self, what: &str, pick: impl Fn(&Incoming) -> Option<T>) -> T {
        let deadline = Instant::now() + TEST_TIMEOUT;
        for index in 0.. {
            if index == self.skipped.len() {
                match timeout_at(deadline, self.incoming.recv()).await {
                    Ok(Some(incoming)) => self.skipped.push_back(incoming),
                    Ok(None) => panic!("waited for {what}: the session is over; {}", self.instead()),
                    Err(_) => panic!("waited {TEST_TIMEOUT:?} for {what}; {}", self.instead()),
                }
            }
            if let Some(found) = pick(&self.skipped[index]) {
                self.skipped.remove(index);
                return found;
            }
        }
        unreachable!("the loop has no end of its own")
    }

    fn instead(&self) -> String {
        match self.skipped.len() {
            0 => "nothing came instead".to_owned(),
            _ => {
                self.skipped.iter().fold("instead came".to_owned(), |text, next| format!("{text}\n  {next}"))
            }
        }
    }
}

/// Reads until the end of the session, whether or not the test asks for frames.
async fn read(
    mut reader: Reader,
    writer: SharedWriter,
    mut reading: watch::Receiver<Reading>,
    incoming: mpsc::UnboundedSender<Incoming>,
) {
    let closed = |code, reason: &dyn fmt::Display| Incoming::Closed { code, reason: reason.to_string() };
    let end = loop {
        // An error means that the client was dropped.
        if reading.wait_for(|reading| *reading != Reading::Paused).await.is_err() {
            return;
        }
        let message = tokio::select! {
            biased;
            _ = reading.changed() => continue,
            message = reader.next() => message,
        };
        match message {
            Some(Ok(Message::Text(text))) => {
                let frame = serde_json::from_str(&text);
                let frame =
                    frame.unwrap_or_else(|error| panic!("the server sent {text:?}, not JSON: {error}"));
                let _ = incoming.send(Incoming::Frame(frame));
            }
            Some(Ok(Message::Ping(payload))) => {
                if *reading.borrow() == Reading::Answering {
                    let _ = writer.lock().await.send(Message::Pong(payload)).await;
                }
            }
            Some(Ok(Message::Close(frame))) => {
                let _ = writer.lock().await.send(Message::Close(frame.clone())).await;
                break frame.map_or(closed(1005, &""), |frame| closed(frame.code.into(), &frame.reason));
            }
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Binary(bytes))) => {
                panic!("the server sent {} binary bytes, not JSON", bytes.len())
            }
            Some(Err(error)) => break closed(1006, &error),
            None => break closed(1006, &"the connection ended"),
        }
    };
    let _ = incoming.send(end);
}

#[cfg(test)]
mod tests;
