//! Subscribing: a connection of its own that is watched, given up when it falls silent, and made anew.
//!
//! Nobody tells a subscriber that it hears no longer. A connection may be cut (a server that dies, `CLIENT KILL`,
//! an output buffer that ran over), which is noticed at once; or nothing may come because the server hangs, or the
//! network lost the connection without a word. So every second a gateway publishes a beat to its own channel,
//! through the connection on which it publishes everything else. Three seconds without hearing anything are a loss,
//! too.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::live::{Signal, Subscription};
use naru_engines::{Applied, EngineError, EngineResult};
use naru_model::GatewayId;
use naru_runtime::backoff::Backoff;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, PushInfo, PushKind, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::ear::{Ear, Heard};
use crate::error::{ENGINE, engine_error};
use crate::live::Air;
use crate::names::{CHAT_PATTERN, NEWS_CHANNEL, gateway_channel};
use crate::wire::{self, Unread};

/// How often a gateway sends itself a beat, and looks whether it has heard anything since the last look …
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// … and how many looks in a row may find nothing. Looks, not seconds: a process that was itself held up has not
/// listened.
const SILENT_LOOKS: u32 = 3;
/// How long subscribing may take on a connection that is there, until the first beat is heard.
const SUBSCRIBE_WITHIN: Duration = Duration::from_secs(2);
/// The wait before subscribing again: this, doubling with each failure in a row, up to the second. All gateways
/// lose a server at the same moment.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// What can't be read is mentioned at most this often.
const MENTION_EVERY: Duration = Duration::from_secs(60);

/// Listens as a gateway; returns when the subscription is in force.
pub(crate) async fn subscribe(air: Air, gateway: GatewayId, backlog: usize) -> EngineResult<Listener> {
    let ear = Arc::new(Ear::new(backlog));
    let line = Line::open(&air, &gateway, &ear).await?;
    let channel = gateway_channel(&gateway);
    let keeper = Keeper { air, gateway, ear: ear.clone() };
    let keeper = AbortOnDropHandle::new(tokio::spawn(async move { keeper.keep(line).await }));
    Ok(Listener { ear, channel, rubbish: Rubbish::default(), _keeper: keeper })
}

/// One connection that is subscribed.
struct Line {
    /// Dropping it ends the subscription.
    _connection: MultiplexedConnection,
    tap: Arc<Tap>,
}

/// Where everything that one connection hears arrives. It is called by the task that reads the connection, so it
/// never waits.
struct Tap {
    ear: Arc<Ear>,
    number: u64,
    /// The gateway's own.
    channel: String,
    beat: Notify,
    /// Whether anything came since the last look.
    heard: AtomicBool,
    cut: CancellationToken,
}

impl Line {
    /// Subscribes, and hears a beat through the new subscription: from then on nothing is missed.
    async fn open(air: &Air, gateway: &GatewayId, ear: &Arc<Ear>) -> EngineResult<Self> {
        let channel = gateway_channel(gateway);
        let tap = Arc::new(Tap {
            ear: ear.clone(),
            number: ear.begin(),
            channel: channel.clone(),
            beat: Notify::new(),
            heard: AtomicBool::new(false),
            cut: CancellationToken::new(),
        });
        let hearing = tap.clone();
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(None)
            .set_push_sender(move |push| {
                hearing.hear(push);
                Ok::<_, Infallible>(())
            });
        let mut connection = air.servers().connect(&config).await?;
        let subscribing = async {
            let subscribed = async {
                connection.psubscribe(CHAT_PATTERN).await?;
                connection.subscribe(&[NEWS_CHANNEL, &channel]).await
            };
            subscribed.await.map_err(|error| engine_error(error, Applied::No))?;
            air.beat(gateway).await?;
            tap.beat.notified().await;
            Ok(())
        };
        timeout(SUBSCRIBE_WITHIN, subscribing).await.unwrap_or_else(|_| {
            let why = format!("nothing was heard within {SUBSCRIBE_WITHIN:?} of subscribing");
            Err(EngineError::unavailable(ENGINE, Applied::No, why))
        })?;
        Ok(Self { _connection: connection, tap })
    }

