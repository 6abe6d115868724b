//! An intake entry stays open until every recipient is accounted for, whichever process dies with a message
//! published and not proven.
//!
//! Ben answers pings and Cleo does not. However it ends, Cleo gets a push; Ben gets none where his proof can still be known.

use mongodb::bson::{Document, doc};
use naru_client::{Client, Reading, ServerProcess};
use serde_json::{Value, json};

use super::cluster::{Cluster, counted, http, phone, until};

/// Long enough for the faults, short enough to be waited for.
const GRACE: &str = "3s";

/// Two gateways and the other workers; Ada is on the first gateway, Ben and Cleo are on the second.
struct Fixture {
    cluster: Cluster,
    gateways: [ServerProcess; 2],
    fanout: ServerProcess,
    _others: [ServerProcess; 2],
    ada: Client,
    ben: Client,
    cleo: Client,
}

impl Fixture {
    async fn start() -> Self {
        let cluster = Cluster::start().await.with("NARU_DELIVERY_GRACE", GRACE);
        let gateways = [cluster.run("gateway").await, cluster.run("gateway").await];
        let (persister, fanout) = (cluster.run("persister").await, cluster.run("fanout").await);
        let notifier = cluster.run("notifier").await;
        for other in ["B", "C"] {
            http(&gateways[0], "A").create_room(&["A", other]).await;
        }
        let ada = phone(&gateways[0], "A").await;
        let (ben, cleo) = (phone(&gateways[1], "B").await, phone(&gateways[1], "C").await);
        cleo.reading(Reading::WithoutPongs);
        Self { cluster, gateways, fanout, _others: [persister, notifier], ada, ben, cleo }
    }

    /// Ada has written to both, and both have it; nothing is closed yet.
    async fn deliver(&mut self) {
        self.ada.chat("A_B", "to Ben", "1").await;
        self.ada.chat("A_C", "to Cleo", "2").await;
        for _ in 0..2 {
            self.ada.expect("ACK").await;
        }
        self.ben.expect("CHAT").await;
        self.cleo.expect("CHAT").await;
    }

    /// Ben's pong has been recorded.
    async fn ben_has_proven(&self) {
        let gateway = &self.gateways[1];
        until("Ben's pong counts", async || counted(gateway, "naru_gateway_proven_total").await >= 1).await;
    }

    /// Waits until every entry is closed.
    async fn closed(&self) {
        let intake = self.cluster.database().await.collection::<Document>("intake");
        until("every entry is closed", async || {
            intake.count_documents(doc! { "open": true }).await.expect("a count") == 0
        })
        .await;
    }

    /// The users who got pushes, each once, by the time everything is closed.
    async fn pushed(&mut self, expected: &[&str]) {
        self.closed().await;
        let mut pushed: Vec<Value> = Vec::new();
        for _ in expected {
            pushed.push(self.cluster.backend.next().await.json["userId"].clone());
        }
        pushed.sort_by_key(ToString::to_string);
        let expected: Vec<Value> = expected.iter().map(|user| json!(user)).collect();
        assert_eq!(pushed, expected);
        self.cluster.backend.none_waiting();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_dies_and_proofs_close_what_is_delivered() {
    let mut fixture = Fixture::start().await;
    fixture.deliver().await;
    fixture.pushed(&["C"]).await;
    assert_eq!(counted(&fixture.fanout, "naru_fanout_proven_total").await, 1);
    assert_eq!(counted(&fixture.fanout, "naru_fanout_without_proof_total").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fanout_killed_with_messages_unproven_leaves_them_to_the_sweep() {
    let mut fixture = Fixture::start().await;
    fixture.deliver().await;
    fixture.fanout.kill9().await;
    fixture.ben_has_proven().await;
    fixture.fanout = fixture.cluster.run("fanout").await;
    fixture.pushed(&["C"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_killed_with_messages_unproven_needs_no_repair() {
    let mut fixture = Fixture::start().await;
    fixture.ben.reading(Reading::WithoutPongs);
    fixture.deliver().await;
    fixture.gateways[1].kill9().await;
    fixture.pushed(&["B", "C"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fanout_and_gateway_killed_at_once_lose_no_recipient() {
    let mut fixture = Fixture::start().await;
    fixture.ben.reading(Reading::WithoutPongs);
    fixture.deliver().await;
    fixture.gateways[1].kill9().await;
    fixture.fanout.kill9().await;
    fixture.fanout = fixture.cluster.run("fanout").await;
    fixture.pushed(&["B", "C"]).await;
}

/// What Redis forgets is no proof: in doubt both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proofs_that_redis_lost_prove_nothing() {
    let mut fixture = Fixture::start().await;
    let mut redis = fixture.cluster.redis().await;
    fixture.deliver().await;
    fixture.fanout.kill9().await;
    fixture.ben_has_proven().await;
    redis::cmd("FLUSHALL").exec_async(&mut redis).await.expect("it forgets");
    fixture.fanout = fixture.cluster.run("fanout").await;
    fixture.pushed(&["B", "C"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fanout_that_stops_in_order_closes_what_is_proven_and_leaves_the_rest() {
    let mut fixture = Fixture::start().await;
    fixture.deliver().await;
    fixture.ben_has_proven().await;
    fixture.fanout.terminate();
    fixture.fanout.wait_exit(naru_client::TEST_TIMEOUT).await;
    fixture.fanout = fixture.cluster.run("fanout").await;
    fixture.pushed(&["C"]).await;
}
