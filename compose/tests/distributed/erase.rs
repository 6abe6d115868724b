//! A user is erased from MongoDB, RabbitMQ and Redis.

use futures_util::TryStreamExt;
use mongodb::bson::{Document, doc};
use naru_client::{Client, TEST_TIMEOUT};
use redis::AsyncCommands;

use super::cluster::{Cluster, until};
use super::forward::waiting;
use super::journey::flags_of;
use crate::erase::{
    MARKER, completes, erase, hasty, is_gone_and_others_are_not, live, pushes_are_parked, users_token,
};
use crate::support::Naru;

/// Each document with the marker, in any collection.
async fn documents_with_marker(cluster: &Cluster) -> Vec<String> {
    let (database, mut found) = (cluster.database().await, Vec::new());
    for name in database.list_collection_names().await.expect("names") {
        let documents = database.collection::<Document>(&name).find(doc! {}).await.expect("documents");
        let documents: Vec<Document> = documents.try_collect().await.expect("documents");
        let with_marker = documents.iter().map(|document| format!("{name}: {document}"));
        found.extend(with_marker.filter(|document| document.contains(MARKER)));
    }
    found
}

/// Each key of Redis with the marker in its name or value, and those of types that were not searched.
async fn keys_with_marker(cluster: &Cluster) -> Vec<String> {
    let (mut redis, mut found) = (cluster.redis().await, Vec::new());
    let keys: Vec<String> = redis.keys("*").await.expect("keys");
    for key in keys {
        let kind: String = redis::cmd("TYPE").arg(&key).query_async(&mut redis).await.expect("a type");
        let value = match kind.as_str() {
            "string" => vec![redis.get(&key).await.expect("a string")],
            "hash" => redis.hgetall(&key).await.expect("a hash"),
            "set" => redis.smembers(&key).await.expect("a set"),
            "none" => Vec::new(),
            _ => vec![MARKER.to_owned()],
        };
        if key.contains(MARKER) || value.iter().any(|text: &String| text.contains(MARKER)) {
            found.push(format!("{key} ({kind}): {value:?}"));
        }
    }
    found
}

/// How many messages wait in the queues.
async fn queued(cluster: &Cluster) -> u32 {
    let mut count = 0;
    for queue in ["accepted.0", "saved.0", "offline", "push.webhook"] {
        count += waiting(&cluster.amqp_url, &format!("naru.{queue}")).await;
    }
    count
}

#[tokio::test]
async fn an_erased_user_leaves_nothing_in_any_collection_key_or_queue() {
    let cluster = Cluster::start().await;
    let flags = flags_of(&cluster);
    let naru = Naru::start_with(&[&flags[..], &["--rate-messages-per-second", "0"]].concat(), hasty()).await;
    let life = live(&naru.url).await;
    pushes_are_parked(&naru.url).await;
    assert!(!documents_with_marker(&cluster).await.is_empty(), "the search finds what is there");
    let mut phone = Client::connect(&naru.url, &users_token()).await.expect("a welcome");
    phone.welcome().await;
    assert!(!keys_with_marker(&cluster).await.is_empty(), "the search finds what is there");
    until("pushes are on their way", async || queued(&cluster).await == 0).await;
    erase(&naru.url).await;
    completes(&naru.url, 6 * TEST_TIMEOUT).await;
    assert_eq!(documents_with_marker(&cluster).await, Vec::<String>::new());
    assert_eq!(keys_with_marker(&cluster).await, Vec::<String>::new());
    assert_eq!(queued(&cluster).await, 0);
    is_gone_and_others_are_not(&naru.url, &life).await;
    naru.stop().await;
}
