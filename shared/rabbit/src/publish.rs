//! Publishing with confirms: a message counts as sent when the broker confirms it.
//!
//! **One send per channel at a time.** The broker returns an unroutable message before it confirms it, and lapin passes the
//! return on with whichever confirm of the channel comes next. With one send on its channel, the return is that send's own.
//!
//! **One deadline for a send**, however many events it has: they are few messages, since a message carries a batch of events for
//! one queue. A send that is late goes on, and reaches the broker when that takes it; only its caller waits no longer, and
//! the events of another try are recognised.
//!
//! **Bounded.** At most [`CHANNELS`] sends are in flight. A send that is no longer awaited keeps its permit until the broker
//! has answered or the connection is lost, so a broker that is out of memory, and takes nothing without an error, does not
//! fill this process's memory.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use naru_engines::Applied;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::envelope::Outgoing;
use crate::link::Session;
use crate::outage::Outage;
use crate::started::Started;

/// How many sends: each worker of a process has one or two in flight for each hop that it sends to.
const CHANNELS: usize = 16;

/// Why messages were not published, or not all of them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unpublished {
    #[error("too many messages wait for the broker's confirm")]
    Full,
    #[error("no confirm within {0:?}")]
    Unconfirmed(Duration),
    /// From this message on, the broker may not have them.
    #[error("the broker can't take it for now")]
    NackedFrom(usize),
    #[error("there is no queue {0:?}")]
    Unroutable(ShortString),
    #[error(transparent)]
    Broken(#[from] lapin::Error),
    #[error("the publishing task ended: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

impl Unpublished {
    /// Whether some of the messages may have reached the broker.
    pub(crate) fn applied(&self) -> Applied {
        match self {
            Self::Full => Applied::No,
            _ => Applied::Unknown,
        }
    }
}

pub(crate) struct Publisher {
    timeout: Duration,
    /// One permit for each send.
    slots: Arc<Semaphore>,
    /// Channels without a send, each with the number of its session.
    idle: Arc<Mutex<Vec<(u64, Channel)>>>,
}

impl Publisher {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, slots: Arc::new(Semaphore::new(CHANNELS)), idle: Arc::default() }
    }

    /// Publishes in order; returns when all are confirmed.
    ///
    /// After a cancellation or time-out a send goes on: it may reach the broker.
    pub(crate) async fn publish(
        &self,
        session: &Session,
        messages: Arc<[Outgoing]>,
    ) -> Result<(), Unpublished> {
        let deadline = Instant::now() + self.timeout;
        let slot = timeout_at(deadline, self.slots.clone().acquire_owned()).await;
        // The semaphore is never closed.
        let Ok(Ok(slot)) = slot else { return Err(Unpublished::Full) };
        let (session, idle) = (session.clone(), self.idle.clone());
        let publishing = tokio::spawn(async move {
            let channel = channel(&session, &idle).await?;
            let answer = transmit_until(&channel, &messages, deadline).await;
            // On a channel that failed, confirms of this send may still come.
            if !matches!(answer, Err(Unpublished::Broken(_))) {
                idle.lock().unwrap_or_else(PoisonError::into_inner).push((session.number, channel));
            }
            drop(slot);
            answer
        });
        match timeout_at(deadline, publishing).await {
            Ok(answer) => answer?,
            Err(_late) => Err(Unpublished::Unconfirmed(self.timeout)),
        }
    }

    /// Waits until no send is in flight, or until the time-out.
    pub(crate) async fn finish(&self) {
        let all = self.slots.acquire_many(u32::try_from(CHANNELS).unwrap_or(u32::MAX));
        let _late = timeout_at(Instant::now() + self.timeout, all).await;
    }
}

/// A channel with confirms and without a send.
async fn channel(session: &Session, idle: &Mutex<Vec<(u64, Channel)>>) -> lapin::Result<Channel> {
    {
        let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(number, channel)| *number == session.number && channel.status().connected());
        if let Some((_, channel)) = idle.pop() {
            return Ok(channel);
        }
    }
    let channel = session.connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

/// Sends nacked messages again until the deadline. Those after the first nacked one are sent again, too, so that they arrive in
/// order the last time.
async fn transmit_until(
    channel: &Channel,
    messages: &Arc<[Outgoing]>,
    deadline: Instant,
) -> Result<(), Unpublished> {
    let (mut first, mut outage) = (0, Outage::new("publishing"));
    loop {
        let answer = transmit(channel, messages, first).await;
        let Err(nacked @ Unpublished::NackedFrom(next)) = answer else {
            outage.ended();
            return answer;
        };
        outage.began(&nacked);
        outage.wait().await;
        if Instant::now() >= deadline {
            return Err(nacked);
        }
        first = next;
    }
}

/// Sends the messages from this one on, once.
async fn transmit(channel: &Channel, messages: &Arc<[Outgoing]>, first: usize) -> Result<(), Unpublished> {
    let begin = |nth| (nth, Started::begin(publish(channel.clone(), messages.clone(), nth)));
    let begun: Vec<_> = (first..messages.len()).map(begin).collect();
    let mut outcome = Ok(());
    for (nth, publishing) in begun {
        // All are awaited: the next send on this channel must not receive a return of this one.
        let confirmation = publishing.end().await?;
        let is_nack = confirmation.is_nack();
        if let Some(returned) = confirmation.take_message() {
            outcome = Err(Unpublished::Unroutable(returned.delivery.routing_key));
        } else if is_nack && outcome.is_ok() {
            outcome = Err(Unpublished::NackedFrom(nth));
        }
    }
    outcome
}

/// Publishes one message; returns its confirm.
async fn publish(channel: Channel, messages: Arc<[Outgoing]>, nth: usize) -> lapin::Result<Confirmation> {
    // Without `mandatory` the broker confirms messages that it discards.
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let Outgoing { queue, properties, body } = &messages[nth];
    // The default exchange routes to the queue of the key's name.
    channel.basic_publish("".into(), queue.clone(), options, body, properties.clone()).await?.await
}
