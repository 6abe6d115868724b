//! What lies in the keys of presence, and for how long.

use std::time::Duration;

use naru_conformance::LiveLayer;
use naru_engines::live::{PresenceEntry, Renewal, Seen};
use naru_model::{DeviceId, GatewayId, MessageId, SessionId, Timestamp, UserId};
use naru_redis::{Options, Redis};
use naru_services::{Kind, url};
use redis::aio::MultiplexedConnection;

use crate::{layer, open, other_client};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A user with one session on a gateway that runs.
struct Connected {
    naru: LiveLayer,
    session: PresenceEntry,
    other: MultiplexedConnection,
}

impl Connected {
    async fn new() -> Self {
        let naru = open(url(Kind::Redis)).await;
        let session = PresenceEntry {
            user: UserId::new(format!("ada:{}", MessageId::generate())).unwrap(),
            device: Some(DeviceId::new("폰 %{1}").unwrap()),
            session: SessionId::generate(),
            gateway: GatewayId::generate(),
        };
        naru.presence.renew(&session.gateway, Duration::from_secs(600)).await.unwrap();
        naru.presence.attach(&session).await.unwrap();
        Self { naru, session, other: other_client(url(Kind::Redis)).await }
    }

    fn user_key(&self) -> String {
        format!("naru:presence:{}", self.session.user)
    }

    async fn raw<T: redis::FromRedisValue>(&mut self, command: &[&str]) -> T {
        let mut all = redis::cmd(command[0]);
        command[1..].iter().for_each(|argument| drop(all.arg(argument).to_owned()));
        all.query_async(&mut self.other).await.unwrap()
    }

    async fn expires_in(&mut self, time: Duration) {
        let key = self.user_key();
        let left: i64 = self.raw(&["PTTL", &key]).await;
        let time = time.as_millis() as i64;
        assert!((time - 60_000..=time).contains(&left), "{left} ms");
    }

    async fn seen(&self) -> Seen {
        self.naru.presence.seen(std::slice::from_ref(&self.session.user)).await.unwrap()[0]
    }

    /// How many sessions are stored.
    async fn sessions(&mut self) -> usize {
        let key = self.user_key();
        self.raw::<String>(&["GET", &key]).await.lines().count() - 1
    }

    /// As if all sessions had been attached no later than at this moment.
    async fn attached_before(&mut self, moment: Timestamp) {
        let key = self.user_key();
        let record: String = self.raw(&["GET", &key]).await;
        let (_, sessions) = record.split_once('\n').expect("a session");
        self.raw::<()>(&["SET", &key, &format!("{}\n{sessions}", moment.as_millis())]).await;
    }

    /// As if the gateway had last renewed its lease at this moment.
    async fn silent_since(&mut self, moment: Timestamp) {
        let key = format!("naru:gateway:{}", self.session.gateway);
        let moment = moment.as_millis().to_string();
        self.raw::<()>(&["HSET", &key, "renewed", &moment, "until", &moment]).await;
    }

    /// As if Redis's clock had been set forward by so many hours since the lease was renewed, or back, if negative.
    async fn step_the_clock(&mut self, hours: i64) {
        let key = format!("naru:gateway:{}", self.session.gateway);
        let times: Vec<i64> = self.raw(&["HMGET", &key, "renewed", "until"]).await;
        let [renewed, until] = [times[0], times[1]].map(|time| (time - hours * 3_600_000).to_string());
        self.raw::<()>(&["HSET", &key, "renewed", &renewed, "until", &until]).await;
    }

    async fn renew(&self) -> Renewal {
        self.naru.presence.renew(&self.session.gateway, Duration::from_secs(600)).await.unwrap()
    }
}

#[tokio::test]
async fn a_users_key_expires_a_year_after_the_last_change_or_when_last_seen_is_no_longer_kept() {
    let mut ada = Connected::new().await;
    let key = ada.user_key();
    let (year, month) = (365 * DAY, 30 * DAY);
    let options = Options { last_seen_keep: month, ..Options::default() };
    let naru = layer(&Redis::open(url(Kind::Redis), options).await.unwrap());
    let other = PresenceEntry { device: None, session: SessionId::generate(), ..ada.session.clone() };
    ada.expires_in(year).await;
    naru.presence.attach(&other).await.unwrap();
    ada.expires_in(year).await;
    for _ in 0..2 {
        naru.presence.detach(&other).await.unwrap();
        ada.expires_in(year).await;
    }
    naru.presence.detach(&ada.session).await.unwrap();
    ada.expires_in(month).await;
    naru.presence.attach(&ada.session).await.unwrap();
    ada.expires_in(year).await;
    // Without this the session would stay for ever, as all of a gateway that died.
    let record = ada.raw::<String>(&["GET", &key]).await;
    assert_eq!(record.lines().count(), 2, "{record}");
    assert!(record.ends_with("\t폰 %{1}"), "{record}");
    let gateway = format!("naru:gateway:{}", ada.session.gateway);
    assert!(ada.raw::<i64>(&["PTTL", &gateway]).await > 29 * DAY.as_millis() as i64);
}

