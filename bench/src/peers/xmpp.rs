//! XMPP over TCP (RFC 6120) with stream management (XEP-0198): each message is followed by `<r/>`, and the server's `<a/>`
//! counts the stanzas it has handled. ejabberd handles a session's stanzas in order, and has written a message to the
//! archive when it has handled it.

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use anyhow::ensure;

use crate::load::{Chat, Dialect, Event, Session, Socket, number_in};

/// The only virtual host of the server.
pub const HOST: &str = "localhost";

const STREAM: &str = "<stream:stream to='localhost' xmlns='jabber:client' \
     xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";
const BIND: &str = "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
     <resource>phone</resource></bind></iq>";
const ENABLE: &str = "<enable xmlns='urn:xmpp:sm:3'/><presence/>";
const ASK: &str = "<r xmlns='urn:xmpp:sm:3'/>";

struct Xmpp {
    run: Arc<str>,
    /// Messages sent and not reported as handled, in order.
    unhandled: VecDeque<usize>,
    /// How many stanzas the server has reported as handled.
    handled: u32,
    /// How many stanzas were received.
    received: u32,
}

/// Opens a session: a stream, a token as password, a resource, stream management, presence.
pub fn open(
    authority: &str,
    user: &str,
    token: &str,
    run: &Arc<str>,
    source: Option<IpAddr>,
) -> anyhow::Result<Session> {
    let mut socket = Socket::connect(authority, source)?;
    let password = base64(format!("\0{user}\0{token}").as_bytes());
    let auth = format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{password}</auth>");
    for (say, wanted) in [
        (STREAM, "</stream:features>"),
        (&auth, "<success"),
        (STREAM, "</stream:features>"),
        (BIND, "</iq>"),
        // The server answers the presence, and asks in turn; that is not waited for.
        (ENABLE, "<enabled "),
    ] {
        socket.input.clear();
        socket.write_all(say.as_bytes())?;
        until(&mut socket, wanted)?;
    }
    // Input after the answer is left for the dialect.
    let enabled = element(&socket.input)?;
    socket.input.drain(..enabled);
    let dialect = Xmpp { run: run.clone(), unhandled: VecDeque::new(), handled: 1, received: 0 };
    Ok(Session { socket, dialect: Box::new(dialect) })
}

fn until(socket: &mut Socket, wanted: &str) -> anyhow::Result<()> {
    loop {
        let text = String::from_utf8_lossy(&socket.input);
        ensure!(!text.contains("<failure"), "the session was refused: {text}");
        // The answer is complete.
        if text.contains(wanted) && text.ends_with('>') {
            return Ok(());
        }
        socket.read_more()?;
    }
}

impl Dialect for Xmpp {
    fn chat(&mut self, Chat { number, receiver, content, .. }: Chat<'_>, output: &mut Vec<u8>) {
        let head = format!("<message type='chat' to='{receiver}@{HOST}' id='{}-{number}'><body>", self.run);
        for part in [&head, content, "</body></message>", ASK] {
            output.extend_from_slice(part.as_bytes());
        }
        self.unhandled.push_back(number);
    }

    fn take(&mut self, input: &[u8], output: &mut Vec<u8>, events: &mut Vec<Event>) -> anyhow::Result<usize> {
        let length = element(input)?;
        let text = std::str::from_utf8(&input[..length])?;
        let tag = text.split_once('>').map_or(text, |(tag, _)| tag);
        match tag.split([' ', '/']).next().unwrap_or_default() {
            "<message" => {
                self.received += 1;
                events.extend(self.read_message(tag, text));
            }
            "<presence" | "<iq" => self.received += 1,
            "<r" => output
                .extend_from_slice(format!("<a xmlns='urn:xmpp:sm:3' h='{}'/>", self.received).as_bytes()),
            "<a" => {
                let handled: u32 = attribute(tag, "h").unwrap_or_default().parse()?;
                while self.handled < handled {
                    self.handled += 1;
                    events.extend(self.unhandled.pop_front().map(Event::Acked));
                }
            }
            "<stream:error" | "<" => events.push(Event::Closed("stream closed".to_owned())),
            _ => {}
        }
        Ok(length)
    }
}

