//! The notifier as a program.

use std::process::Command;

#[test]
fn it_refuses_a_webhook_that_can_not_be_called_before_it_waits_for_anything() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_notifier"));
    let output = command.env_clear().env("NARU_PUSH_WEBHOOK_URL", "backend:8080/push").output();
    let output = output.expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("notifier: `push_webhook_url` is not an http or https URL"), "{said}");
}
