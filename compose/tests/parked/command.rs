//! `naru parked`, as an operator types it, on a Naru that runs.

use std::path::Path;

use naru_client::{Answer, Http, ServerProcess, Webhook};
use serde_json::{Value, json};

use crate::crash::{NARU, refusal, run};
use crate::support::{SECRET, WEBHOOK_SECRET, token_of};

/// A Naru of its own process, with so many pushes parked that the backend refused.
struct Fixture {
    server: ServerProcess,
    backend: Webhook,
    data: tempfile::TempDir,
}

impl Fixture {
    async fn start(parked: usize) -> Self {
        let mut backend = Webhook::start().await;
        let data = tempfile::tempdir().expect("a folder for the data");
        let variables = [
            ("NARU_PUSH_WEBHOOK_URL", &*backend.url("/push")),
            ("NARU_PUSH_WEBHOOK_SECRET", WEBHOOK_SECRET),
            ("NARU_JWT_SECRET", SECRET),
        ];
        let server = ServerProcess::start(NARU, data.path(), &variables).await.expect("it starts");
        let ada = Http::new(server.url(), &token_of("A"));
        ada.create_room(&["A", "B"]).await;
        backend.script((0..parked).map(|_| Answer::status(404)));
        for number in 1..=parked {
            let (status, _) = ada.send("A_B", &format!("message {number}"), &format!("a-{number}")).await;
            assert_eq!(status, 200);
            backend.next().await;
        }
        let fixture = Self { server, backend, data };
        while fixture.parked().await.len() < parked {
            tokio::task::yield_now().await;
        }
        fixture
    }

    /// What `naru parked` prints for these arguments, and how it ends.
    async fn command(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let url = ["--url", self.server.url()];
        let all = [&["parked"], arguments, &url].concat();
        let output = run(&all, &[("NARU_DATA_DIR", self.dir()), ("NARU_JWT_SECRET", SECRET)]).await;
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// The same, of a command that succeeds in silence on stderr.
    async fn said(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.command(arguments).await;
        assert_eq!((code, &*stderr), (Some(0), ""), "{arguments:?}: {stdout}");
        stdout
    }

    async fn parked(&self) -> Vec<Value> {
        let said = self.said(&["list", "--json"]).await;
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error} in {said}"))
    }

    /// The event ids, oldest first.
    async fn ids(&self) -> Vec<String> {
        let ids = self.parked().await;
        ids.iter().map(|push| push["eventId"].as_str().expect("an id").to_owned()).collect()
    }

    fn dir(&self) -> &str {
        plain(self.data.path())
    }
}

fn plain(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

#[tokio::test]
async fn what_is_parked_is_listed_and_shown() {
    let fixture = Fixture::start(2).await;
    let ids = fixture.ids().await;
    let table = fixture.said(&["list"]).await;
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["EVENT", "LANE", "AGE", "TRIES", "USER", "REASON"]
    );
    assert_eq!(lines.len(), 3, "{table}");
    for (line, id) in lines[1..].iter().zip(&ids) {
        let [event, lane, _age, tries, user, reason @ ..] = &line.split_whitespace().collect::<Vec<_>>()[..]
        else {
            panic!("{line}");
        };
        assert_eq!((event, lane, tries, user), (&&**id, &"webhook", &"1", &"B"));
        assert_eq!(reason, ["status", "404"]);
        assert!(line.chars().count() <= 100, "{line}");
    }

    let shown = fixture.said(&["show", &ids[1]]).await;
    for line in [format!("event    {}", ids[1]), "title    Ada".to_owned(), "body     message 2".to_owned()] {
        assert!(shown.lines().any(|shown| shown == line), "no {line:?} in\n{shown}");
    }
    let shown: Value = serde_json::from_str(&fixture.said(&["show", &ids[0], "--json"]).await).expect("JSON");
    assert_eq!((&shown["body"], &shown["userId"]), (&json!("message 1"), &json!("B")));
    assert_eq!(shown["eventId"], json!(ids[0]));
}