impl Xmpp {
    fn read_message(&self, tag: &str, text: &str) -> impl Iterator<Item = Event> {
        let number = attribute(tag, "id").and_then(|id| number_in(&self.run, id));
        let is_error = attribute(tag, "type") == Some("error");
        let events = if is_error {
            [Some(Event::Error("message error".to_owned(), number)), None]
        } else {
            // The archive gives each message that it has taken an id (XEP-0359).
            let is_archived = text.contains("<stanza-id ");
            let not_archived = (!is_archived).then(|| Event::Error("not archived".to_owned(), None));
            [Some(Event::Delivered(number)), not_archived]
        };
        events.into_iter().flatten()
    }
}

/// The value of this attribute, which the server writes in single quotes.
fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let (_, value) = tag.split_once(&format!(" {name}='"))?;
    value.split_once('\'').map(|(value, _)| value)
}

/// How long the first element of a stream is; 0 while it is incomplete. The end of the stream is an element, too.
fn element(input: &[u8]) -> anyhow::Result<usize> {
    let mut depth = 0_u32;
    let mut position = 0;
    while let Some(open) = input[position..].iter().position(|byte| *byte == b'<') {
        let tag = &input[position + open..];
        // Inside of attributes the server writes `>` as `&gt;`.
        let Some(length) = tag.iter().position(|byte| *byte == b'>') else {
            return Ok(0);
        };
        position += open + length + 1;
        match (tag[1], tag[length - 1]) {
            (b'/', _) if depth == 0 => return Ok(position),
            (b'/', _) => depth -= 1,
            (b'?', _) => continue,
            (_, b'/') => {}
            _ => depth += 1,
        }
        if depth == 0 {
            return Ok(position);
        }
    }
    Ok(0)
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= group.len() { digit.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As ejabberd sends it.
    const MESSAGE: &str = "<message xml:lang='en' to='B@localhost' from='A@localhost/phone' type='chat' id='run-5'>\
         <archived by='B@localhost' id='1795703966940461' xmlns='urn:xmpp:mam:tmp'/>\
         <stanza-id by='B@localhost' id='1795703966940461' xmlns='urn:xmpp:sid:0'/><body>x &gt; y</body></message>";

    fn xmpp() -> Xmpp {
        Xmpp { run: "run".into(), unhandled: VecDeque::new(), handled: 1, received: 0 }
    }

    #[test]
    fn elements_are_taken_when_they_are_complete() {
        for end in 0..MESSAGE.len() {
            assert_eq!(element(&MESSAGE.as_bytes()[..end]).expect("legal"), 0, "{}", &MESSAGE[..end]);
        }
        let two = format!("{MESSAGE}<r xmlns='urn:xmpp:sm:3'/>");
        assert_eq!(element(two.as_bytes()).expect("legal"), MESSAGE.len());
        assert_eq!(element(b"<?xml version='1.0'?><a/><b/>").expect("legal"), 25);
        assert_eq!(element(b"</stream:stream>").expect("legal"), 16);
    }

    #[test]
    fn stanzas_are_read_and_written() {
        let (mut output, mut events, mut xmpp) = (Vec::new(), Vec::new(), xmpp());
        for number in [5, 7] {
            let chat = Chat { number, room: "", receiver: "B", content: "xxx" };
            xmpp.chat(chat, &mut output);
        }
        let first = "<message type='chat' to='B@localhost' id='run-5'><body>xxx</body></message>";
        assert!(output.starts_with(format!("{first}{ASK}").as_bytes()));
        output.clear();
        let not_archived = "<message type='chat' id='run-6'><body>xxx</body></message>";
        let refused = "<message type='error' id='run-7'><error/></message>";
        for input in [MESSAGE, not_archived, refused, "<a h='3' xmlns='urn:xmpp:sm:3'/>", ASK] {
            let length = xmpp.take(input.as_bytes(), &mut output, &mut events).expect("legal");
            assert_eq!(length, input.len());
        }
        assert_eq!(
            events,
            [
                Event::Delivered(Some(5)),
                Event::Delivered(Some(6)),
                Event::Error("not archived".to_owned(), None),
                Event::Error("message error".to_owned(), Some(7)),
                Event::Acked(5),
                Event::Acked(7),
            ]
        );
        assert_eq!(output, b"<a xmlns='urn:xmpp:sm:3' h='3'/>");
    }

    #[test]
    fn base64_is_as_in_its_rfc() {
        let pairs = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (bytes, text) in pairs {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
