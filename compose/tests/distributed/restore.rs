//! The database is restored from a backup below a deployment: docs/RESTORE.md, with one process that was not stopped.

use std::time::Duration;

use futures_util::TryStreamExt;
use mongodb::Database;
use mongodb::bson::{Document, doc};
use naru_client::TEST_TIMEOUT;
use serde_json::Value;

use super::cluster::{Cluster, http, phone, until};
use crate::crash::{refusal, run};

/// All documents of all collections, as a point-in-time backup has them.
async fn back_up(database: &Database) -> Vec<(String, Vec<Document>)> {
    let mut backup = Vec::new();
    for name in database.list_collection_names().await.expect("names") {
        let documents = database.collection(&name).find(doc! {}).await.expect("an answer");
        backup.push((name, documents.try_collect().await.expect("documents")));
    }
    backup
}

async fn put_back(database: &Database, backup: &[(String, Vec<Document>)]) {
    for (name, documents) in backup {
        let collection = database.collection::<Document>(name);
        collection.delete_many(doc! {}).await.expect("an answer");
        if !documents.is_empty() {
            collection.insert_many(documents).await.expect("an answer");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_what_was_lost_comes_back_and_who_ran_through_it_stops() {
    let cluster = Cluster::start().await.with("NARU_DRAIN_DEADLINE", "2s");
    let environment = [
        ("NARU_ENGINE", "distributed"),
        ("NARU_MONGODB_URL", &*cluster.mongodb_url),
        ("NARU_MONGODB_DATABASE", &*cluster.mongodb_database),
        ("NARU_AMQP_URL", &*cluster.amqp_url),
    ];
    let [mut gateway, persister, fanout, notifier] = cluster.run_each().await;
    let mut workers = [persister, fanout, notifier];
    http(&gateway, "A").create_room(&["A", "B"]).await;
    let send = async |gateway: &_, contents: &[&str]| {
        for content in contents {
            let (status, ack) = http(gateway, "A").send("A_B", content, content).await;
            assert_eq!(status, 200, "{ack}");
        }
    };
    send(&gateway, &["one", "two"]).await;
    let database = cluster.database().await;
    let intake = database.collection::<Document>("intake");
    let open = async || intake.count_documents(doc! { "open": true }).await.expect("a count");
    until("all is delivered", async || open().await == 0).await;
    let backup = back_up(&database).await;
    send(&gateway, &["lost three", "lost four"]).await;

    let why = refusal(&["restored"], &environment).await;
    assert!(why.contains("a worker receives from naru.accepted"), "{why}");
    for worker in &mut workers {
        worker.terminate();
        assert!(worker.wait_exit(TEST_TIMEOUT).await.success());
    }
    // Accepted and in the persister's queue; after the restore it is not in the intake.
    let mut ada = phone(&gateway, "A").await;
    ada.chat("A_B", "lost five", "five").await;
    until("it is in the intake", async || open().await == 1).await;
    put_back(&database, &backup).await;
    // With another number of partitions, queues would be passed over.
    let partitions = [&environment[..], &[("NARU_PARTITIONS", "4")]].concat();
    let why = refusal(&["restored"], &partitions).await;
    assert!(why.contains("this deployment has 1 partitions, 4 are configured"), "{why}");
    let output = run(&["restored"], &environment).await;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.starts_with("1 messages were removed"), "{said}");
    assert_eq!(gateway.wait_exit(Duration::from_secs(30)).await.code(), Some(1));
    let log = gateway.log();
    assert!(log.contains("the data was restored from a backup while this process ran"), "{log}");

    let [gateway, ..] = &cluster.run_each().await;
    let mut phone =
        naru_client::Client::connect(gateway.url(), &crate::support::token_of("A")).await.expect("one");
    let epoch = phone.welcome().await["epoch"].as_u64().expect("a number");
    assert!(said.contains(&format!("epoch {epoch};")), "{said}");
    send(gateway, &["three", "four"]).await;
    let history = http(gateway, "B").history("A_B", "afterSeq=0").await;
    let contents: Vec<_> = history.iter().map(|message| message["content"].clone()).collect();
    assert_eq!(contents, ["one", "two", "three", "four"].map(Value::from));
}
