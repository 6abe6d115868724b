//! The Autobahn test suite's cases of RFC 6455, run by PyPI's `kosoku`, against the gateway.
//!
//! The cases are for a server without tokens that echoes each message. So they go through an adapter: it adds the token to
//! the handshake, and puts the client's message in the place of the `ERROR` with which Naru answers it. All else that either
//! side sends passes unchanged: what the cases are about is the gateway's.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::support::{Naru, token_of};

/// The messages that the client has sent and that are not answered yet: the opcode and the payload of each.
type Sent = Arc<Mutex<VecDeque<(u8, Vec<u8>)>>>;

const TEXT: u8 = 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_autobahn_cases_pass_and_end_clean() {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/services/kosoku/bin/kosoku");
    assert!(program.exists(), "{} is missing: scripts/services install", program.display());
    let naru = Naru::start(&["--ping-interval", "1h"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let server = naru.url.strip_prefix("http://").expect("http").to_owned();
    let adapter = tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.expect("a connection");
            let server = TcpStream::connect(&server).await.expect("Naru");
            tokio::spawn(adapt(client, server));
        }
    });
    let reports = tempfile::tempdir().expect("a folder");
    let run = Command::new(program)
        // 9 times messages of up to 16 MB, above the limit of a frame. 12 and 13 are about compression, which Naru does not
        // offer (docs/decisions/0013).
        .args(["9.*", "12.*", "13.*"].iter().flat_map(|cases| ["--exclude", *cases]))
        .args(["--parallelism", "4", "--outdir", "reports", &address])
        .current_dir(&reports)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("kosoku runs");
    adapter.abort();
    let said = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    let index = std::fs::read(reports.path().join("reports/index.json")).expect("an index of the reports");
    let index: HashMap<String, HashMap<String, Value>> = serde_json::from_slice(&index).expect("JSON");
    let cases: Vec<(&String, &Value)> = index.values().flatten().collect();
    assert_eq!(cases.len(), 247, "{said}");
    for (case, report) in cases {
        let [behavior, close] =
            ["behavior", "behaviorClose"].map(|part| report[part].as_str().expect("a word"));
        // Informational: the specification leaves it open. Non-strict: what is not UTF-8 is noticed at the message's end, and
        // not in the middle, which conforms, too.
        assert!(matches!(behavior, "OK" | "INFORMATIONAL" | "NON-STRICT"), "{case}: {report}");
        assert!(matches!(close, "OK" | "INFORMATIONAL"), "{case}: {report}");
    }
    naru.stop().await;
}

async fn adapt(client: TcpStream, server: TcpStream) -> io::Result<()> {
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let sent = Sent::default();
    let echoing = tokio::spawn(echo(from_server, to_client, sent.clone()));
    let _broken_off = forward(from_client, to_server, &sent).await;
    echoing.await.expect("the adapter does not panic")
}

/// Forwards what the client sends, unchanged but for the token, and notes its messages.
async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    sent: &Sent,
) -> io::Result<()> {
    let mut unread = Vec::new();
    let request = loop {
        if let Some(request) = take_head(&mut unread) {
            break request;
        }
        if from.read_buf(&mut unread).await? == 0 {
            return Ok(());
        }
    };
    let lines = request.lines().filter(|line| !line.to_ascii_lowercase().starts_with("origin:"));
    let lines = lines.skip(1).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\r\n");
    let request = format!("GET /ws HTTP/1.1\r\nAuthorization: Bearer {}\r\n{lines}\r\n\r\n", token_of("A"));
    to.write_all(request.as_bytes()).await?;
    let mut message = None;
    let mut passing = unread.clone();
    loop {
        while let Some(frame) = take_frame(&mut unread) {
            if frame.opcode < 8 {
                let (_, payload) = message.get_or_insert((frame.opcode, Vec::new()));
                payload.extend(frame.payload);
                if frame.is_final {
                    sent.lock().expect("the other side has not panicked").extend(message.take());
                }
            }
        }
        to.write_all(&passing).await?;
        passing.clear();
        if from.read_buf(&mut passing).await? == 0 {
            return to.shutdown().await;
        }
        unread.extend_from_slice(&passing);
    }
}

/// Forwards what the server sends, with the client's own messages in the place of the answers to them.
async fn echo(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    sent: Sent,
) -> io::Result<()> {
    let mut unread = Vec::new();
    let mut is_open = false;
    loop {
        let mut passing = Vec::new();
        if !is_open && let Some(response) = take_head(&mut unread) {
            passing.extend(response.into_bytes());
            is_open = true;
        }
        while is_open && let Some(frame) = take_frame(&mut unread) {
            if frame.opcode != TEXT {
                passing.extend(frame.bytes);
            } else if frame.payload.starts_with(br#"{"type":"ERROR""#) {
                let (opcode, payload) =
                    sent.lock().expect("the other side has not panicked").pop_front().expect("a message");
                passing.extend(head(opcode, payload.len()));
                passing.extend(payload);
            } else {
                assert!(frame.payload.starts_with(br#"{"type":"WELCOME""#), "{:?}", frame.payload);
            }
        }
        to.write_all(&passing).await?;
        if from.read_buf(&mut unread).await? == 0 {
            return to.shutdown().await;
        }
    }
}

/// Takes a whole HTTP head off the front of what was read.
fn take_head(unread: &mut Vec<u8>) -> Option<String> {
    let end = unread.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    Some(String::from_utf8(unread.drain(..end).collect()).expect("a head is text"))
}

struct WsFrame {
    opcode: u8,
    is_final: bool,
    payload: Vec<u8>,
    bytes: Vec<u8>,
}

/// Takes a whole WebSocket frame off the front of what was read.
fn take_frame(unread: &mut Vec<u8>) -> Option<WsFrame> {
    let [first, second, rest @ ..] = unread.as_slice() else { return None };
    let (length, after) = match second & 0x7f {
        126 => (u16::from_be_bytes(*rest.first_chunk()?).into(), 4),
        127 => (usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()?, 10),
        short => (usize::from(short), 2),
    };
    let mask: Option<[u8; 4]> = match second & 0x80 {
        0 => None,
        _ => Some(*unread.get(after..)?.first_chunk()?),
    };
    let start = after + if mask.is_some() { 4 } else { 0 };
    let end = start.checked_add(length).filter(|end| *end <= unread.len())?;
    let (opcode, is_final) = (first & 0x0f, first & 0x80 != 0);
    let bytes: Vec<u8> = unread.drain(..end).collect();
    let mut payload = bytes[start..].to_vec();
    if let Some(mask) = mask {
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    }
    Some(WsFrame { opcode, is_final, payload, bytes })
}

/// The head of an unmasked frame.
fn head(opcode: u8, length: usize) -> Vec<u8> {
    let mut head = vec![0x80 | opcode];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => head.push(short),
        (_, Ok(middle)) => {
            head.push(126);
            head.extend(middle.to_be_bytes());
        }
        _ => {
            head.push(127);
            head.extend((length as u64).to_be_bytes());
        }
    }
    head
}