    /// Waits until the subscription is lost; answers how that showed.
    async fn lost(&self, air: &Air, gateway: &GatewayId) -> &'static str {
        let beating = async {
            let mut beats = interval(BEAT_EVERY);
            beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                beats.tick().await;
                // One that can't be published will be missed.
                let _missed = air.beat(gateway).await;
            }
        };
        let watching = async {
            let mut looks = interval(BEAT_EVERY);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut silent = 0;
            loop {
                tokio::select! {
                    () = self.tap.cut.cancelled() => return "the connection was closed",
                    _ = looks.tick() => {}
                }
                // Whatever was heard counts: a beat may be behind a flood of messages.
                silent = if self.tap.heard.swap(false, Ordering::Relaxed) { 0 } else { silent + 1 };
                if silent == SILENT_LOOKS {
                    return "the connection fell silent";
                }
            }
        };
        tokio::select! {
            why = watching => why,
            () = beating => "never",
        }
    }
}

impl Tap {
    fn hear(&self, push: PushInfo) {
        match push.kind {
            PushKind::Disconnection => self.cut.cancel(),
            PushKind::Message | PushKind::PMessage => {
                // channel, payload; before them the pattern, if it was one.
                let mut data = push.data.into_iter().rev();
                let (Some(Value::BulkString(payload)), Some(Value::BulkString(channel))) =
                    (data.next(), data.next())
                else {
                    return;
                };
                self.heard.store(true, Ordering::Relaxed);
                let channel = String::from_utf8_lossy(&channel);
                if channel == self.channel && payload == wire::BEAT {
                    self.beat.notify_one();
                } else {
                    self.ear.hear(self.number, channel.into_owned(), payload);
                }
            }
            _ => {}
        }
    }
}

/// Keeps one gateway subscribed.
struct Keeper {
    air: Air,
    gateway: GatewayId,
    ear: Arc<Ear>,
}

impl Keeper {
    async fn keep(&self, mut line: Line) -> Infallible {
        loop {
            let why = line.lost(&self.air, &self.gateway).await;
            // What comes next tells the listener; the old connection is not heard any more.
            self.ear.interrupt();
            tracing::warn!(gateway = %self.gateway, why, "the subscription to Redis is lost");
            drop(line);
            line = self.open_again().await;
            self.ear.restore();
            tracing::info!(gateway = %self.gateway, "subscribed to Redis again");
        }
    }

    async fn open_again(&self) -> Line {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            sleep(backoff.next_delay()).await;
            match Line::open(&self.air, &self.gateway, &self.ear).await {
                Ok(line) => return line,
                Err(error) => tracing::debug!(gateway = %self.gateway, %error, "not subscribed yet"),
            }
        }
    }
}

impl Drop for Keeper {
    /// A listener whose keeper has died would wait for ever.
    fn drop(&mut self) {
        self.ear.close();
    }
}

/// What a gateway holds of its subscription.
pub(crate) struct Listener {
    ear: Arc<Ear>,
    /// The gateway's own.
    channel: String,
    rubbish: Rubbish,
    _keeper: AbortOnDropHandle<Infallible>,
}

#[async_trait]
impl Subscription for Listener {
    async fn next(&mut self) -> Option<Signal> {
        loop {
            match self.ear.next().await? {
                Heard::Interrupted => return Some(Signal::Interrupted),
                Heard::Restored => return Some(Signal::Restored),
                Heard::Said { channel, payload } => {
                    let read = if channel == self.channel {
                        wire::read_letter(&payload)
                    } else {
                        wire::read_event(&channel, &payload)
                    };
                    match read {
                        Ok(signal) => return Some(signal),
                        Err(unread) => self.rubbish.mention(&channel, &unread),
                    }
                }
            }
        }
    }
}

/// What could not be read: counted, and mentioned now and then. Anybody may publish anything.
#[derive(Default)]
struct Rubbish {
    count: u64,
    mentioned: Option<Instant>,
}

impl Rubbish {
    fn mention(&mut self, channel: &str, unread: &Unread) {
        self.count += 1;
        if self.mentioned.is_none_or(|last| last.elapsed() >= MENTION_EVERY) {
            let count = self.count;
            tracing::warn!(channel, ?unread, count, "skipped what can't be read; count is of all so far");
            self.mentioned = Some(Instant::now());
        }
    }
}
