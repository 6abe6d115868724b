//! The fanout as a program.

use std::process::Command;

#[test]
fn it_shows_what_is_in_force_and_hides_passwords() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanout"));
    let command =
        command.env_clear().env("NARU_AMQP_URL", "amqp://naru:hunter2@broker/").arg("--print-config");
    let output = command.output().expect("it can be run");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success());
    assert!(shown.contains(r#"admin_listen = "127.0.0.1:9103" # from this binary's defaults"#), "{shown}");
    assert!(shown.contains(r#"amqp_url = "amqp://naru:***@broker/" # from NARU_AMQP_URL"#), "{shown}");
}
