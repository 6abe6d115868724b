//! The live layer in one process: every subscription has a bounded queue of its own, so publishing waits for nobody.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use naru_engines::EngineResult;
use naru_engines::live::{Live, Signal, Subscription};
use naru_model::live::{Confirmation, LiveEvent};
use naru_model::{GatewayId, SessionId};
use tokio::sync::Notify;

use crate::database::{closed, lock};

/// Everyone who listens.
pub(crate) struct Air {
    /// None once closed. A subscription that was dropped is noticed at the next word.
    ears: Mutex<Option<Vec<Weak<Ear>>>>,
    backlog: usize,
}

/// One subscription.
struct Ear {
    gateway: GatewayId,
    heard: Mutex<Heard>,
    woken: Notify,
}

#[derive(Default)]
struct Heard {
    signals: VecDeque<Signal>,
    /// The queue was full, its last signal is `Interrupted`, and what came since is lost.
    interrupted: bool,
    closed: bool,
}

impl Air {
    /// `backlog`: how many signals one subscription may fall behind before it is interrupted.
    pub(crate) fn new(backlog: usize) -> Self {
        Self { ears: Mutex::new(Some(Vec::new())), backlog }
    }

    /// Ends every subscription once it has heard what was said.
    pub(crate) fn close(&self) {
        for ear in lock(&self.ears).take().into_iter().flatten().filter_map(|ear| ear.upgrade()) {
            lock(&ear.heard).closed = true;
            ear.woken.notify_one();
        }
    }

    /// To all for whom `concerns` holds.
    fn say(&self, signals: &[Signal], concerns: impl Fn(&GatewayId) -> bool) -> EngineResult<()> {
        let mut ears = lock(&self.ears);
        ears.as_mut().ok_or_else(closed)?.retain(|ear| {
            let Some(ear) = ear.upgrade() else { return false };
            if concerns(&ear.gateway) {
                ear.hear(signals, self.backlog);
            }
            true
        });
        Ok(())
    }
}

impl Ear {
    fn hear(&self, signals: &[Signal], backlog: usize) {
        let mut heard = lock(&self.heard);
        for signal in signals {
            if heard.interrupted {
                break;
            } else if heard.signals.len() < backlog {
                heard.signals.push_back(signal.clone());
            } else {
                heard.signals.push_back(Signal::Interrupted);
                heard.interrupted = true;
            }
        }
        drop(heard);
        self.woken.notify_one();
    }
}

impl Heard {
    /// The next signal; none to wait for one.
    fn next(&mut self) -> Option<Option<Signal>> {
        if let Some(signal) = self.signals.pop_front() {
            return Some(Some(signal));
        }
        if self.interrupted {
            // Everything up to `Interrupted` was taken: there is room again.
            self.interrupted = false;
            return Some(Some(Signal::Restored));
        }
        self.closed.then_some(None)
    }
}

#[async_trait]
impl Live for Air {
    async fn publish(&self, events: Vec<LiveEvent>) -> EngineResult<()> {
        let signals: Vec<_> = events.into_iter().map(|event| Signal::Event(Arc::new(event))).collect();
        self.say(&signals, |_| true)
    }

    async fn confirm(&self, gateway: &GatewayId, confirmations: Vec<Confirmation>) -> EngineResult<()> {
        self.say(&[Signal::Confirmed(confirmations.into())], |ear| ear == gateway)
    }

    async fn evict(&self, gateway: &GatewayId, session: &SessionId) -> EngineResult<()> {
        self.say(&[Signal::Evict(session.clone())], |ear| ear == gateway)
    }

    async fn subscribe(&self, gateway: &GatewayId) -> EngineResult<Box<dyn Subscription>> {
        let ear = Arc::new(Ear { gateway: gateway.clone(), heard: Mutex::default(), woken: Notify::new() });
        lock(&self.ears).as_mut().ok_or_else(closed)?.push(Arc::downgrade(&ear));
        Ok(Box::new(Listener(ear)))
    }
}

struct Listener(Arc<Ear>);

#[async_trait]
impl Subscription for Listener {
    async fn next(&mut self) -> Option<Signal> {
        loop {
            let next = lock(&self.0.heard).next();
            match next {
                Some(signal) => return signal,
                // Keeps a wake-up that comes between the look and the wait.
                None => self.0.woken.notified().await,
            }
        }
    }
}
