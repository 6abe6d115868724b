//! What is left when the process is gone: killed at any moment, stopped in order, or not let in at all.
//!
//! Read [`kills`] first. These tests run the real program as its own process, on a data directory that outlives it.

mod history;
mod kills;
mod load;
mod start;
mod stop;
mod stored;

use std::path::Path;
use std::process::{Output, Stdio};

use naru_client::{ServerProcess, TEST_TIMEOUT, Webhook};
use tokio::process::Command;

use crate::support::{SECRET, WEBHOOK_SECRET};

pub const NARU: &str = env!("CARGO_BIN_EXE_naru");

/// The environment of a server under load whose pushes go to `backend`.
fn environment(backend: &Webhook) -> Vec<(&'static str, String)> {
    vec![
        ("NARU_JWT_SECRET", SECRET.to_owned()),
        ("NARU_PUSH_WEBHOOK_URL", backend.url("/push")),
        ("NARU_PUSH_WEBHOOK_SECRET", WEBHOOK_SECRET.to_owned()),
        ("NARU_RATE_MESSAGES_PER_SECOND", "0".to_owned()),
        // Short enough that what is owed falls due while the test runs.
        ("NARU_DELIVERY_GRACE", "200ms".to_owned()),
    ]
}

/// Starts the program on this data, and waits until it serves.
async fn start(data: &Path, environment: &[(&'static str, String)]) -> ServerProcess {
    let variables: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = ServerProcess::start(NARU, data, &variables).await;
    server.unwrap_or_else(|error| panic!("the server does not start: {error}"))
}

/// The program with these arguments, and no `NARU_*` variables but these. Dropped while it runs, it is killed.
fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(NARU);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NARU_")) {
        command.env_remove(name);
    }
    command.args(arguments).env("NARU_LISTEN", "127.0.0.1:0").envs(environment.iter().copied());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs the program to its end.
pub async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let output = tokio::time::timeout(TEST_TIMEOUT, command(arguments, environment).output()).await;
    let output =
        output.unwrap_or_else(|_| panic!("naru {arguments:?} was still running after {TEST_TIMEOUT:?}"));
    output.expect("the program can be run")
}

/// Runs the program, which must refuse: what it says about it, in one line.
pub async fn refusal(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let Output { status, stdout, stderr } = run(arguments, environment).await;
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert_eq!((status.code(), &*stdout), (Some(1), ""), "naru {arguments:?} said on stderr: {stderr}");
    let line = stderr.lines().last().unwrap_or_default();
    assert!(line.starts_with("naru: "), "no line of its own: {stderr}");
    line.to_owned()
}
