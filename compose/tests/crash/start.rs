//! Starts: what lets a server in, and what must be refused, in words that help.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use naru_client::{Client, ConnectError, Http, ServerProcess, StartError};

use super::{NARU, refusal, run};
use crate::support::{SECRET, token_of};

/// The data belongs to one process at a time, and a second one can't harm the first.
#[tokio::test]
async fn a_second_process_on_the_same_data_is_refused() {
    let data = tempfile::tempdir().expect("a folder for the data");
    let variables = [("NARU_JWT_SECRET", SECRET)];
    let first = ServerProcess::start(NARU, data.path(), &variables).await.expect("the first one starts");
    let http = Http::new(first.url(), &token_of("A"));
    http.create_room(&["A", "B"]).await;
    let mut ada = Client::connect(first.url(), &token_of("A")).await.expect("a welcome");
    ada.welcome().await;
    ada.chat("A_B", "before", "a-1").await;
    ada.expect("ACK").await;

    for _ in 0..3 {
        let second = ServerProcess::start(NARU, data.path(), &variables).await;
        let StartError::NotReady { outcome, log, .. } = second.expect_err("two on the same data") else {
            panic!("it can't be run");
        };
        assert_eq!(outcome, "exit status: 1");
        let line = log.lines().last().unwrap_or_default();
        let dir = data.path().display();
        assert!(line.ends_with(&format!("{dir} is in use by another process")), "{line}");
    }

    ada.chat("A_B", "after", "a-2").await;
    assert_eq!(ada.expect("ACK").await["seq"], 2);
    assert_eq!(http.history("A_B", "afterSeq=0").await.len(), 2);
}

