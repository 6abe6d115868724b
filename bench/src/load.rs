//! The load generator of a measured run: one thread and as few system calls per message as possible, because the tool
//! shares the machine with the measured system.

pub mod driver;
pub mod socket;
pub mod websocket;

pub use driver::{Driver, Room};
pub use socket::Socket;

/// A message as it is to be written.
#[derive(Debug, Clone, Copy)]
pub struct Chat<'a> {
    /// Its number in the run.
    pub number: usize,
    /// Its room's id.
    pub room: &'a str,
    /// The user who is to get it.
    pub receiver: &'a str,
    /// Its text, which needs no escaping in JSON or XML.
    pub content: &'a str,
}

/// An event of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This message is confirmed.
    Acked(usize),
    /// A message came; `None` if it is of another run.
    Delivered(Option<usize>),
    /// A refusal, or an unexpected frame.
    Error(String, Option<usize>),
    /// Live delivery was interrupted.
    Resync,
    /// The server ended the session.
    Closed(String),
}

/// A system's protocol, after a session is open.
pub trait Dialect: Send {
    /// Appends this message's frames to `output`.
    fn chat(&mut self, chat: Chat<'_>, output: &mut Vec<u8>);

    /// Takes the first frame of `input`: returns its length, or 0 while it is incomplete. Its events are added to `events`,
    /// and an answer to it, if any, to `output`.
    ///
    /// # Errors
    /// When the input is not what this protocol may send; the session can't go on.
    fn take(&mut self, input: &[u8], output: &mut Vec<u8>, events: &mut Vec<Event>) -> anyhow::Result<usize>;
}

/// An open session.
pub struct Session {
    pub socket: Socket,
    pub dialect: Box<dyn Dialect>,
}

/// The number in a `clientMessageId` of this run.
pub fn number_in(run: &str, client_message_id: &str) -> Option<usize> {
    client_message_id.strip_prefix(run)?.strip_prefix('-')?.parse().ok()
}
