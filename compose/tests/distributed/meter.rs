//! Counts what Naru and its services say to each other, by standing between them: MongoDB commands, AMQP frames, Redis
//! commands, and bytes. It reads the three protocols as far as counting takes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// Which protocol is read.
#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    /// OP_MSG: a command's name is the first key of its document.
    Mongodb,
    /// AMQP 0-9-1: a frame is counted by its type, a method frame by its class and method.
    Amqp,
    /// RESP: a command is counted by its name.
    Redis,
}

/// How often each thing was said, and its bytes, by name. MongoDB's and Redis's answers are not counted.
pub type Counts = BTreeMap<String, Count>;

#[derive(Clone, Copy, Default)]
pub struct Count {
    pub times: u64,
    pub bytes: u64,
}

/// A service with a meter in front of it. Dropped, it lets no byte through any more.
pub struct Metered {
    pub address: SocketAddr,
    counts: Arc<Mutex<Counts>>,
    _accepting: AbortOnDropHandle<()>,
}

impl Metered {
    /// Stands in front of the service at this address.
    pub async fn before(service: SocketAddr, protocol: Protocol) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let counts = Arc::new(Mutex::new(Counts::new()));
        let counting = counts.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                let Ok(server) = TcpStream::connect(service).await else { continue };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).expect("a socket takes options");
                }
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                // AMQP's broker sends on its own account; what the others send are answers.
                let answers = match protocol {
                    Protocol::Amqp => Reader::new(protocol),
                    Protocol::Mongodb | Protocol::Redis => Reader::default(),
                };
                tokio::spawn(pump(from_client, to_server, Reader::new(protocol), counting.clone()));
                tokio::spawn(pump(from_server, to_client, answers, counting.clone()));
            }
        });
        Self { address, counts, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// What was counted since the last call.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut reader: Reader,
    counts: Arc<Mutex<Counts>>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let messages = reader.read(&buffer[..read]);
        {
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, bytes) in messages {
                let count = counts.entry(name).or_default();
                count.times += 1;
                count.bytes += bytes as u64;
            }
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Cuts one direction of a connection into messages. Without a protocol it reads nothing.
#[derive(Default)]
struct Reader {
    protocol: Option<Protocol>,
    buffer: Vec<u8>,
}

impl Reader {
    fn new(protocol: Protocol) -> Self {
        Self { protocol: Some(protocol), buffer: Vec::new() }
    }

    /// The messages that these bytes complete: the name and the length of each.
    fn read(&mut self, bytes: &[u8]) -> Vec<(String, usize)> {
        let Some(protocol) = self.protocol else { return Vec::new() };
        self.buffer.extend_from_slice(bytes);
        let (mut messages, mut at) = (Vec::new(), 0);
        let cut = match protocol {
            Protocol::Mongodb => mongodb,
            Protocol::Amqp => amqp,
            Protocol::Redis => redis,
        };
        while let Some((length, name)) = cut(&self.buffer[at..]) {
            at += length;
            messages.extend(name.map(|name| (name, length)));
        }
        self.buffer.drain(..at);
        messages
    }
}

/// The first message's length, and its name.
fn mongodb(bytes: &[u8]) -> Option<(usize, Option<String>)> {
    let length = usize::try_from(u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let message = bytes.get(..length)?;
    // Header (16), flags (4), kind of the section (1), length of its document (4), type of its first element (1).
    let name = message.get(26..)?.split(|byte| *byte == 0).next()?;
    let command = String::from_utf8_lossy(name).into_owned();
    // The collection is the first element's value: its length (4), then the text.
    let value = &message[26 + name.len() + 1 + 4..];
    let collection =
        String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    let of_data =
        matches!(&*command, "insert" | "update" | "find" | "aggregate" | "findAndModify" | "delete");
    let name = if of_data {
        format!("{command} {}", collection.trim_matches(|c: char| !c.is_ascii_graphic()))
    } else {
        command
    };
    // What the driver says to the server by itself.
    let is_upkeep = matches!(&*name, "hello" | "isMaster" | "ismaster" | "ping" | "endSessions");
    Some((length, (!is_upkeep).then_some(name)))
}

fn amqp(bytes: &[u8]) -> Option<(usize, Option<String>)> {
    if bytes.starts_with(b"AMQP") {
        return (bytes.len() >= 8).then_some((8, None));
    }
    let size = usize::try_from(u32::from_be_bytes(bytes.get(3..7)?.try_into().ok()?)).ok()?;
    let length = 7 + size + 1;
    let frame = bytes.get(..length)?;
    let name = match frame[0] {
        1 => match frame[7..11] {
            [0, 60, 0, 40] => "basic.publish",
            [0, 60, 0, 60] => "basic.deliver",
            [0, 60, 0, 80] => "basic.ack",
            [0, 60, 0, 120] => "basic.nack",
            _ => "other methods",
        },
        2 => "header",
        3 => "body",
        // A heartbeat.
        _ => return Some((length, None)),
    };
    Some((length, Some(name.to_owned())))
}

fn redis(bytes: &[u8]) -> Option<(usize, Option<String>)> {
    let mut at = 0;
    let line = |at: &mut usize| {
        let rest = bytes.get(*at..)?;
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        *at += end + 2;
        std::str::from_utf8(&rest[..end]).ok()
    };
    let count: usize = line(&mut at)?.strip_prefix('*')?.parse().ok()?;
    let mut words = Vec::new();
    for _ in 0..count {
        let length: usize = line(&mut at)?.strip_prefix('$')?.parse().ok()?;
        words.push(String::from_utf8_lossy(bytes.get(at..at + length)?).into_owned());
        at += length + 2;
        bytes.get(at - 1)?;
    }
    Some((at, Some(named(&words))))
}

/// A command's name, with the part of Naru's that it concerns: `PUBLISH chat`, `MGET naru:presence`.
fn named(words: &[String]) -> String {
    let name = words[0].to_ascii_uppercase();
    // A gateway that receives its own signal.
    if name == "PUBLISH" && words.get(2).is_some_and(|payload| payload.contains("\"HEARTBEAT\"")) {
        return "PUBLISH heartbeat".to_owned();
    }
    let key = words.get(if name.starts_with("EVAL") { 3 } else { 1 });
    let part = key.filter(|key| key.starts_with("naru:") || key.starts_with("chat:")).map(|key| {
        let parts = if key.starts_with("naru:") { 2 } else { 1 };
        key.split(':').take(parts).collect::<Vec<_>>().join(":")
    });
    [Some(name), part].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_wherever_the_bytes_are() {
        let mut reader = Reader::new(Protocol::Redis);
        let presence = b"*2\r\n$4\r\nMGET\r\n$15\r\nnaru:presence:a\r\n";
        assert_eq!(reader.read(presence), [("MGET naru:presence".to_owned(), presence.len())]);
        let said = b"*3\r\n$7\r\nPUBLISH\r\n$8\r\nchat:A_B\r\n$2\r\n{}\r\n*1\r\n$4\r\nPING\r\n";
        let messages: Vec<_> = said.chunks(3).flat_map(|chunk| reader.read(chunk)).collect();
        assert_eq!(messages, [("PUBLISH chat".to_owned(), 39), ("PING".to_owned(), 14)]);
        let mut reader = Reader::new(Protocol::Amqp);
        let frame = [
            &b"AMQP\x00\x00\x09\x01"[..],
            &[1, 0, 1, 0, 0, 0, 4, 0, 60, 0, 80, 0xce],
            &[8, 0, 0, 0, 0, 0, 0, 0xce],
        ]
        .concat();
        let messages: Vec<_> = frame.chunks(5).flat_map(|chunk| reader.read(chunk)).collect();
        assert_eq!(messages, [("basic.ack".to_owned(), 12)]);
    }
}
