//! A disk that takes nothing more. The system's limit on the size of files stands for it: it needs no rights, and fails the
//! same system calls.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use naru_client::{Answer, Client, Http, TEST_TIMEOUT, Webhook};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::output::ready;
use crate::programs::{Running, get, unused_address};
use crate::support::{SECRET, token_of};

/// From now on no file grows beyond this.
fn limit(running: &Running, bytes: Option<u64>) {
    let pid = Pid::from_raw(running.0.id().cast_signed()).expect("a pid");
    let maximum = getrlimit(Resource::Fsize).maximum;
    prlimit(Some(pid), Resource::Fsize, Rlimit { current: bytes, maximum }).expect("its own soft limit");
}

#[tokio::test]
async fn a_full_disk_is_told_costs_no_message_and_no_second_push_and_heals() {
    let data = tempfile::tempdir().expect("a folder for the data");
    let mut backend = Webhook::start().await;
    let address = unused_address();
    // The system would end a process that meets the limit, if this were not ignored.
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", r#"trap "" XFSZ; exec "$0""#, env!("CARGO_BIN_EXE_naru")])
        .env_clear()
        .env("NARU_LISTEN", address.to_string())
        .env("NARU_DATA_DIR", data.path())
        .env("NARU_JWT_SECRET", SECRET)
        .env("NARU_PUSH_WEBHOOK_URL", backend.url("/push"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut running = Running(command.spawn().expect("it can be run"));
    let log = BufReader::new(running.0.stderr.take().expect("it is piped"));
    let lines = Arc::new(AtomicUsize::new(0));
    let counted = lines.clone();
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            println!("{line}");
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    ready(address).await;
    let url = format!("http://{address}");
    let http = Http::new(&url, &token_of("A"));
    http.create_room(&["A", "B"]).await;
    let mut ada = Client::connect(&url, &token_of("A")).await.expect("a welcome");
    ada.welcome().await;
    // Its push is refused once, and sent again five seconds later, when its end can't be recorded.
    backend.script([Answer::status(503)]);
    ada.chat("A_B", "before", "a-1").await;
    assert_eq!(ada.expect("ACK").await["seq"], 1);
    backend.next().await;
    let not_pushed = async {
        while !get(address, "/metrics")
            .expect("metrics")
            .1
            .contains(r#"naru_notifier_retries_total{lane="webhook"} 1"#)
        {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(TEST_TIMEOUT, not_pushed).await.expect("it is retried");

    limit(&running, Some(4096));
    let before = lines.load(Ordering::Relaxed);
    ada.chat("A_B", "meanwhile", "a-2").await;
    let refused = ada.expect("ERROR").await;
    assert_eq!((&refused["code"], &refused["clientMessageId"]), (&json!("UNAVAILABLE"), &json!("a-2")));
    let (status, report) = get(address, "/readyz").expect("an answer");
    assert_eq!(status, 503);
    assert!(report.contains(r#""disk":"the disk "#), "{report}");
    for number in 0..500 {
        let device = json!({"platform": "fcm", "token": format!("token-{number}")});
        let (status, refused) = http.put(&format!("/api/devices/d{number}"), device).await;
        assert_eq!((status, &refused["code"]), (503, &json!("UNAVAILABLE")));
    }
    // What is there is read.
    assert_eq!(http.history("A_B", "afterSeq=0").await.len(), 1);
    assert_eq!(backend.next().await.json["body"], "before", "the second try");
    sleep(Duration::from_secs(3)).await;
    backend.none_waiting();
    let said = lines.load(Ordering::Relaxed) - before;
    println!("{said} lines in the log");
    assert!(said < 80, "{said} lines in the log");

    limit(&running, None);
    let healed = Instant::now();
    while get(address, "/readyz").expect("an answer").0 != 200 {
        assert!(healed.elapsed() < TEST_TIMEOUT, "it never heals");
        sleep(Duration::from_millis(50)).await;
    }
    println!("ready again after {:?}", healed.elapsed());
    ada.chat("A_B", "meanwhile", "a-2").await;
    assert_eq!(ada.expect("ACK").await["seq"], 2);
    let contents: Vec<_> = http.history("A_B", "afterSeq=0").await;
    assert_eq!(contents.len(), 2, "none lost, none twice: {contents:?}");
    assert_eq!(backend.next().await.json["body"], "meanwhile");
    backend.none_waiting();

    running.signal(Signal::TERM);
    let ended = tokio::task::spawn_blocking(move || running.0.wait().expect("a child"));
    let ended = timeout(TEST_TIMEOUT, ended).await.expect("it stops").expect("no panic");
    assert_eq!(ended.code(), Some(0));
}
