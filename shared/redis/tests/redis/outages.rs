//! The server dies, hangs, forgets, or is not there yet.

use std::time::Duration;

use naru_engines::live::{PresenceEntry, Signal};
use naru_engines::{Applied, EngineError};
use naru_model::{GatewayId, SessionId};
use naru_redis::{Options, Redis};
use naru_services::{Kind, Service, Stopwatch};
use tokio::time::timeout;

use crate::{
    TEST_TIMEOUT, chat_event, layer, new_room, next, next_seq, open, other_client, publish, subscribe, until,
    user,
};

#[tokio::test]
async fn a_killed_server_is_found_again_and_all_that_follows_is_received() {
    let mut service = Service::start(Kind::Redis);
    let (here, there) = (open(&service.url()).await, open(&service.url()).await);
    let room = new_room();
    let mut subscription = subscribe(&here, &GatewayId::generate()).await;
    publish(&there, &room, 0..10).await.unwrap();
    for seq in 0..10 {
        assert_eq!(next_seq(&mut subscription, &room).await, seq);
    }
    service.kill();
    let killed = Stopwatch::start();
    assert_eq!(next(&mut subscription).await, Signal::Interrupted);
    assert!(killed.elapsed() < Duration::from_secs(2), "a closed connection shows at once");
    for _ in 0..100 {
        assert!(publish(&there, &room, 10..11).await.unwrap_err().is_transient());
    }
    assert!(killed.elapsed() < Duration::from_secs(5), "it fails fast: {:?}", killed.elapsed());

    service.start_again();
    until(&mut subscription, Signal::Restored).await;
    // The publisher may still pause after its last attempt.
    let mut first = 11;
    while publish(&there, &room, first..first + 10).await.is_err() {
        first += 10;
    }
    for seq in first..first + 10 {
        assert_eq!(next_seq(&mut subscription, &room).await, seq);
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_noticed_and_no_call_waits_for_long() {
    let service = Service::start(Kind::Redis);
    let naru = open(&service.url()).await;
    let room = new_room();
    let mut subscription = subscribe(&naru, &GatewayId::generate()).await;
    publish(&naru, &room, 0..1).await.unwrap();
    assert_eq!(next_seq(&mut subscription, &room).await, 0);

    service.freeze();
    let frozen = Stopwatch::start();
    let error = publish(&naru, &room, 1..2).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { applied: Applied::Unknown, .. }), "{error:?}");
    assert!(frozen.elapsed() < Duration::from_secs(3), "it took {:?}", frozen.elapsed());
    let asked = Stopwatch::start();
    assert!(naru.presence.online(&[user("ada")]).await.unwrap_err().is_transient());
    assert!(asked.elapsed() < Duration::from_secs(3), "it took {:?}", asked.elapsed());
    // Connecting takes a second of it now; what was certainly not sent says so.
    let asked = Stopwatch::start();
    let error = publish(&naru, &room, 2..3).await.unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { applied: Applied::No, .. }), "{error:?}");
    assert!(asked.elapsed() < Duration::from_secs(3), "it took {:?}", asked.elapsed());

    until(&mut subscription, Signal::Interrupted).await;
    let noticed = frozen.elapsed();
    println!("the subscriber noticed after {noticed:?}");
    assert!(noticed < Duration::from_secs(6), "noticed after {noticed:?}");

    service.thaw();
    until(&mut subscription, Signal::Restored).await;
    while publish(&naru, &room, 3..4).await.is_err() {}
    // What was on its way when the server hung may come first.
    while next_seq(&mut subscription, &room).await != 3 {}
}

#[tokio::test]
async fn what_was_not_detached_is_detached_with_the_next_renewal() {
    let mut service = Service::start(Kind::Redis);
    let (naru, beside) = (open(&service.url()).await, open(&service.url()).await);
    let gateway = GatewayId::generate();
    let session = PresenceEntry {
        user: user("ada"),
        device: None,
        session: SessionId::generate(),
        gateway: gateway.clone(),
    };
    let lease = Duration::from_secs(600);
    service.kill();
    naru.presence.detach(&session).await.unwrap_err();

    // As if the server had kept everything.
    service.start_again();
    while beside.presence.renew(&gateway, lease).await.is_err() {}
    beside.presence.attach(&session).await.unwrap();
    assert!(beside.presence.online(&[user("ada")]).await.unwrap()[0]);
    while naru.presence.renew(&gateway, lease).await.is_err() {}
    assert!(!beside.presence.online(&[user("ada")]).await.unwrap()[0]);
}