/// Without a secret of the operator's the all-in-one makes its own: once, for this and every later start, and for its
/// owner's eyes only.
#[tokio::test]
async fn the_secret_is_made_once() {
    let data = tempfile::tempdir().expect("a folder for the data");
    let data = data.path().join("not there yet");
    let before = token_by_command(&data, "A").await;
    let file = data.join("jwt-secret");
    let secret = fs::read(&file).expect("the secret lies in the data directory");
    let mode = fs::metadata(&file).expect("the same file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "other users may read the secret");

    let mut server = ServerProcess::start(NARU, &data, &[]).await.expect("it starts");
    let while_running = token_by_command(&data, "A").await;
    assert_let_in(server.url(), [&before, &while_running]).await;
    server.kill9().await;

    let server = ServerProcess::start(NARU, &data, &[]).await.expect("it starts again");
    assert_let_in(server.url(), [&before, &while_running, &token_by_command(&data, "A").await]).await;
    assert_eq!(fs::read(&file).expect("still there"), secret);

    // Another data directory, another secret.
    let other = tempfile::tempdir().expect("a folder for other data");
    let foreign = token_by_command(other.path(), "A").await;
    let refused = Client::connect(server.url(), &foreign).await.expect_err("a foreign token");
    assert_eq!(refused.status(), Some(401));
}

/// `--print-config` shows what is in force and where it comes from, but no secret; and it touches nothing.
#[tokio::test]
async fn the_configuration_can_be_shown() {
    let dir = tempfile::tempdir().expect("a folder");
    let (file, data) = (dir.path().join("naru.toml"), dir.path().join("data"));
    fs::write(&file, "max_content_bytes = 1234\njwt_secret = \"hunter1\"\n").expect("a file can be written");
    let (file, data_dir) = (plain(&file), plain(&data));
    let environment = [
        ("NARU_DATA_DIR", data_dir),
        ("NARU_PUSH_WEBHOOK_SECRET", "hunter2"),
        ("NARU_MONGODB_URL", "mongodb://naru:hunter3@db/?replicaSet=rs0"),
    ];
    let output = run(&["--print-config", "--config", file, "--drain-deadline", "7s"], &environment).await;
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!((output.status.code(), output.stderr.is_empty()), (Some(0), true));
    for line in [
        format!("data_dir = \"{data_dir}\" # from NARU_DATA_DIR"),
        format!("max_content_bytes = 1234 # from {file}"),
        format!("jwt_secret = \"***\" # from {file}"),
        "push_webhook_secret = \"***\" # from NARU_PUSH_WEBHOOK_SECRET".to_owned(),
        "mongodb_url = \"mongodb://naru:***@db/?replicaSet=rs0\" # from NARU_MONGODB_URL".to_owned(),
        "drain_deadline = \"7s\" # from --drain-deadline".to_owned(),
        "engine = \"embedded\" # from this binary's defaults".to_owned(),
    ] {
        assert!(printed.lines().any(|printed| printed == line), "no line {line:?} in\n{printed}");
    }
    assert!(!printed.contains("hunter"), "a secret is shown:\n{printed}");
    assert!(!data.exists(), "showing the configuration made the data directory");
}

/// What can't work is refused before anything is touched, and the line says which key is to blame.
#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let (file, data) = (dir.path().join("naru.toml"), dir.path().join("data"));
    let (file, data_dir) = (plain(&file), plain(&data));
    let data_only = [("NARU_DATA_DIR", data_dir)];

    fs::write(file, "max_contents_bytes = 1234\n").expect("a file can be written");
    let line = refusal(&["--config", file], &data_only).await;
    let wanted = format!("unknown key `max_contents_bytes` in {file}; did you mean `max_content_bytes`?");
    assert!(line.ends_with(&wanted), "{line}");

    let line = refusal(&[], &[("NARU_DATA_DIR", data_dir), ("NARU_DRAIN_DEADLINE", "soon")]).await;
    assert!(line.contains("drain_deadline") && line.contains("NARU_DRAIN_DEADLINE"), "{line}");

    let short = [("NARU_DATA_DIR", data_dir), ("NARU_JWT_SECRET", "hunter2")];
    let line = refusal(&[], &short).await;
    assert!(line.contains("jwt_secret is 7 bytes long") && !line.contains("hunter2"), "{line}");

    let half = [("NARU_DATA_DIR", data_dir), ("NARU_JWT_SECRET", SECRET), ("NARU_TLS_KEY", file)];
    let line = refusal(&[], &half).await;
    assert!(line.contains("tls_certificate and tls_key go together"), "{line}");

    let kept = dir.path().join("kept");
    fs::create_dir(&kept).expect("a folder can be made");
    fs::write(kept.join("jwt-secret"), "\n").expect("a file can be written");
    for arguments in [&[][..], &["token", "--user", "A"][..]] {
        let line = refusal(arguments, &[("NARU_DATA_DIR", plain(&kept))]).await;
        assert!(line.contains("jwt-secret is empty: delete it"), "{line}");
    }

    let on_services =
        [("NARU_ENGINE", "distributed"), ("NARU_JWT_SECRET", SECRET), ("NARU_DATA_DIR", data_dir)];
    let no_broker = [&on_services[..], &[("NARU_AMQP_URL", "http://naru:hunter2@broker/")]].concat();
    let line = refusal(&[], &no_broker).await;
    let wanted = "`amqp_url` (from NARU_AMQP_URL): must be a URL that begins with amqp:// or amqps://";
    assert!(line.contains(wanted) && !line.contains("hunter2"), "{line}");
    assert!(!data.exists(), "a refused start made the data directory");
}

/// A data directory that can't be one. (The tests may run as root, who may write everywhere: but not below a file.)
#[tokio::test]
async fn data_that_cannot_be_kept_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    fs::write(&file, "not a folder").expect("a file can be written");
    let data = file.join("data");
    for (secret, arguments) in [(SECRET, &[][..]), ("", &[][..]), ("", &["token", "--user", "A"][..])] {
        let line = refusal(arguments, &[("NARU_DATA_DIR", plain(&data)), ("NARU_JWT_SECRET", secret)]).await;
        assert!(line.contains(plain(&data)) && line.contains("Not a directory"), "{line}");
    }
}

fn plain(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

/// What `naru token` prints for this user.
async fn token_by_command(data: &Path, user: &str) -> String {
    let output = run(&["token", "--user", user], &[("NARU_DATA_DIR", plain(data))]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).expect("a token is text");
    let token = printed.strip_suffix('\n').expect("a line");
    assert!(!token.contains(char::is_whitespace), "more than a token: {printed}");
    token.to_owned()
}

async fn assert_let_in<const N: usize>(url: &str, tokens: [&str; N]) {
    for token in tokens {
        let client: Result<Client, ConnectError> = Client::connect(url, token).await;
        assert_eq!(client.expect("the token is accepted").welcome().await["userId"], "A");
    }
}
