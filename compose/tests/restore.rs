//! The data is restored from a backup, as docs/RESTORE.md says, with the real program: places in rooms are given again, and
//! clients that follow the epoch miss nothing.

use std::fs;
use std::path::Path;

use naru_client::{Claims, Client, Http, ServerProcess, TEST_TIMEOUT, token};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::crash::{NARU, refusal, run};
use crate::support::{SECRET, token_of};

/// Naru on its data, and Ben's phone, which keeps what it has between connections.
struct World {
    data: TempDir,
    backups: TempDir,
    server: Option<ServerProcess>,
    ben: Phone,
}

/// What a phone has of the room: as the contract says, it forgets what is of another epoch.
#[derive(Default)]
struct Phone {
    epoch: Option<u64>,
    messages: Vec<String>,
}

impl World {
    async fn new() -> Self {
        let (data, backups) = (folder(), folder());
        let mut world = Self { data, backups, server: None, ben: Phone::default() };
        world.start().await;
        world.ada().create_room(&["A", "B"]).await;
        world
    }

    async fn start(&mut self) {
        let variables = [("NARU_JWT_SECRET", SECRET)];
        let started = ServerProcess::start(NARU, self.data.path(), &variables).await;
        self.server = Some(started.expect("it starts"));
    }

    async fn stop(&mut self) {
        let mut server = self.server.take().expect("it runs");
        server.terminate();
        assert!(server.wait_exit(TEST_TIMEOUT).await.success());
    }

    fn server(&self) -> &ServerProcess {
        self.server.as_ref().expect("it runs")
    }

    fn ada(&self) -> Http {
        Http::new(self.server().url(), &token_of("A"))
    }

    async fn send(&self, contents: &[&str]) {
        for content in contents {
            let (status, ack) = self.ada().send("A_B", content, content).await;
            assert_eq!(status, 200, "{ack}");
        }
    }

    /// Ben's phone connects, asks for what it misses, and tells that it has and has read it.
    async fn ben_comes(&mut self) -> Client {
        let (mut phone, welcome) = self.connected().await;
        let epoch = welcome["epoch"].as_u64().expect("an epoch");
        if self.ben.epoch.replace(epoch) != Some(epoch) {
            self.ben.messages.clear();
        }
        let seq = self.ben.messages.len();
        phone.send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": "A_B", "afterSeq": seq}]})).await;
        let synced = self.take(&mut phone).await;
        let room = json!({
            "chatRoomId": "A_B", "seq": self.ben.messages.len(), "complete": true, "epoch": epoch,
        });
        assert_eq!(synced["rooms"], json!([room]));
        if !self.ben.messages.is_empty() {
            let seq = self.ben.messages.len();
            phone.send_json(&json!({"type": "READ", "chatRoomId": "A_B", "seq": seq})).await;
            while self.unread().await > 0 {
                tokio::task::yield_now().await;
            }
        }
        phone
    }

    async fn connected(&self) -> (Client, Value) {
        let claims = Claims::user("B").device("phone");
        let token = token(SECRET.as_bytes(), &claims);
        let mut phone = Client::connect(self.server().url(), &token).await.expect("a connection");
        let welcome = phone.welcome().await;
        (phone, welcome)
    }

    /// Takes an answer to a `SYNC`, dropping what is known by its place.
    async fn take(&mut self, phone: &mut Client) -> Value {
        loop {
            let Some(naru_client::Incoming::Frame(frame)) = phone.next().await else { panic!("it ended") };
            match frame["type"].as_str() {
                Some("CHAT") => {
                    let seq = usize::try_from(frame["seq"].as_u64().expect("a place")).expect("a small one");
                    if seq == self.ben.messages.len() + 1 {
                        self.ben.messages.push(frame["content"].as_str().expect("a text").to_owned());
                    }
                }
                Some("SYNCED") => return frame,
                _ => {}
            }
        }
    }

    async fn unread(&self) -> u64 {
        let (_, room) = Http::new(self.server().url(), &token_of("B")).get("/api/rooms/A_B").await;
        room["unreadCount"].as_u64().expect("a count")
    }

    /// While Naru runs.
    fn back_up_hot(&self) -> std::path::PathBuf {
        let backup = self.backups.path().join("hot.db");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let running =
            Connection::open_with_flags(self.data.path().join("naru.db"), flags).expect("there is data");
        running.execute("VACUUM INTO ?1", [backup.to_str()]).expect("a copy");
        backup
    }

    fn put_back(&self, backup: &Path) {
        for file in ["naru.db", "naru.db-wal", "naru.db-shm"] {
            let _not_there = fs::remove_file(self.data.path().join(file));
        }
        fs::copy(backup, self.data.path().join("naru.db")).expect("a copy");
    }

