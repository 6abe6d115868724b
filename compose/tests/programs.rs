//! The four workers as programs: what each does before its services answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// An address where nothing listens.
pub fn unused_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("an address")
}

/// What a GET of a page answers: its status and its body.
pub fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = BufReader::new(stream);
    let (mut status, mut rest) = (String::new(), String::new());
    answer.read_line(&mut status).ok()?;
    answer.read_to_string(&mut rest).ok()?;
    let status = status.split(' ').nth(1)?.parse().ok()?;
    Some((status, rest.split_once("\r\n\r\n")?.1.to_owned()))
}

/// Killed when the test is over.
pub struct Running(pub Child);

impl Running {
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id().cast_signed()).expect("a pid");
        kill_process(pid, signal).expect("it runs");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _waited_for = self.0.wait();
    }
}

#[test]
fn the_gateway_refuses_to_start_without_a_key_for_tokens_before_it_waits_for_anything() {
    let output = Command::new(env!("CARGO_BIN_EXE_gateway")).env_clear().output().expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.starts_with("gateway: no key for tokens: set one of jwt_secret"), "{said}");
}

#[test]
fn an_unknown_option_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_gateway")).env_clear().arg("--lisen=x").output();
    let output = output.expect("it can be run");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--listen"), "it says which one was meant");
}

#[test]
fn the_configuration_in_force_is_shown_without_passwords() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanout"));
    let command =
        command.env_clear().env("NARU_AMQP_URL", "amqp://naru:hunter2@broker/").arg("--print-config");
    let output = command.output().expect("it can be run");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success());
    assert!(shown.contains(r#"admin_listen = "127.0.0.1:9103" # from this binary's defaults"#), "{shown}");
    assert!(shown.contains(r#"amqp_url = "amqp://naru:***@broker/" # from NARU_AMQP_URL"#), "{shown}");
}

#[test]
fn the_notifier_refuses_a_webhook_that_cannot_be_called_before_it_waits_for_anything() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_notifier"));
    let output = command.env_clear().env("NARU_PUSH_WEBHOOK_URL", "backend:8080/push").output();
    let output = output.expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("notifier: `push_webhook_url` (from NARU_PUSH_WEBHOOK_URL): must be a URL that begins with http://"), "{said}");
}

#[test]
fn a_worker_waits_for_its_services_says_for_which_and_leaves_when_told() {
    let admin = unused_address();
    let mut command = Command::new(env!("CARGO_BIN_EXE_persister"));
    command.env_clear().env("NARU_ADMIN_LISTEN", admin.to_string());
    command.env("NARU_MONGODB_URL", format!("mongodb://{}/?serverSelectionTimeoutMS=200", unused_address()));
    command.env("NARU_AMQP_URL", format!("amqp://{}/%2f", unused_address()));
    command.env("NARU_REDIS_URL", format!("redis://{}/", unused_address()));
    let mut running = Running(command.stderr(Stdio::null()).spawn().expect("it can be run"));

    let begun = Instant::now();
    let (status, alive) = loop {
        match get(admin, "/healthz") {
            Some(answer) => break answer,
            None => assert!(begun.elapsed() < Duration::from_secs(10), "the admin address never answered"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!((status, &*alive), (200, "ok\n"));
    let (status, report) = get(admin, "/readyz").expect("an answer");
    assert_eq!(status, 503);
    for service in ["mongodb", "rabbitmq", "redis"] {
        assert!(report.contains(&format!(r#""{service}":"has not answered yet""#)), "{report}");
    }
    let (_, metrics) = get(admin, "/metrics").expect("an answer");
    assert!(metrics.contains("process_resident_memory_bytes"), "{metrics}");

    running.signal(Signal::TERM);
    assert!(running.0.wait().expect("a child").success());
}