#[tokio::test]
async fn sessions_of_a_gateway_are_removed_after_a_day_of_silence() {
    let mut ada = Connected::new().await;
    let key = ada.user_key();
    // The lease has lapsed, but it may be renewed yet.
    let recently = Timestamp::now().before(DAY - Duration::from_secs(60));
    ada.silent_since(recently).await;
    assert!(!ada.seen().await.online);
    assert_eq!(ada.sessions().await, 1);

    let long_ago = Timestamp::now().before(2 * DAY);
    ada.silent_since(long_ago).await;
    let attached = ada.seen().await.last_seen_at.expect("they were here");
    assert!(attached > long_ago, "attaching was later than the last renewal");
    assert_eq!(ada.sessions().await, 0, "only when they were last seen");
    assert!(ada.raw::<i64>(&["PTTL", &key]).await > 0);
    assert_eq!(ada.seen().await, Seen { online: false, last_seen_at: Some(attached) });
}

#[tokio::test]
async fn a_look_up_of_presence_removes_such_sessions_too() {
    let mut ada = Connected::new().await;
    let gateway = format!("naru:gateway:{}", ada.session.gateway);
    let others = Connected::new().await;
    let users = [others.session.user.clone(), ada.session.user.clone()];
    let long_ago = Timestamp::now().before(2 * DAY);
    for forgotten in [false, true] {
        ada.naru.presence.renew(&ada.session.gateway, Duration::from_secs(600)).await.unwrap();
        ada.naru.presence.attach(&ada.session).await.unwrap();
        if forgotten {
            ada.raw::<()>(&["DEL", &gateway]).await;
            ada.naru.presence.online(&users).await.unwrap();
            assert_eq!(ada.sessions().await, 1, "its renewal may be on its way");
            ada.attached_before(long_ago).await;
        } else {
            ada.raw::<()>(&["HSET", &gateway, "until", "0"]).await;
            ada.naru.presence.online(&users).await.unwrap();
            assert_eq!(ada.sessions().await, 1, "it may be renewed yet");
            ada.silent_since(long_ago).await;
        }
        assert_eq!(ada.naru.presence.online(&users).await.unwrap(), [true, false]);
        assert_eq!(ada.sessions().await, 0, "only when they were last seen");
    }
}

#[tokio::test]
async fn a_forgotten_gateway_is_given_time_to_come_back() {
    let mut ada = Connected::new().await;
    let gateway = format!("naru:gateway:{}", ada.session.gateway);
    ada.raw::<()>(&["DEL", &gateway]).await;
    assert!(!ada.seen().await.online);
    assert_eq!(ada.sessions().await, 1, "its renewal may be on its way");
    let long_ago = Timestamp::now().before(2 * DAY);
    ada.attached_before(long_ago).await;
    assert_eq!(ada.seen().await, Seen { online: false, last_seen_at: Some(long_ago) });
    assert_eq!(ada.sessions().await, 0);
}

#[tokio::test]
async fn a_gateway_that_has_resigned_does_not_come_back() {
    let ada = Connected::new().await;
    let before = ada.seen().await.last_seen_at;
    ada.naru.presence.resign(&ada.session.gateway).await.unwrap();
    // A renewal that was stuck on its way.
    ada.naru.presence.renew(&ada.session.gateway, Duration::from_secs(600)).await.unwrap();
    let seen = ada.seen().await;
    assert!(!seen.online);
    assert!(seen.last_seen_at >= before, "last seen when it resigned");
}

#[tokio::test]
async fn a_user_whose_record_is_unreadable_is_not_offline() {
    let mut ada = Connected::new().await;
    let key = ada.user_key();
    let users = [ada.session.user.clone()];
    for record in
        ["", "nonsense", "1\n", "1\nsession\tgateway", "1\n\tgateway\tdevice", "1\nsession\t\tdevice"]
    {
        ada.raw::<()>(&["SET", &key, record]).await;
        assert!(!ada.naru.presence.online(&users).await.unwrap_err().is_transient(), "{record:?}");
        assert_eq!(ada.naru.presence.attached(std::slice::from_ref(&ada.session)).await.unwrap(), [false]);
    }
}

/// A process that looks at presence now and then goes by its own clock.
#[tokio::test]
async fn a_step_of_the_clock_lapses_no_lease() {
    for hours in [1, -1] {
        let mut ada = Connected::new().await;
        assert!(ada.seen().await.online);
        ada.renew().await;
        assert!(ada.seen().await.online);
        ada.step_the_clock(hours).await;
        assert!(ada.seen().await.online, "the clock was set by {hours} h");
        assert_eq!(ada.renew().await, Renewal::Unbroken);
    }
}

/// A process that was just started has only Redis's clock to go by. When that was set, it may be wrong, and the gateway is
/// told.
#[tokio::test]
async fn a_lapse_by_a_step_of_the_clock_is_told() {
    for hours in [1, -1] {
        let mut ada = Connected::new().await;
        ada.step_the_clock(hours).await;
        for _ in 0..2 {
            assert!(!ada.seen().await.online, "the clock was set by {hours} h");
        }
        assert_eq!(ada.renew().await, Renewal::Lapsed);
        assert!(ada.seen().await.online);
        assert_eq!(ada.renew().await, Renewal::Unbroken);
    }
}

/// FLUSHALL, an eviction, or a failover to a replica that had not got the last renewals.
#[tokio::test]
async fn a_lost_lease_is_told() {
    let mut ada = Connected::new().await;
    let key = format!("naru:gateway:{}", ada.session.gateway);
    assert_eq!(ada.renew().await, Renewal::Unbroken);
    ada.raw::<()>(&["DEL", &key]).await;
    assert_eq!(ada.renew().await, Renewal::Lapsed);
    for _ in 0..2 {
        assert_eq!(ada.renew().await, Renewal::Unbroken);
    }
    ada.raw::<()>(&["HSET", &key, "renewals", "1"]).await;
    assert_eq!(ada.renew().await, Renewal::Lapsed);
}