    /// The command that follows; returns what it printed.
    async fn restored(&self) -> String {
        let output = run(&["restored"], &[("NARU_DATA_DIR", plain(self.data.path()))]).await;
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{stderr}");
        stdout.into_owned()
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn plain(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

#[tokio::test]
async fn a_client_that_follows_the_epoch_has_every_message_after_a_restore() {
    let mut world = World::new().await;
    world.send(&["one", "two", "three"]).await;
    world.ben_comes().await.close().await;
    assert_eq!((world.ben.epoch, world.ben.messages.join(" ")), (Some(1), "one two three".to_owned()));
    let hot = world.back_up_hot();
    world.send(&["lost four", "lost five", "lost six"]).await;
    world.ben_comes().await.close().await;
    assert_eq!(world.ben.messages.len(), 6);
    world.stop().await;

    let mut epochs = vec![world.ben.epoch];
    // The same backup twice: each time another epoch.
    for _ in 0..2 {
        world.put_back(&hot);
        // A backup that was not taken at one moment has positions beyond the last message. They must not hide the next ones.
        let beyond = Connection::open(world.data.path().join("naru.db")).expect("it is a database");
        beyond.execute("UPDATE members SET read = 6", []).expect("it is changed");
        beyond.execute("UPDATE received SET seq = 6", []).expect("it is changed");
        drop(beyond);
        let said = world.restored().await;
        world.start().await;
        world.send(&["four", "five", "six"]).await;
        assert_eq!(world.unread().await, 3);
        let (mut other, welcome) = world.connected().await;
        assert_eq!(
            said,
            format!("the restored data begins epoch {}; Naru can be started\n", welcome["epoch"])
        );
        other.send_json(&json!({"type": "SYNC"})).await;
        let seqs = (4..=6).map(Value::from).collect::<Vec<_>>();
        for seq in seqs {
            assert_eq!(
                other.expect("CHAT").await["seq"],
                seq,
                "by the position that was stored of the device"
            );
        }
        other.close().await;

        world.ben_comes().await.close().await;
        assert_eq!(world.ben.messages.join(" "), "one two three four five six");
        assert!(!epochs.contains(&world.ben.epoch), "{:?} after {epochs:?}", world.ben.epoch);
        epochs.push(world.ben.epoch);
        let (_, page) = world.ada().get("/api/rooms/A_B/messages").await;
        assert_eq!(page["epoch"].as_u64(), world.ben.epoch);
        world.stop().await;
    }

    // A copy of what an orderly stop left is a backup, too.
    let cold = world.backups.path().join("cold.db");
    fs::copy(world.data.path().join("naru.db"), &cold).expect("a copy");
    world.put_back(&cold);
    world.restored().await;
    world.start().await;
    world.ben_comes().await;
    assert_eq!(world.ben.messages.join(" "), "one two three four five six");
    assert!(!epochs.contains(&world.ben.epoch));
}

/// A client shows it: it has more than there is.
#[tokio::test]
async fn a_restore_without_the_command_is_warned_of_once() {
    let mut world = World::new().await;
    world.send(&["one"]).await;
    let hot = world.back_up_hot();
    world.send(&["two"]).await;
    world.ben_comes().await.close().await;
    assert!(!world.server().log().contains("RESTORE.md"));
    world.stop().await;
    world.put_back(&hot);
    world.start().await;
    for _ in 0..2 {
        let (mut phone, welcome) = world.connected().await;
        assert_eq!(welcome["epoch"], 1);
        phone.send_json(&json!({"type": "SYNC", "rooms": [{"chatRoomId": "A_B", "afterSeq": 2}]})).await;
        assert_eq!(phone.expect("SYNCED").await["rooms"][0]["seq"], 1);
    }
    let log = world.server().log();
    assert_eq!(log.matches("stop Naru, run `naru restored`").count(), 1, "{log}");
}

#[tokio::test]
async fn the_command_refuses_data_that_is_in_use_or_not_there() {
    let world = World::new().await;
    let in_use = [("NARU_DATA_DIR", plain(world.data.path()))];
    let why = refusal(&["restored"], &in_use).await;
    assert!(why.ends_with("is in use by another process"), "{why}");
    let empty = folder();
    let why = refusal(&["restored"], &[("NARU_DATA_DIR", plain(empty.path()))]).await;
    assert!(why.contains("was it restored elsewhere?"), "{why}");
    assert_eq!(fs::read_dir(empty.path()).expect("a folder").count(), 0, "nothing is made");
}
