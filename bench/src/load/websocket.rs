//! As much of WebSocket (RFC 6455) as a client needs whose server sends each message in one frame.

use std::{net::IpAddr, ops::Range};

use anyhow::{Context as _, bail, ensure};

use crate::load::{Event, Socket};

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
/// Masks are there against proxies that mistake contents for HTTP; between two programs of one machine any mask will do.
const MASK: [u8; 4] = *b"naru";
/// The server's answer to this is not checked: its frames show whether it supports WebSocket.
const KEY: &str = "bmFydSBsb2FkIHRvb2whIQ==";
/// Larger than any frame here.
const MAX_PAYLOAD: u64 = 1 << 20;

/// Opens a WebSocket at `http://HOST:PORT` + `path`, with these headers (each ended by CRLF).
pub fn open(url: &str, path: &str, headers: &str, source: Option<IpAddr>) -> anyhow::Result<Socket> {
    let authority =
        url.strip_prefix("http://").context("a base URL starts with http://")?.trim_end_matches('/');
    let mut socket = Socket::connect(authority, source)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{headers}\r\n"
    );
    socket.write_all(request.as_bytes())?;
    let end = loop {
        if let Some(end) = socket.input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        socket.read_more()?;
    };
    let head = String::from_utf8_lossy(&socket.input[..end]).into_owned();
    ensure!(head.starts_with("HTTP/1.1 101 "), "the session was refused: {head}");
    socket.input.drain(..end);
    Ok(socket)
}

/// Waits for the next text, while a session is opened. Pings that come before it are answered.
pub fn next_text(socket: &mut Socket) -> anyhow::Result<String> {
    loop {
        let Some((code, payload)) = decode(&socket.input)? else {
            socket.read_more()?;
            continue;
        };
        let bytes = socket.input[payload.clone()].to_vec();
        socket.input.drain(..payload.end);
        match code {
            TEXT => return Ok(String::from_utf8(bytes)?),
            PING => {
                let mut pong = Vec::new();
                encode(PONG, &bytes, &mut pong);
                socket.write_all(&pong)?;
            }
            CLOSE => {
                bail!("the session was closed while it was opened: {:?}", String::from_utf8_lossy(&bytes))
            }
            _ => {}
        }
    }
}

/// Appends a text frame.
pub fn text(payload: &[u8], output: &mut Vec<u8>) {
    encode(TEXT, payload, output);
}

/// Takes the first frame of `input`, as [`super::Dialect::take`] does: texts go to `read`, pings are answered.
pub fn take(
    input: &[u8],
    output: &mut Vec<u8>,
    events: &mut Vec<Event>,
    read: impl FnOnce(&[u8], &mut Vec<u8>, &mut Vec<Event>),
) -> anyhow::Result<usize> {
    let Some((code, payload)) = decode(input)? else {
        return Ok(0);
    };
    let end = payload.end;
    let payload = &input[payload];
    match code {
        TEXT => read(payload, output, events),
        PING => encode(PONG, payload, output),
        CLOSE => {
            let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
            events.push(Event::Closed(format!("session closed with {code}")));
        }
        _ => {}
    }
    Ok(end)
}

fn encode(code: u8, payload: &[u8], output: &mut Vec<u8>) {
    output.push(FINAL | code);
    match payload.len() {
        length @ ..126 => output.push(MASKED | length as u8),
        length @ ..65536 => {
            output.push(MASKED | 126);
            output.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            output.push(MASKED | 127);
            output.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    output.extend_from_slice(&MASK);
    let start = output.len();
    output.extend_from_slice(payload);
    // Whole groups first, so that the compiler can take several bytes at a time.
    let mut groups = output[start..].chunks_exact_mut(MASK.len());
    for group in &mut groups {
        group.iter_mut().zip(MASK).for_each(|(byte, mask)| *byte ^= mask);
    }
    groups.into_remainder().iter_mut().zip(MASK).for_each(|(byte, mask)| *byte ^= mask);
}

/// The first frame's code, and where its payload is; `None` while it is incomplete.
fn decode(input: &[u8]) -> anyhow::Result<Option<(u8, Range<usize>)>> {
    let [first, second, rest @ ..] = input else {
        return Ok(None);
    };
    ensure!(
        first & FINAL != 0 && second & MASKED == 0,
        "a frame that no server here sends: {first:x} {second:x}"
    );
    let (length, start) = match second {
        126 => (rest.first_chunk().map(|length| u64::from(u16::from_be_bytes(*length))), 4),
        127 => (rest.first_chunk().map(|length| u64::from_be_bytes(*length)), 10),
        length => (Some(u64::from(*length)), 2),
    };
    let Some(length) = length else {
        return Ok(None);
    };
    ensure!(length <= MAX_PAYLOAD, "a frame of {length} bytes");
    let end = start + length as usize;
    Ok((end <= input.len()).then_some((first & 0x0f, start..end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame as a server sends it.
    fn unmasked(code: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        encode(code, payload, &mut frame);
        let start = frame.len() - payload.len();
        frame[1] &= !MASKED;
        frame.splice(start - 4.., payload.iter().copied());
        frame
    }

    #[test]
    fn a_frame_is_taken_when_all_of_it_is_there() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let frame = unmasked(TEXT, &payload);
            for part in [0, 1, 2, 3, frame.len() - 1] {
                assert_eq!(decode(&frame[..part.min(frame.len() - 1)]).expect("legal"), None);
            }
            let (code, range) = decode(&frame).expect("legal").expect("complete");
            assert_eq!((code, &frame[range]), (TEXT, &payload[..]));
        }
        assert!(decode(&[TEXT, 0]).is_err(), "a part of a message");
    }

    #[test]
    fn pings_are_answered_and_closes_are_told() {
        let (mut output, mut events) = (Vec::new(), Vec::new());
        let mut frames = unmasked(PING, b"12");
        frames.extend(unmasked(CLOSE, &1001_u16.to_be_bytes()));
        let first = take(&frames, &mut output, &mut events, |_, _, _| unreachable!()).expect("legal");
        take(&frames[first..], &mut output, &mut events, |_, _, _| unreachable!()).expect("legal");
        let masked = [b'1' ^ MASK[0], b'2' ^ MASK[1]];
        assert_eq!(output, [&[FINAL | PONG, MASKED | 2][..], &MASK, &masked].concat());
        assert_eq!(events, [Event::Closed("session closed with 1001".to_owned())]);
    }
}
