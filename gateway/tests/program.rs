//! The gateway as a program.

use std::process::Command;

#[test]
fn it_refuses_to_start_without_a_key_for_tokens_before_it_waits_for_anything() {
    let output = Command::new(env!("CARGO_BIN_EXE_gateway")).env_clear().output().expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.starts_with("gateway: no key for tokens: set one of jwt_secret"), "{said}");
}

#[test]
fn it_refuses_what_is_no_key_of_the_configuration() {
    let output = Command::new(env!("CARGO_BIN_EXE_gateway")).env_clear().arg("--lisen=x").output();
    let output = output.expect("it can be run");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--listen"), "it says which one was meant");
}
