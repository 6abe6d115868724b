//! The persister's door.

use std::process::ExitCode;

use naru_distributed::service;
use naru_runtime::Door;

const DOOR: Door = Door {
    name: "persister",
    about: "Gives every accepted message its place in the room, saves it and confirms the saved id.",
    overrides: &[("admin_listen", "127.0.0.1:9102")],
};

fn main() -> ExitCode {
    service::main(
        &DOOR,
        |_| Ok(()),
        async |service| {
            persister::run(service.engines.clone(), &service.metrics, &service.supervisor);
            Ok(None)
        },
    )
}
