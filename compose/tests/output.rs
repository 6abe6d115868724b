//! Processes whose output is not read: the reader of the pipe has ended, or has stopped reading.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use naru_client::{Answer, Client, Http, TEST_TIMEOUT, Webhook};
use rustix::process::Signal;
use serde_json::json;

use crate::programs::{Running, get, unused_address};
use crate::support::{SECRET, token_of};

/// The other end of the pipe that stdout and stderr are.
#[derive(Clone, Copy, Debug)]
enum Reader {
    Ended,
    Stopped,
}

#[tokio::test]
async fn without_a_reader_of_its_log_a_process_pushes_and_stops_when_told() {
    for (reader, signal) in
        [(Reader::Ended, Signal::TERM), (Reader::Ended, Signal::INT), (Reader::Stopped, Signal::TERM)]
    {
        pushes_and_stops(reader, signal).await;
    }
}

#[tokio::test]
async fn a_closed_terminal_drains_the_process() {
    // A terminal that closes takes the reader of the log with it.
    pushes_and_stops(Reader::Ended, Signal::HUP).await;
}

async fn pushes_and_stops(reader: Reader, signal: Signal) {
    let data = tempfile::tempdir().expect("a folder for the data");
    let mut backend = Webhook::start().await;
    let address = unused_address();
    let (reading, writing) = std::io::pipe().expect("a pipe");
    // Where the tests themselves are run by `nohup`, the program would rightly ignore SIGHUP.
    let mut command = Command::new("/usr/bin/env");
    command
        .args(["--default-signal=HUP", env!("CARGO_BIN_EXE_naru")])
        .env_clear()
        .env("NARU_LISTEN", address.to_string())
        .env("NARU_DATA_DIR", data.path())
        .env("NARU_JWT_SECRET", SECRET)
        .env("NARU_PUSH_WEBHOOK_URL", backend.url("/push"))
        .env("NARU_LOG", "debug")
        .stdout(Stdio::from(writing.try_clone().expect("another writer")))
        .stderr(Stdio::from(writing.try_clone().expect("another writer")));
    let kept_open = match reader {
        Reader::Ended => {
            drop(reading);
            None
        }
        Reader::Stopped => {
            fill(writing);
            Some(reading)
        }
    };
    let mut running = Running(command.spawn().expect("it can be run"));
    ready(address).await;

    let url = format!("http://{address}");
    let mut ada = Client::connect(&url, &token_of("A")).await.expect("a welcome");
    ada.welcome().await;
    let (status, _) =
        Http::new(&url, &token_of("A")).post("/api/rooms", json!({"memberIds": ["A", "B"]})).await;
    assert_eq!(status, 201);
    // The first push is refused for good, which is logged; the second one leaves nevertheless.
    backend.script([Answer::status(400)]);
    for number in ["1", "2"] {
        ada.chat("A_B", number, number).await;
        ada.expect("ACK").await;
        assert_eq!(backend.next().await.json["body"], number, "{reader:?}, {signal:?}");
    }
    let (_, metrics) = get(address, "/metrics").expect("an answer");
    let lost = metrics.lines().find_map(|line| line.strip_prefix("naru_log_lost_lines_total "));
    assert!(lost.is_some_and(|lost| lost != "0"), "{metrics}");

    running.signal(signal);
    let ended = tokio::task::spawn_blocking(move || running.0.wait().expect("a child"));
    let ended = tokio::time::timeout(TEST_TIMEOUT, ended).await.expect("it stops").expect("no panic");
    assert_eq!(ended.code(), Some(0), "{reader:?}, {signal:?}");
    drop(kept_open);
}

/// Leaves no space in a pipe.
fn fill(mut writing: std::io::PipeWriter) {
    use rustix::io::ioctl_fionbio;
    ioctl_fionbio(&writing, true).expect("a pipe can be non-blocking");
    while writing.write(&[b'.'; 4096]).is_ok() {}
    ioctl_fionbio(&writing, false).expect("a pipe can be blocking");
}

/// Waits until it serves.
pub async fn ready(address: SocketAddr) {
    let readiness = async {
        while !matches!(get(address, "/readyz"), Some((200, _))) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, readiness).await.expect("it serves");
}
