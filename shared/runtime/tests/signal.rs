//! A real process gets real signals: the first is a request, the second is an order.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// Tells this test, started by itself, to be the process that gets the signals.
const CHILD: &str = "NARU_TEST_SIGNAL_CHILD";

#[test]
fn the_first_signal_cancels_and_the_second_exits_with_130() {
    if std::env::var_os(CHILD).is_some() {
        return be_the_child();
    }
    for (first, between) in [("TERM", None), ("HUP", Some("HUP"))] {
        let (mut child, mut lines) = start("exec \"$0\" \"$@\"");
        send(first, &child);
        assert!(lines.any(|line| line == "cancelled"), "SIG{first} did not cancel the token");
        // A terminal that closes sends SIGHUP, and its shell does once more: that is no order to leave at once.
        between.into_iter().for_each(|signal| send(signal, &child));
        send("INT", &child);
        assert_eq!(child.wait().expect("the child leaves").code(), Some(130));
        let mut stderr = String::new();
        child.stderr.take().expect("stderr is piped").read_to_string(&mut stderr).expect("text");
        assert!(stderr.contains("Ctrl-C again"), "it said on stderr: {stderr}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_process_that_was_started_to_outlive_its_terminal_goes_on_ignoring_sighup() {
    let (mut child, mut lines) = start("trap '' HUP; exec \"$0\" \"$@\"");
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it runs");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a mask").trim();
    assert_eq!(u64::from_str_radix(ignored, 16).expect("hexadecimal") & 1, 1, "SIGHUP is not ignored");
    send("TERM", &child);
    assert!(lines.any(|line| line == "cancelled"), "SIGTERM did not cancel the token");
    child.kill().expect("it runs");
    child.wait().expect("the child leaves");
}

/// Starts this test as the process that gets the signals, through a shell; returns when it is ready.
fn start(script: &str) -> (Child, impl Iterator<Item = String>) {
    let mut child = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().expect("this test has a path"))
        .args(["--exact", "the_first_signal_cancels_and_the_second_exits_with_130", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test can start itself");
    let stdout = child.stdout.take().expect("stdout is piped");
    let mut lines = BufReader::new(stdout).lines().map(|line| line.expect("the child prints text"));
    assert!(lines.any(|line| line.ends_with("ready")), "the child never became ready");
    (child, lines)
}

fn be_the_child() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let shutdown = naru_runtime::signal::shutdown().expect("handlers can be registered");
        println!("ready");
        shutdown.cancelled().await;
        println!("cancelled");
        std::future::pending::<()>().await;
    });
}

fn send(signal: &str, child: &Child) {
    let status = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
    assert!(status.expect("kill(1) exists").success());
}
