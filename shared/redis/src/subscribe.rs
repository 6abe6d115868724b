//! Subscribing: a connection of its own that is monitored, dropped when it is silent, and reopened.
//!
//! Redis does not notify a subscriber of a lost subscription. A connection may be closed (a server that dies,
//! `CLIENT KILL`, an output buffer that overflowed), which is detected at once; or nothing may arrive because the server
//! hangs or the network silently lost the connection. So every second a gateway publishes a heartbeat to its own channel,
//! through the connection on which it publishes everything else. Three seconds without a received message are a loss, too.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::live::{HasSession, Signal, Subscription};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::GatewayId;
use naru_runtime::backoff::Backoff;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, PushInfo, PushKind, Value};
use tokio::sync::Notify;
use tokio::task::consume_budget;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{ENGINE, engine_error};
use crate::names::{CHAT_PATTERN, GATEWAYS_CHANNEL, NEWS_CHANNEL, gateway_channel};
use crate::publish::PubSub;
use crate::signal_buffer::{Received, SignalBuffer};
use crate::wire::{self, Unreadable};

/// How often a gateway sends itself a heartbeat, and checks whether it has received anything since the last check …
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// … and how many checks in a row that find nothing are a loss. Checks, not seconds: a process that was itself
/// suspended has not read.
const MAX_SILENT_CHECKS: u32 = 3;
/// How long subscribing may take on an open connection, until the first heartbeat is received.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(2);
/// The backoff before subscribing again: up to the first, doubling with each failure in a row, up to the second
/// one. All gateways lose a server at the same moment.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Unreadable payloads are logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Subscribes as a gateway; returns when the subscription is in force.
pub(crate) async fn subscribe(
    pub_sub: PubSub,
    gateway: GatewayId,
    has_session: HasSession,
    capacity: usize,
) -> EngineResult<RedisSubscription> {
    let buffer = Arc::new(SignalBuffer::new(capacity));
    let connection = SubscribedConnection::open(&pub_sub, &gateway, &buffer).await?;
    let channel = gateway_channel(&gateway);
    let keeper = SubscriptionKeeper { pub_sub, gateway, buffer: buffer.clone() };
    let keeper = AbortOnDropHandle::new(tokio::spawn(async move { keeper.keep(connection).await }));
    let (taken, unreadable) = (VecDeque::new(), UnreadableLog::default());
    Ok(RedisSubscription { buffer, taken, channel, has_session, unreadable, _keeper: keeper })
}

/// One connection that is subscribed.
struct SubscribedConnection {
    /// Dropping it ends the subscription.
    _connection: MultiplexedConnection,
    receiver: Arc<PushReceiver>,
}

/// Receives everything from one connection. The task that reads the connection calls it, so it never waits.
struct PushReceiver {
    buffer: Arc<SignalBuffer>,
    generation: u64,
    /// The gateway's own.
    channel: String,
    heartbeat: Notify,
    /// Whether a message came since the last check.
    has_received: AtomicBool,
    closed: CancellationToken,
}

impl SubscribedConnection {
    /// Subscribes, and receives a heartbeat through the new subscription: from then on nothing is missed.
    async fn open(pub_sub: &PubSub, gateway: &GatewayId, buffer: &Arc<SignalBuffer>) -> EngineResult<Self> {
        let channel = gateway_channel(gateway);
        let receiver = Arc::new(PushReceiver {
            buffer: buffer.clone(),
            generation: buffer.begin(),
            channel: channel.clone(),
            heartbeat: Notify::new(),
            has_received: AtomicBool::new(false),
            closed: CancellationToken::new(),
        });
        let receiving = receiver.clone();
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_push_sender(move |push| {
                receiving.receive(push);
                Ok::<_, Infallible>(())
            });
        let mut connection = pub_sub.servers().connect(&config).await?;
        let subscribing = async {
            let subscribed = async {
                connection.psubscribe(CHAT_PATTERN).await?;
                connection.subscribe(&[NEWS_CHANNEL, GATEWAYS_CHANNEL, &channel]).await
            };
            subscribed.await.map_err(|error| engine_error(error, Applied::No))?;
            pub_sub.heartbeat(gateway).await?;
            receiver.heartbeat.notified().await;
            Ok(())
        };
        timeout(SUBSCRIBE_TIMEOUT, subscribing).await.unwrap_or_else(|_| {
            let why = format!("nothing was received within {SUBSCRIBE_TIMEOUT:?} of subscribing");
            Err(EngineError::unavailable(ENGINE, Applied::No, why))
        })?;
        Ok(Self { _connection: connection, receiver })
    }

