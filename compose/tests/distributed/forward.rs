//! Many gateways: what one accepts, all receive, and the one that has the recipient forwards.

use futures_util::StreamExt;
use naru_client::ServerProcess;
use serde_json::{Value, json};

use super::cluster::{Cluster, counted, http, phone, until};

/// A plain subscriber on `chat:*`, as another system may be.
struct ChatSubscriber(redis::aio::PubSub);

impl ChatSubscriber {
    async fn on(redis_url: &str) -> Self {
        let client = redis::Client::open(redis_url).expect("a URL");
        let mut pubsub = client.get_async_pubsub().await.expect("a connection");
        pubsub.psubscribe("chat:*").await.expect("a subscription");
        Self(pubsub)
    }

    async fn next(&mut self) -> (String, Value) {
        let mut messages = self.0.on_message();
        let message = tokio::time::timeout(naru_client::TEST_TIMEOUT, messages.next()).await;
        let message = message.expect("a message in time").expect("a connection that lasts");
        let text: String = message.get_payload().expect("a text");
        (message.get_channel_name().to_owned(), serde_json::from_str(&text).expect("JSON"))
    }
}

async fn all_have_received(gateways: &[ServerProcess; 3], count: u64) {
    for gateway in gateways {
        until("a gateway has received it", async || {
            counted(gateway, "naru_gateway_live_messages_total").await == count
        })
        .await;
    }
}

/// A on server 1, B on server 2.
#[tokio::test]
async fn three_gateways_receive_it_and_one_forwards_it() {
    let mut cluster = Cluster::start().await;
    let gateways = [cluster.run("gateway").await, cluster.run("gateway").await, cluster.run("gateway").await];
    let (_persister, _fanout) = (cluster.run("persister").await, cluster.run("fanout").await);
    let mut subscriber = ChatSubscriber::on(&cluster.redis_url).await;
    http(&gateways[0], "A").create_room(&["A", "B"]).await;
    let mut ada = phone(&gateways[0], "A").await;
    let mut ben = phone(&gateways[1], "B").await;

    // B is on another gateway: that one forwards it, and no phone buzzes.
    let notifier = cluster.run("notifier").await;
    ada.chat("A_B", "안녕하세요", "1").await;
    let ack = ada.expect("ACK").await;
    let chat = ben.expect("CHAT").await;
    assert_eq!((&chat["id"], &chat["senderName"]), (&ack["id"], &json!("Ada")));
    let (channel, published) = subscriber.next().await;
    assert_eq!(channel, "chat:A_B");
    for field in [
        "type",
        "id",
        "chatRoomId",
        "seq",
        "senderId",
        "senderName",
        "content",
        "timestamp",
        "clientMessageId",
    ] {
        assert_eq!(published[field], chat[field], "{field}");
    }
    all_have_received(&gateways, 1).await;
    let mut delivered = Vec::new();
    for gateway in &gateways {
        delivered.push(counted(gateway, "naru_gateway_delivered_total").await);
    }
    assert_eq!(delivered, [0, 1, 0]);

    // B has no session, and no notifier takes the pushes yet: when the message is published, its push waits in the queue already.
    drop(notifier);
    ben.close().await;
    until("B is offline for all", async || {
        let (_, presence) = http(&gateways[0], "A").get("/api/presence?userIds=B").await;
        presence[0]["online"] == false
    })
    .await;
    ada.chat("A_B", "있어요?", "2").await;
    let (_, published) = subscriber.next().await;
    assert_eq!(waiting(&cluster.amqp_url, "naru.offline").await, 1, "the push comes before the publish");
    assert_eq!(ada.expect("ACK").await["id"], published["id"]);
    all_have_received(&gateways, 2).await;
    let _notifier = cluster.run("notifier").await;
    let push = cluster.backend.next().await;
    assert_eq!(push.json["data"]["messageId"], published["id"]);
    until("the push was acknowledged", async || waiting(&cluster.amqp_url, "naru.push.webhook").await == 0)
        .await;
    cluster.backend.none_waiting();
}

/// How many events wait in a queue, taken by no consumer.
pub async fn waiting(amqp_url: &str, queue: &str) -> u32 {
    use lapin::options::QueueDeclareOptions;
    let connection = lapin::Connection::connect(amqp_url, lapin::ConnectionProperties::default());
    let channel = connection.await.expect("a broker").create_channel().await.expect("a channel");
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = channel.queue_declare(queue.into(), passive, Default::default()).await;
    queue.expect("a queue").message_count()
}
