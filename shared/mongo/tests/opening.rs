//! Only data that this version can read, only with the partitions it was made with, and without giving a password away.

use std::time::Duration;

use bson::doc;
use naru_engines::{Applied, EngineError, EngineResult};
use naru_mongo::{Mongo, Options};
use naru_services::Stopwatch;

use crate::fixtures::{Fresh, url, user};

fn refusal(opened: EngineResult<Mongo>) -> String {
    match opened {
        Err(error @ EngineError::Permanent { .. }) => error.to_string(),
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it opened"),
    }
}

#[tokio::test]
async fn another_number_of_partitions_is_refused() {
    let fresh = Fresh::new();
    fresh.open().await.ping().await.unwrap();
    let options = Options { partitions: 8, ..Options::default() };
    let why = refusal(Mongo::open(url(), &fresh.name, options.clone()).await);
    assert!(why.contains("this deployment has 1 partitions, 8 are configured"), "{why}");
    fresh.open().await.ping().await.unwrap();

    // How an operator changes it.
    let change = doc! { "$set": { "partitions": 8 } };
    fresh.raw("meta").await.update_one(doc! { "_id": "store" }, change).await.unwrap();
    Mongo::open(url(), &fresh.name, options).await.unwrap().ping().await.unwrap();
}

#[tokio::test]
async fn of_many_that_open_a_new_database_all_succeed() {
    let fresh = Fresh::new();
    let opened = futures_util::future::join_all((0..4).map(|_| fresh.open())).await;
    assert_eq!(opened.len(), 4);
    assert_eq!(fresh.raw("meta").await.count_documents(doc! {}).await.unwrap(), 1);
}

#[tokio::test]
async fn data_of_another_version_is_refused_and_left_as_it_is() {
    let fresh = Fresh::new();
    let meta = fresh.raw("meta").await;
    for (version, expected) in [
        (7, "the data is of schema version 7, this program knows versions up to 2".to_owned()),
        (
            1,
            format!(
                "the database {} is of an older layout (schema 1, this is 2). No release was made yet: use another \
                 database name (mongodb_database) or drop it",
                fresh.name
            ),
        ),
    ] {
        let made = doc! { "_id": "store", "schemaVersion": version, "partitions": 16 };
        meta.insert_one(made.clone()).await.unwrap();
        let why = refusal(Mongo::open(url(), &fresh.name, Options::default()).await);
        assert_eq!(why, format!("mongodb refused: {expected}"));
        assert_eq!(meta.find_one(doc! {}).await.unwrap(), Some(made));
        let indexes = fresh.raw("chat_messages").await.list_index_names().await.unwrap_or_default();
        assert_eq!(indexes, Vec::<String>::new());
        meta.delete_one(doc! {}).await.unwrap();
    }
}

#[tokio::test]
async fn tokens_of_an_earlier_state_get_their_canonical_spelling() {
    let fresh = Fresh::new();
    fresh.open().await.ping().await.unwrap();
    let rows = [
        ("a", "phone", "apns", "AB01", 1),
        // It changed hands, in another spelling.
        ("b", "phone", "apns", "ab01", 2),
        ("b", "tablet", "apns", "cd02", 3),
        ("c", "phone", "apns", "CD02", 4),
        ("d", "phone", "apns", "Cd02", 5),
        ("d", "tablet", "fcm", "AB01", 6),
        ("d", "watch", "apns", "Not-AB", 7),
    ];
    let device = |(user, device, platform, token, at): (&str, &str, &str, &str, i64)| {
        doc! {
            "userId": user, "deviceId": device, "platform": platform, "token": token,
            "environment": "production", "registeredAt": bson::DateTime::from_millis(at),
        }
    };
    fresh.raw("devices").await.insert_many(rows.map(device)).await.unwrap();
    for _ in 0..2 {
        let users = ["a", "b", "c", "d"].map(user);
        let mut devices = fresh.store().await.devices.of_users(&users).await.unwrap();
        devices.sort_by_key(|device| device.registered_at);
        let left = devices.iter().map(|device| (device.user.as_str(), device.id.as_str(), &*device.token));
        let expected = [
            ("b", "phone", "ab01"),
            ("d", "phone", "cd02"),
            ("d", "tablet", "AB01"),
            ("d", "watch", "Not-AB"),
        ];
        assert_eq!(left.collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn a_url_that_is_none_is_refused_without_being_repeated() {
    for url in ["mongodb://ada:secret@host:secret/?w=secret", "amqp://ada:secret@host", "secret"] {
        let why = refusal(Mongo::open(url, "naru", Options::default()).await);
        assert!(why.contains("mongodb://…"), "{why}");
        assert!(!why.contains("secret"), "{why}");
    }
}

#[tokio::test]
async fn what_the_url_says_is_not_overruled() {
    let nowhere = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200&connectTimeoutMS=100";
    let began = Stopwatch::start();
    let error = Mongo::open(nowhere, "naru", Options::default()).await.err().expect("no server is there");
    let EngineError::Unavailable { applied, .. } = error else { panic!("{error:?}") };
    assert_eq!(applied, Applied::No, "there was no server to send it to");
    assert!(began.elapsed() < Duration::from_secs(2), "the URL's 200 ms, not the default 3 s");
}
