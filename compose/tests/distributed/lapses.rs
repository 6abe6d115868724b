//! Presence loses gateways or single sessions while all connections stay. Messages published meanwhile name none of them, so
//! their clients are asked to `SYNC`; they are found again, and receive live.

use std::time::Duration;

use naru_client::{Client, Incoming, ServerProcess};
use serde_json::{Value, json};

use super::cluster::{Cluster, http, phone, until, within};

/// Every session is checked within this.
const CHECKED_WITHIN: Duration = Duration::from_secs(60);

/// Ada is on the first gateway, Ben on the second.
struct World {
    cluster: Cluster,
    gateways: [ServerProcess; 2],
    _others: [ServerProcess; 3],
    ada: Client,
    ben: Client,
}

impl World {
    /// Ben has said what he has, and has received a message.
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let [first, persister, fanout, notifier] = cluster.run_each().await;
        let gateways = [first, cluster.run("gateway").await];
        http(&gateways[0], "A").create_room(&["A", "B"]).await;
        let (ada, ben) = (phone(&gateways[0], "A").await, phone(&gateways[1], "B").await);
        let mut world = Self { cluster, gateways, _others: [persister, fanout, notifier], ada, ben };
        world.sync(0).await;
        world.receives("live from the first").await;
        world
    }

    /// Ben asks for what he misses: the places of what he gets.
    async fn sync(&mut self, after: u64) -> Vec<Value> {
        let rooms = json!([{"chatRoomId": "A_B", "afterSeq": after}]);
        self.ben.send_json(&json!({"type": "SYNC", "rooms": rooms})).await;
        self.ben.expect("SYNCED").await;
        let chats = self.ben.until_pong().await.into_iter().filter(|frame| frame["type"] == "CHAT");
        chats.map(|chat| chat["seq"].clone()).collect()
    }

    async fn is_online(&self, user: &str) -> bool {
        let (_, answer) = http(&self.gateways[0], "A").get(&format!("/api/presence?userIds={user}")).await;
        answer[0]["online"] == true
    }

    async fn ada_writes(&mut self, text: &str) {
        self.ada.chat("A_B", text, text).await;
        self.ada.expect_where("ACK", |ack| ack["clientMessageId"] == text).await;
    }

    /// Ada writes, and Ben's client gets it live.
    async fn receives(&mut self, text: &str) {
        self.ada_writes(text).await;
        self.ben.expect_where("CHAT", |chat| chat["content"] == text).await;
    }

    /// Ada writes, and Ben is told by a push, which takes him for offline.
    async fn is_pushed(&mut self, text: &str) {
        self.ada_writes(text).await;
        let push = self.cluster.backend.next().await;
        assert_eq!(push.json["userId"], "B", "{}", push.json);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_gateway_asks_its_clients_to_sync() {
    let mut world = World::start().await;
    world.gateways[1].freeze();
    within(CHECKED_WITHIN, "the lease lapses", async || !world.is_online("B").await).await;
    for text in ["missed", "missed as well"] {
        world.is_pushed(text).await;
    }
    world.gateways[1].thaw();
    assert_eq!(world.ben.expect("RESYNC").await["rooms"], json!(["A_B"]));
    assert_eq!(world.sync(1).await, [2, 3]);
    world.receives("live again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_asked_to_sync_when_redis_has_lost_its_data() {
    let mut world = World::start().await;
    let mut redis = world.cluster.redis().await;
    redis::cmd("FLUSHALL").exec_async(&mut redis).await.expect("it forgets");
    world.ada_writes("perhaps missed").await;
    // If the next renewal comes before Ada's message, Ben receives it.
    let is_told = |frame: &Value| frame["type"] == "RESYNC" || frame["content"] == "perhaps missed";
    while !matches!(world.ben.next().await, Some(Incoming::Frame(frame)) if is_told(&frame)) {}
    until("Ben is found", async || world.is_online("B").await).await;
    world.receives("live again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_presence_has_lost_is_attached_again() {
    let mut world = World::start().await;
    let mut redis = world.cluster.redis().await;
    redis::cmd("DEL").arg("naru:presence:B").exec_async(&mut redis).await.expect("it forgets");
    world.ada_writes("missed").await;
    within(CHECKED_WITHIN, "Ben is found", async || world.is_online("B").await).await;
    assert!(world.ben.expect("RESYNC").await.get("rooms").is_none(), "any of his rooms may have moved");
    assert_eq!(world.sync(1).await, [2]);
    world.receives("live again").await;
}
