//! Naru's frames: JSON over WebSocket.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::ensure;
use serde::Deserialize;

use crate::load::{Chat, Dialect, Event, Session, number_in, websocket};

/// The parts of a frame that matter here, not copied.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Frame<'a> {
    r#type: &'a str,
    client_message_id: Option<&'a str>,
    code: Option<&'a str>,
}

struct Naru {
    run: Arc<str>,
    text: Vec<u8>,
    /// The room of each message without an answer.
    rooms: HashMap<usize, String>,
}

/// Opens a session, and waits for its `WELCOME`.
pub fn open(url: &str, token: &str, run: &Arc<str>, source: Option<IpAddr>) -> anyhow::Result<Session> {
    let mut socket = websocket::open(url, "/ws", &format!("Authorization: Bearer {token}\r\n"), source)?;
    let first = websocket::next_text(&mut socket)?;
    ensure!(first.contains("\"WELCOME\""), "wanted a WELCOME, got {first}");
    Ok(Session {
        socket,
        dialect: Box::new(Naru { run: run.clone(), text: Vec::new(), rooms: HashMap::new() }),
    })
}

impl Dialect for Naru {
    fn chat(&mut self, chat: Chat<'_>, output: &mut Vec<u8>) {
        self.rooms.insert(chat.number, chat.room.to_owned());
        write_chat(&self.run, chat, &mut self.text);
        websocket::text(&self.text, output);
    }

    fn take(&mut self, input: &[u8], output: &mut Vec<u8>, events: &mut Vec<Event>) -> anyhow::Result<usize> {
        let Self { run, rooms, .. } = self;
        websocket::take(input, output, events, |text, output, events| {
            let event = read(run, text);
            let room = match event {
                Some(Event::Acked(number) | Event::Error(_, Some(number))) => rooms.remove(&number),
                _ => None,
            };
            // A refused message is not sent again, and must not hold back those after it.
            if let (Some(Event::Error(_, Some(number))), Some(room)) = (&event, room) {
                websocket::text(drop_frame(run, *number, &room).as_bytes(), output);
            }
            events.extend(event);
        })
    }
}

fn write_chat(run: &str, Chat { number, room, content, .. }: Chat<'_>, text: &mut Vec<u8>) {
    text.clear();
    for part in [r#"{"type":"CHAT","chatRoomId":""#, room, r#"","content":""#, content] {
        text.extend_from_slice(part.as_bytes());
    }
    text.extend_from_slice(format!(r#"","clientMessageId":"{run}-{number}"}}"#).as_bytes());
}

fn drop_frame(run: &str, number: usize, room: &str) -> String {
    format!(r#"{{"type":"DROP","chatRoomId":"{room}","clientMessageId":"{run}-{number}"}}"#)
}

fn read(run: &str, text: &[u8]) -> Option<Event> {
    let Ok(frame) = serde_json::from_slice::<Frame<'_>>(text) else {
        return Some(Event::Error("unreadable frame".to_owned(), None));
    };
    let number = frame.client_message_id.and_then(|id| number_in(run, id));
    match (frame.r#type, number) {
        ("ACK", Some(number)) => Some(Event::Acked(number)),
        ("CHAT", number) => Some(Event::Delivered(number)),
        ("ERROR", number) => {
            Some(Event::Error(frame.code.unwrap_or("ERROR without code").to_owned(), number))
        }
        ("RESYNC", _) => Some(Event::Resync),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_and_written() {
        let mut text = Vec::new();
        let chat = Chat { number: 12, room: "A_B", receiver: "B", content: "xxx" };
        write_chat("run", chat, &mut text);
        let value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(
            value,
            serde_json::json!({"type": "CHAT", "chatRoomId": "A_B", "content": "xxx", "clientMessageId": "run-12"})
        );
        assert_eq!(read("run", &text), Some(Event::Delivered(Some(12))));
        assert_eq!(read("another", &text), Some(Event::Delivered(None)));
        let ack = br#"{"type":"ACK","clientMessageId":"run-7","id":"m","seq":1}"#;
        assert_eq!(read("run", ack), Some(Event::Acked(7)));
        let error = br#"{"type":"ERROR","code":"OVERLOADED","clientMessageId":"run-7"}"#;
        assert_eq!(read("run", error), Some(Event::Error("OVERLOADED".to_owned(), Some(7))));
        assert_eq!(read("run", br#"{"type":"PONG"}"#), None);
    }

    /// Naru refuses what follows a refused message in its room until that was sent again or dropped.
    #[test]
    fn a_refused_message_is_dropped() {
        let mut naru = Naru { run: "run".into(), text: Vec::new(), rooms: HashMap::new() };
        naru.chat(Chat { number: 7, room: "A_B", receiver: "B", content: "xxx" }, &mut Vec::new());
        let error = br#"{"type":"ERROR","code":"OVERLOADED","clientMessageId":"run-7"}"#;
        let frame = [&[0x81, error.len() as u8], &error[..]].concat();
        let (mut output, mut events, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        assert_eq!(naru.take(&frame, &mut output, &mut events).unwrap(), frame.len());
        let drop = br#"{"type":"DROP","chatRoomId":"A_B","clientMessageId":"run-7"}"#;
        websocket::text(drop, &mut wanted);
        assert_eq!(output, wanted);
        assert_eq!(events, [Event::Error("OVERLOADED".to_owned(), Some(7))]);
    }
}