#[tokio::test]
async fn parked_pushes_are_sent_again_and_dropped() {
    let mut fixture = Fixture::start(4).await;
    let ids = fixture.ids().await;
    let unknown = "10a49b64-5437-560f-bb8b-85aee95df0ec";

    let said = fixture.said(&["replay", &ids[0]]).await;
    assert_eq!(said, format!("{} sent again\n", ids[0]));
    let pushed = fixture.backend.next().await;
    assert_eq!((pushed.header("x-naru-event-id"), &pushed.json["body"]), (&*ids[0], &json!("message 1")));
    assert_eq!(fixture.ids().await, ids[1..]);

    // One that is not there does not keep the others from it.
    let (code, stdout, stderr) = fixture.command(&["drop", unknown, &ids[1]]).await;
    assert_eq!((code, stdout), (Some(1), format!("{} dropped\n", ids[1])));
    let complaint = format!("{unknown}: no such push is parked\nnaru: 1 of 2 could not be dropped\n");
    assert_eq!(stderr, complaint);
    let (code, stdout, stderr) = fixture.command(&["drop", "--json", unknown]).await;
    let line: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, &line[0]["done"], &line[0]["code"]), (Some(1), &json!(false), &json!("NOT_FOUND")));
    assert_eq!(stderr, "naru: 1 of 1 could not be dropped\n");
    assert_eq!(fixture.ids().await, ids[2..]);

    let said: Value =
        serde_json::from_str(&fixture.said(&["replay", "--all", "--json"]).await).expect("JSON");
    assert_eq!(said, json!([{"eventId": ids[2], "done": true}, {"eventId": ids[3], "done": true}]));
    let mut bodies =
        [fixture.backend.next().await, fixture.backend.next().await].map(|post| post.json["body"].clone());
    bodies.sort_by_key(Value::to_string);
    assert_eq!(bodies, [json!("message 3"), json!("message 4")]);

    assert_eq!(fixture.said(&["list"]).await, "nothing is parked\n");
    assert_eq!(fixture.said(&["drop", "--all"]).await, "nothing is parked\n");
    assert_eq!(fixture.said(&["drop", "--all", "--json"]).await, "[]\n");
}

#[tokio::test]
async fn what_cannot_work_is_said() {
    let fixture = Fixture::start(0).await;
    let empty = tempfile::tempdir().expect("a folder");
    let (here, elsewhere) = (fixture.server.url(), empty.path().join("data"));
    let own = [("NARU_DATA_DIR", fixture.dir()), ("NARU_JWT_SECRET", SECRET)];

    // No server there: it says where it looked, by configuration and by flag.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let nowhere = free.local_addr().expect("an address").to_string();
    drop(free);
    let line = refusal(&["parked", "list", "--listen", &nowhere], &own).await;
    assert!(
        line.starts_with(&format!("naru: nothing answers at http://{nowhere}: does Naru run there?")),
        "{line}"
    );
    let line = refusal(&["parked", "list", "--url", &format!("http://{nowhere}/")], &own).await;
    assert!(
        line.starts_with(&format!("naru: nothing answers at http://{nowhere}: does Naru run there?")),
        "{line}"
    );
    let line = refusal(&["parked", "list"], &own).await;
    assert!(line.contains("--url"), "the tests' `listen` is any port: {line}");
    let line = refusal(&["parked", "list", "--url", "localhost:8080"], &own).await;
    assert!(line.contains("no http:// or https:// URL"), "{line}");

    // Another server there.
    let stranger = Webhook::start().await;
    stranger.script([Answer::body(200, "hello"), Answer::status(404)]);
    for _ in 0..2 {
        let line = refusal(&["parked", "list", "--url", &stranger.url("")], &own).await;
        assert!(line.contains("but not as Naru does"), "{line}");
    }

    // The wrong token, or none to be had; and looking for one makes no data directory.
    let other = [("NARU_DATA_DIR", fixture.dir()), ("NARU_JWT_SECRET", "another secret")];
    let line = refusal(&["parked", "list", "--url", here], &other).await;
    assert!(line.contains("does not know the token"), "{line}");
    let line = refusal(&["parked", "list", "--url", here, "--token", &token_of("A")], &own).await;
    assert!(line.contains("scope service"), "{line}");
    let nothing = [("NARU_DATA_DIR", plain(&elsewhere))];
    let line = refusal(&["parked", "list", "--url", here], &nothing).await;
    assert!(line.contains(plain(&elsewhere)) && line.contains("--token"), "{line}");
    assert!(!elsewhere.exists(), "looking made the data directory");

    for wrong in [&["parked"][..], &["parked", "show"], &["parked", "replay"], &["parked", "drop", "x"]] {
        assert_eq!(run(wrong, &own).await.status.code(), Some(2), "{wrong:?}");
    }
    let both = ["parked", "drop", "--all", "10a49b64-5437-560f-bb8b-85aee95df0ec"];
    assert_eq!(run(&both, &own).await.status.code(), Some(2), "all, or those that are named");
}

/// Without a secret of the operator's, the command finds the one that the all-in-one made for itself.
#[tokio::test]
async fn the_self_made_secret_is_found() {
    let data = tempfile::tempdir().expect("a folder for the data");
    let server = ServerProcess::start(NARU, data.path(), &[]).await.expect("it starts");
    let output =
        run(&["parked", "list", "--url", server.url()], &[("NARU_DATA_DIR", plain(data.path()))]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "nothing is parked\n");
    assert!(output.status.success() && output.stderr.is_empty());
}
