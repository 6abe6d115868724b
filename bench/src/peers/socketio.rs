//! Socket.IO's packets (protocol 5) in Engine.IO's (protocol 4), over WebSocket from the first request on.

use std::{net::IpAddr, sync::Arc};

use anyhow::ensure;
use serde::Deserialize;

use crate::load::{Chat, Dialect, Event, Session, number_in, websocket};

const PATH: &str = "/socket.io/?EIO=4&transport=websocket";

/// The one argument of a `chat` event.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument<'a> {
    client_message_id: &'a str,
}

/// The one argument of an acknowledgement: an id and a place, or an error.
#[derive(Deserialize)]
struct Answer<'a> {
    code: Option<&'a str>,
}

struct SocketIo {
    run: Arc<str>,
    text: Vec<u8>,
}

/// Opens a session: the server has added it to its rooms when it confirms the connection.
pub fn open(url: &str, token: &str, run: &Arc<str>, source: Option<IpAddr>) -> anyhow::Result<Session> {
    let mut socket = websocket::open(url, PATH, "", source)?;
    let first = websocket::next_text(&mut socket)?;
    ensure!(first.starts_with("0{"), "wanted Engine.IO's open packet, got {first}");
    let mut connect = Vec::new();
    websocket::text(format!(r#"40{{"token":"{token}"}}"#).as_bytes(), &mut connect);
    socket.write_all(&connect)?;
    let second = websocket::next_text(&mut socket)?;
    ensure!(second.starts_with("40{"), "the session was refused: {second}");
    Ok(Session { socket, dialect: Box::new(SocketIo { run: run.clone(), text: Vec::new() }) })
}

impl Dialect for SocketIo {
    fn chat(&mut self, chat: Chat<'_>, output: &mut Vec<u8>) {
        write_chat(&self.run, chat, &mut self.text);
        websocket::text(&self.text, output);
    }

    fn take(&mut self, input: &[u8], output: &mut Vec<u8>, events: &mut Vec<Event>) -> anyhow::Result<usize> {
        websocket::take(input, output, events, |text, output, events| match text {
            b"2" => websocket::text(b"3", output),
            _ => events.extend(read(&self.run, text)),
        })
    }
}

/// The message's number is the acknowledgement's, too, which need only be unique in its session.
fn write_chat(run: &str, Chat { number, room, content, .. }: Chat<'_>, text: &mut Vec<u8>) {
    text.clear();
    text.extend_from_slice(format!(r#"42{number}["chat",{{"room":""#).as_bytes());
    for part in [room, r#"","content":""#, content] {
        text.extend_from_slice(part.as_bytes());
    }
    text.extend_from_slice(format!(r#"","clientMessageId":"{run}-{number}"}}]"#).as_bytes());
}

fn read(run: &str, text: &[u8]) -> Option<Event> {
    let unreadable = || Some(Event::Error("unreadable packet".to_owned(), None));
    match text {
        [b'4', b'2', packet @ ..] => match serde_json::from_slice::<(&str, Argument<'_>)>(packet) {
            Ok(("chat", argument)) => Some(Event::Delivered(number_in(run, argument.client_message_id))),
            _ => unreadable(),
        },
        [b'4', b'3', packet @ ..] => {
            let digits = packet.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let number = std::str::from_utf8(&packet[..digits]).ok().and_then(|number| number.parse().ok());
            match (number, serde_json::from_slice::<[Answer<'_>; 1]>(&packet[digits..])) {
                (Some(number), Ok([Answer { code: None }])) => Some(Event::Acked(number)),
                (number, Ok([Answer { code: Some(code) }])) => Some(Event::Error(code.to_owned(), number)),
                _ => unreadable(),
            }
        }
        b"1" | [b'4', b'1', ..] => Some(Event::Closed("session closed".to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_and_written() {
        let mut text = Vec::new();
        write_chat("run", Chat { number: 12, room: "A_B", receiver: "B", content: "xxx" }, &mut text);
        let wanted = r#"4212["chat",{"room":"A_B","content":"xxx","clientMessageId":"run-12"}]"#;
        assert_eq!(String::from_utf8_lossy(&text), wanted);
        let event = br#"42["chat",{"id":"1","seq":"2","room":"A_B","clientMessageId":"run-12"}]"#;
        assert_eq!(read("run", event), Some(Event::Delivered(Some(12))));
        assert_eq!(read("run", br#"4312[{"id":"1","seq":"2"}]"#), Some(Event::Acked(12)));
        let refused = Event::Error("UNAVAILABLE".to_owned(), Some(12));
        assert_eq!(read("run", br#"4312[{"code":"UNAVAILABLE"}]"#), Some(refused));
        assert_eq!(read("run", b"41"), Some(Event::Closed("session closed".to_owned())));
        assert_eq!(read("run", b"6"), None);
        assert!(matches!(read("run", b"43[]"), Some(Event::Error(..))));
    }
}
