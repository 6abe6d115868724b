//! Naru's frames: JSON over WebSocket.

use std::{net::IpAddr, sync::Arc};

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
}

/// Opens a session, and waits for its `WELCOME`.
pub fn open(url: &str, token: &str, run: &Arc<str>, source: Option<IpAddr>) -> anyhow::Result<Session> {
    let mut socket = websocket::open(url, "/ws", &format!("Authorization: Bearer {token}\r\n"), source)?;
    let first = websocket::next_text(&mut socket)?;
    ensure!(first.contains("\"WELCOME\""), "wanted a WELCOME, got {first}");
    Ok(Session { socket, dialect: Box::new(Naru { run: run.clone(), text: Vec::new() }) })
}

impl Dialect for Naru {
    fn chat(&mut self, chat: Chat<'_>, output: &mut Vec<u8>) {
        write_chat(&self.run, chat, &mut self.text);
        websocket::text(&self.text, output);
    }

    fn take(&mut self, input: &[u8], output: &mut Vec<u8>, events: &mut Vec<Event>) -> anyhow::Result<usize> {
        websocket::take(input, output, events, |text, _, events| events.extend(read(&self.run, text)))
    }
}

fn write_chat(run: &str, Chat { number, room, content, .. }: Chat<'_>, text: &mut Vec<u8>) {
    text.clear();
    for part in [r#"{"type":"CHAT","chatRoomId":""#, room, r#"","content":""#, content] {
        text.extend_from_slice(part.as_bytes());
    }
    text.extend_from_slice(format!(r#"","clientMessageId":"{run}-{number}"}}"#).as_bytes());
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
}
