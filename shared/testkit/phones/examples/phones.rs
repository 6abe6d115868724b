//! The providers on fixed ports, until Ctrl-C: `cargo run -p naru-phones --example phones -- FOLDER`.

use std::net::Ipv4Addr;

use naru_phones::{Options, Phones, StartError};

#[tokio::main]
async fn main() -> Result<(), StartError> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "phones".to_owned());
    let options = Options {
        fcm: (Ipv4Addr::LOCALHOST, 8443).into(),
        apns: (Ipv4Addr::LOCALHOST, 2197).into(),
        admin: Some((Ipv4Addr::LOCALHOST, 8444).into()),
        ..Options::in_dir(dir)
    };
    let phones = Phones::start(options).await?;
    print!("{phones}");
    // Without signals there is nothing to wait for.
    let _no_signals = tokio::signal::ctrl_c().await;
    Ok(())
}
