//! A real process gets real signals: the first is a request, the second is an order.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Tells this test, started by itself, to be the process that gets the signals.
const CHILD: &str = "NARU_TEST_SIGNAL_CHILD";

#[test]
fn the_first_signal_cancels_and_the_second_exits_with_130() {
    if std::env::var_os(CHILD).is_some() {
        return be_the_child();
    }
    let mut child = Command::new(std::env::current_exe().expect("this test has a path"))
        .args(["--exact", "the_first_signal_cancels_and_the_second_exits_with_130", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test can start itself");
    let stdout = child.stdout.take().expect("stdout is piped");
    let mut lines = BufReader::new(stdout).lines().map(|line| line.expect("the child prints text"));

    assert!(lines.any(|line| line.ends_with("ready")), "the child never became ready");
    send("TERM", &child);
    assert!(lines.any(|line| line == "cancelled"), "SIGTERM did not cancel the token");
    send("INT", &child);

    let output = child.wait_with_output().expect("the child leaves");
    assert_eq!(output.status.code(), Some(130));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("Ctrl-C again"), "it said on stderr: {stderr}");
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