    /// Waits until the subscription is lost; answers the reason.
    async fn lost(&self, pub_sub: &PubSub, gateway: &GatewayId) -> &'static str {
        let publishing = async {
            let mut ticks = interval(HEARTBEAT_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // `watching` detects a missing one.
                let _missed = pub_sub.heartbeat(gateway).await;
            }
        };
        let watching = async {
            let mut ticks = interval(HEARTBEAT_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut silent = 0;
            loop {
                tokio::select! {
                    () = self.receiver.closed.cancelled() => return "the connection was closed",
                    _ = ticks.tick() => {}
                }
                // Any received message counts: a heartbeat may be queued behind many others.
                let has_received = self.receiver.has_received.swap(false, Ordering::Relaxed);
                silent = if has_received { 0 } else { silent + 1 };
                if silent == MAX_SILENT_CHECKS {
                    return "the connection fell silent";
                }
            }
        };
        tokio::select! {
            why = watching => why,
            () = publishing => "never",
        }
    }
}

impl PushReceiver {
    fn receive(&self, push: PushInfo) {
        match push.kind {
            PushKind::Disconnection => self.closed.cancel(),
            PushKind::Message | PushKind::PMessage => {
                // Channel and payload; before them the pattern, if any.
                let mut data = push.data.into_iter().rev();
                let (Some(Value::BulkString(payload)), Some(Value::BulkString(channel))) =
                    (data.next(), data.next())
                else {
                    return;
                };
                self.has_received.store(true, Ordering::Relaxed);
                if channel == self.channel.as_bytes() && payload == wire::HEARTBEAT {
                    self.heartbeat.notify_one();
                    return;
                }
                let channel = String::from_utf8(channel);
                let channel =
                    channel.unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
                self.buffer.push(self.generation, channel, payload);
            }
            _ => {}
        }
    }
}

struct SubscriptionKeeper {
    pub_sub: PubSub,
    gateway: GatewayId,
    buffer: Arc<SignalBuffer>,
}

impl SubscriptionKeeper {
    async fn keep(&self, mut connection: SubscribedConnection) -> Infallible {
        loop {
            let why = connection.lost(&self.pub_sub, &self.gateway).await;
            self.buffer.interrupt();
            tracing::warn!(gateway = %self.gateway, why, "the subscription to Redis is lost");
            drop(connection);
            connection = self.open_again().await;
            self.buffer.restore();
            tracing::info!(gateway = %self.gateway, "subscribed to Redis again");
        }
    }

    async fn open_again(&self) -> SubscribedConnection {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            sleep(backoff.next_delay()).await;
            match SubscribedConnection::open(&self.pub_sub, &self.gateway, &self.buffer).await {
                Ok(connection) => return connection,
                Err(error) => tracing::debug!(gateway = %self.gateway, %error, "not subscribed yet"),
            }
        }
    }
}

impl Drop for SubscriptionKeeper {
    /// Without this, a caller of `next` would wait for ever after the keeper has ended.
    fn drop(&mut self) {
        self.buffer.close();
    }
}

/// A gateway's side of its subscription.
pub(crate) struct RedisSubscription {
    buffer: Arc<SignalBuffer>,
    /// Entries taken from the buffer at once and not yet returned.
    taken: VecDeque<Received>,
    /// The gateway's own.
    channel: String,
    has_session: HasSession,
    unreadable: UnreadableLog,
    _keeper: AbortOnDropHandle<Infallible>,
}

#[async_trait]
impl Subscription for RedisSubscription {
    async fn next(&mut self) -> Option<Signal> {
        loop {
            let Some(received) = self.taken.pop_front() else {
                if !self.buffer.take(&mut self.taken).await {
                    return None;
                }
                continue;
            };
            let (channel, payload) = match received {
                Received::Interrupted => return Some(Signal::Interrupted),
                Received::Restored => return Some(Signal::Restored),
                Received::Published { channel, payload } => (channel, payload),
            };
            let read = if channel == self.channel || channel == GATEWAYS_CHANNEL {
                wire::read_gateway_message(&payload).map(Some)
            } else {
                wire::read_event(&channel, &payload, &*self.has_session)
            };
            match read {
                Ok(Some(signal)) => return Some(signal),
                Ok(None) => {}
                Err(unreadable) => self.unreadable.log(&channel, &unreadable),
            }
            // Many events that concern no session here must not delay other tasks.
            consume_budget().await;
        }
    }
}

/// Unreadable payloads: counted, and logged now and then. Any client of Redis may publish anything.
#[derive(Default)]
struct UnreadableLog {
    count: u64,
    logged: Option<Instant>,
}

impl UnreadableLog {
    fn log(&mut self, channel: &str, unreadable: &Unreadable) {
        self.count += 1;
        if self.logged.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
            let count = self.count;
            tracing::warn!(channel, ?unreadable, count, "skipped what can't be read; count is of all so far");
            self.logged = Some(Instant::now());
        }
    }
}
