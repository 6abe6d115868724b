//! The live layer in one process: every subscription has a bounded buffer of its own, so publishing waits for none.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::live::{HasSession, Live, Signal, Subscription};
use naru_model::live::{Confirmation, LiveEvent};
use naru_model::{GatewayId, SessionId, UserId};
use tokio::sync::Notify;

use crate::database::closed;
use crate::lock::lock;

/// All subscriptions.
pub(crate) struct PubSub {
    /// None once closed. A dropped subscription is removed at the next signal.
    subscribers: Mutex<Option<Vec<Weak<Subscriber>>>>,
    max_signals: usize,
}

struct Subscriber {
    gateway: GatewayId,
    buffer: Mutex<SignalBuffer>,
    woken: Notify,
}

#[derive(Default)]
struct SignalBuffer {
    signals: VecDeque<Signal>,
    /// The buffer was full, its last signal is `Interrupted`, and later signals are lost.
    interrupted: bool,
    closed: bool,
}

impl PubSub {
    /// `max_signals`: how many signals one subscription may fall behind before it is interrupted.
    pub(crate) fn new(max_signals: usize) -> Self {
        Self { subscribers: Mutex::new(Some(Vec::new())), max_signals }
    }

    /// Ends every subscription once it has delivered what was published.
    pub(crate) fn close(&self) {
        let subscribers = lock(&self.subscribers).take();
        for subscriber in subscribers.into_iter().flatten().filter_map(|subscriber| subscriber.upgrade()) {
            lock(&subscriber.buffer).closed = true;
            subscriber.woken.notify_one();
        }
    }

    /// Sends to all gateways for which `concerns` holds.
    fn send(&self, signals: &[Signal], concerns: impl Fn(&GatewayId) -> bool) -> EngineResult<()> {
        let mut subscribers = lock(&self.subscribers);
        subscribers.as_mut().ok_or_else(closed)?.retain(|subscriber| {
            let Some(subscriber) = subscriber.upgrade() else { return false };
            if concerns(&subscriber.gateway) {
                lock(&subscriber.buffer).push(signals, self.max_signals);
                subscriber.woken.notify_one();
            }
            true
        });
        Ok(())
    }
}

impl SignalBuffer {
    fn push(&mut self, signals: &[Signal], max_signals: usize) {
        for signal in signals {
            if self.interrupted {
                break;
            } else if self.signals.len() < max_signals {
                self.signals.push_back(signal.clone());
            } else {
                self.signals.push_back(Signal::Interrupted);
                self.interrupted = true;
            }
        }
    }

    /// The next signal; none if the caller must wait for one.
    fn next(&mut self) -> Option<Option<Signal>> {
        if let Some(signal) = self.signals.pop_front() {
            return Some(Some(signal));
        }
        if self.interrupted {
            // Everything up to `Interrupted` was taken: there is capacity again.
            self.interrupted = false;
            return Some(Some(Signal::Restored));
        }
        self.closed.then_some(None)
    }
}

#[async_trait]
impl Live for PubSub {
    async fn publish(&self, events: Vec<LiveEvent>) -> EngineResult<()> {
        let signals: Vec<_> = events.into_iter().map(|event| Signal::Event(Arc::new(event))).collect();
        self.send(&signals, |_| true)
    }

    async fn confirm(&self, gateway: &GatewayId, confirmations: Vec<Confirmation>) -> EngineResult<()> {
        self.send(&[Signal::Confirmed(confirmations.into())], |other| other == gateway)
    }

    async fn evict(&self, gateway: &GatewayId, session: &SessionId) -> EngineResult<()> {
        self.send(&[Signal::Evict(session.clone())], |other| other == gateway)
    }

    async fn user_changed(&self, user: &UserId) -> EngineResult<()> {
        self.send(&[Signal::UserChanged(user.clone())], |_| true)
    }

    /// `HasSession` is not used: an event costs a pointer for each subscription.
    async fn subscribe(&self, gateway: &GatewayId, _: HasSession) -> EngineResult<Box<dyn Subscription>> {
        let subscriber =
            Subscriber { gateway: gateway.clone(), buffer: Mutex::default(), woken: Notify::new() };
        let subscriber = Arc::new(subscriber);
        lock(&self.subscribers).as_mut().ok_or_else(closed)?.push(Arc::downgrade(&subscriber));
        Ok(Box::new(MemorySubscription(subscriber)))
    }
}

struct MemorySubscription(Arc<Subscriber>);

#[async_trait]
impl Subscription for MemorySubscription {
    async fn next(&mut self) -> Option<Signal> {
        loop {
            let next = lock(&self.0.buffer).next();
            match next {
                Some(signal) => return signal,
                // `woken` keeps a wake-up that comes between the look and the wait.
                None => self.0.woken.notified().await,
            }
        }
    }
}