/// It answers reads meanwhile, and messages are passed on.
#[tokio::test]
async fn a_server_that_takes_no_writes_says_so_and_is_used_again() {
    let service = Service::start(Kind::Redis);
    let redis = Redis::open(&service.url(), Options::default()).await.unwrap();
    let (naru, gateway) = (layer(&redis), GatewayId::generate());
    let mut other = other_client(&service.url()).await;
    let mut tell = async |words: &[&str]| {
        redis::cmd(words[0]).arg(&words[1..]).exec_async(&mut other).await.unwrap();
    };
    let faults = [
        (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"], "OOM"),
        (
            ["CONFIG", "SET", "min-replicas-to-write", "1"],
            ["CONFIG", "SET", "min-replicas-to-write", "0"],
            "NOREPLICAS",
        ),
    ];
    redis.check_writes().await.unwrap();
    for (begin, end, code) in faults {
        tell(&begin).await;
        let error = naru.presence.renew(&gateway, Duration::from_secs(600)).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains(code), "{error}");
        assert!(redis.check_writes().await.unwrap_err().is_transient());
        naru.presence.online(&[user("ada")]).await.unwrap();
        publish(&naru, &new_room(), 0..1).await.unwrap();
        tell(&end).await;
        naru.presence.renew(&gateway, Duration::from_secs(600)).await.unwrap();
        redis.check_writes().await.unwrap();
    }
    // A failover has made it a replica, and another one has made it the primary again.
    tell(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let error = naru.presence.renew(&gateway, Duration::from_secs(600)).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("read only replica"), "{error}");
    assert!(redis.check_writes().await.unwrap_err().is_transient());
    tell(&["REPLICAOF", "NO", "ONE"]).await;
    timeout(TEST_TIMEOUT, async { while redis.check_writes().await.is_err() {} }).await.unwrap();
    naru.presence.renew(&gateway, Duration::from_secs(600)).await.unwrap();
}

#[tokio::test]
async fn a_server_that_has_forgotten_everything_is_told_again() {
    let service = Service::start(Kind::Redis);
    let naru = open(&service.url()).await;
    let gateway = GatewayId::generate();
    let session = PresenceEntry {
        user: user("ada"),
        device: None,
        session: SessionId::generate(),
        gateway: gateway.clone(),
    };
    let mut other = other_client(&service.url()).await;
    for _ in 0..2 {
        naru.presence.attach(&session).await.unwrap();
        assert!(!naru.presence.online(&[user("ada")]).await.unwrap()[0], "there is no lease yet");
        naru.presence.renew(&gateway, Duration::from_secs(600)).await.unwrap();
        assert!(naru.presence.online(&[user("ada")]).await.unwrap()[0]);
        redis::cmd("FLUSHALL").exec_async(&mut other).await.unwrap();
        redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut other).await.unwrap();
    }
}

#[tokio::test]
async fn opening_fails_in_time_and_says_whether_to_try_again() {
    async fn refused(url: &str) -> EngineError {
        let opened = timeout(Duration::from_secs(4), Redis::open(url, Options::default())).await;
        opened.expect("it does not hang").err().expect("it can't be opened")
    }
    let mut service = Service::start(Kind::Redis);
    let url = service.url();
    service.freeze();
    assert!(refused(&url).await.is_transient(), "it hangs");
    service.thaw();
    assert!(refused(&url.replace("redis:", "rediss:")).await.is_transient(), "it does not speak TLS");

    let mut other = other_client(&url).await;
    redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("right").exec_async(&mut other).await.unwrap();
    let with_password = url.replace("redis://", "redis://:wrong@");
    let error = refused(&with_password).await;
    assert!(matches!(error, EngineError::Permanent { .. }), "{error:?}");
    assert!(!format!("{error:?}").contains("wrong@"), "{error:?}");
    let right = with_password.replace("wrong", "right");
    open(&right).await.presence.online(&[user("ada")]).await.unwrap();
    let two = refused(&format!("{right}, {right}")).await;
    assert!(two.to_string().contains("no cluster"), "{two}");

    service.kill();
    let error = refused(&url).await;
    assert!(error.is_transient());
    assert!(error.to_string().contains(&service.port().to_string()), "{error} names the server");
    for url in ["", "localhost", "http://:secret@localhost/", "redis://:secret@/x y", ","] {
        let error = refused(url).await;
        assert!(matches!(error, EngineError::Permanent { .. }), "{url:?}: {error:?}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}

#[tokio::test]
async fn a_batch_during_an_outage_leaves_nothing_behind() {
    // Far more than a socket's buffers hold: what is not written when the call fails is gone with the connection.
    let service = Service::start(Kind::Redis);
    let naru = open(&service.url()).await;
    let room = new_room();
    publish(&naru, &room, 0..1).await.unwrap();
    service.freeze();
    let events: Vec<_> = (0..20_000).map(|seq| chat_event(&room, seq)).collect();
    let asked = Stopwatch::start();
    for _ in 0..3 {
        assert!(naru.live.publish(events.clone()).await.unwrap_err().is_transient());
    }
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
    service.thaw();
    timeout(TEST_TIMEOUT, async { while publish(&naru, &room, 1..2).await.is_err() {} })
        .await
        .expect("it heals");
}
