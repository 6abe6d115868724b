//! What lies in the folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use naru_phones::{KEY_ID, Options, Phones, StartError};
use serde_json::Value;

use crate::fixture::{FCM_TOKEN, FILES, Fixture, client, notification, soon};

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).expect("a file")
}

fn account(dir: &Path) -> Value {
    serde_json::from_str(&read(dir, "service-account.json")).expect("JSON")
}

#[tokio::test]
async fn private_files_are_the_owners() {
    let fixture = Fixture::with_new_keys().await;
    let mut found: Vec<String> = fs::read_dir(fixture.dir.path())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    found.sort();
    let mut wanted = FILES;
    wanted.sort_unstable();
    assert_eq!(found, wanted, "nothing is left behind");
    for name in FILES {
        let mode = fs::metadata(fixture.dir.path().join(name)).expect("a file").permissions().mode() & 0o777;
        assert_eq!(mode, if name == "ca.pem" { 0o644 } else { 0o600 }, "{name}");
    }
}

#[tokio::test]
async fn keys_and_authority_outlive_a_restart() {
    let fixture = Fixture::new().await;
    let dir = fixture.dir.path().to_owned();
    let before = FILES.map(|name| read(&dir, name));
    let old_account = account(&dir);
    // A client of before the restart, which trusts what it trusted then.
    let old_client = client(&fixture.phones).build().expect("a client");
    drop(fixture.phones);

    // The old port may have been given away.
    let phones = Phones::start(Options::in_dir(&dir)).await.expect("they start again");
    let after = FILES.map(|name| read(&dir, name));
    for (index, name) in
        FILES.iter().enumerate().filter(|(_, name)| name.starts_with("AuthKey") || **name == "ca.key")
    {
        assert_eq!(before[index], after[index], "{name}");
    }
    let new_account = account(&dir);
    assert_eq!(new_account["token_uri"], format!("{}/token", phones.fcm_url()));
    for field in ["private_key", "private_key_id", "client_email", "project_id", "type"] {
        assert_eq!(old_account[field], new_account[field], "{field}");
    }
    let response = soon(old_client.post(format!("{}/token", phones.fcm_url())).send()).await;
    assert_eq!(response.expect("it is trusted").status().as_u16(), 400);
}

#[tokio::test]
async fn files_that_hold_something_else_are_not_replaced() {
    for name in FILES.into_iter().filter(|name| *name != "ca.pem") {
        let fixture = Fixture::new().await;
        let path = fixture.dir.path().join(name);
        fs::write(&path, "{}").expect("it is ours");
        let error = Phones::start(Options::in_dir(fixture.dir.path())).await.err().expect("a refusal");
        assert!(matches!(&error, StartError::Unusable { path: named } if *named == path), "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(read(fixture.dir.path(), name), "{}");
    }
}

#[tokio::test]
async fn the_environment_is_what_naru_reads() {
    let fixture = Fixture::new().await;
    let environment = fixture.phones.environment();
    let names: Vec<&str> = environment.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            "NARU_FCM_SERVICE_ACCOUNT_FILE",
            "NARU_FCM_BASE_URL",
            "NARU_APNS_KEY_FILE",
            "NARU_APNS_KEY_ID",
            "NARU_APNS_TEAM_ID",
            "NARU_APNS_TOPIC",
            "NARU_APNS_BASE_URL",
            "NARU_EXTRA_CA_FILE",
        ]
    );
    for (name, value) in environment.iter().filter(|(name, _)| name.ends_with("_FILE")) {
        assert!(Path::new(value).is_absolute() && Path::new(value).is_file(), "{name}: {value}");
    }
    let lines = fixture.phones.to_string();
    assert!(lines.contains(&format!("export NARU_APNS_KEY_ID='{KEY_ID}'\n")), "{lines}");
    assert_eq!(lines.lines().count(), names.len());
}

#[tokio::test]
async fn another_name_is_in_the_urls_and_in_the_certificate() {
    let mut fixture = Fixture::with(|options| options.host = "phones.test".to_owned()).await;
    assert!(fixture.phones.fcm_url().starts_with("https://phones.test:"));
    let port: u16 = fixture.phones.fcm_url().rsplit(':').next().expect("a port").parse().expect("a number");
    let client = client(&fixture.phones).resolve("phones.test", ([127, 0, 0, 1], port).into());
    fixture.client = client.build().expect("a client");
    assert_eq!(fixture.send(&notification(FCM_TOKEN)).await.status, 200);
}
