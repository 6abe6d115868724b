//! A deployment for each test: a name space in the broker that no other test uses, and a cable to it that can be cut.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use naru_engines::bus::{Bus, Delivery, Receiver, ack};
use naru_model::hops::{Accepted, Offline};
use naru_model::{Event, Message, MessageId, RoomId, Seq, Timestamp, Trace, UserId, hops, partition_of};
use naru_rabbit::{Options, Rabbit};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};

/// More than a deployment has unless it says so.
pub(crate) const PARTITIONS: u32 = 16;
/// The delays of the wait queues.
pub(crate) const DELAYS: [Duration; 3] =
    [Duration::from_millis(150), Duration::from_secs(1), Duration::from_secs(60)];
/// How long anything may take that must happen.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What must happen, in time.
pub(crate) async fn soon<T>(what: &str, happens: impl Future<Output = T>) -> T {
    timeout(TEST_TIMEOUT, happens).await.unwrap_or_else(|_late| panic!("{what}: not within {TEST_TIMEOUT:?}"))
}

/// A name space of its own in a broker; its queues are deleted when it is dropped, but for those that events wait in.
///
/// RabbitMQ 3.10.8 was seen to answer every declaration of such a queue with "541 INTERNAL_ERROR" from one moment on. It does
/// so, test by test, when `rabbit_fifo_dlx_sup` has ended; and that ends for good, by its source, when dead-letter workers
/// crash twice within five seconds, as one does that starts while its queue is being deleted.
pub(crate) struct Deployment {
    pub(crate) url: String,
    pub(crate) options: Options,
    /// A broker of the test's own goes away with all its queues.
    shared: bool,
}

impl Deployment {
    /// In the broker that all tests share.
    pub(crate) fn shared() -> Self {
        let mut deployment = Self::at(naru_services::url(naru_services::Kind::Rabbitmq).to_owned());
        deployment.shared = true;
        deployment
    }

    /// In a broker of the test's own.
    pub(crate) fn at(url: String) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Shown when a test fails.
        let _told = tracing_subscriber::fmt()
            .with_env_filter("info,lapin=warn,lapin::returned_messages=off")
            .with_test_writer()
            .with_ansi(false)
            .try_init();
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("naru.{}.{nth}.{}", std::process::id(), Timestamp::now().as_millis());
        let options =
            Options { namespace, wait_delays: DELAYS.into(), partitions: PARTITIONS, ..Options::default() };
        Self { url, options, shared: false }
    }

    pub(crate) fn queue(&self, below: &str) -> String {
        format!("{}.{below}", self.options.namespace)
    }

    /// A process of this deployment.
    pub(crate) async fn process(&self) -> Process {
        let port = self.url.split([':', '/', '@']).find_map(|part| part.parse().ok()).expect("a port");
        let cable = Cable::to(port).await;
        let url = self.url.replacen(&port.to_string(), &cable.port.to_string(), 1);
        let rabbit = Rabbit::open(&url, self.options.clone()).await.unwrap();
        Process { rabbit, cable }
    }

    /// Past the driver.
    pub(crate) async fn channel(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    /// How many messages wait in a queue.
    pub(crate) async fn depth(&self, channel: &Channel, below: &str) -> u32 {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare(self.queue(below).into(), passive, FieldTable::default()).await;
        queue.unwrap().message_count()
    }

    fn queues(&self) -> Vec<String> {
        let mut queues = vec!["parked".to_owned()];
        for hop in hops::ALL {
            queues.push(hop.name.to_owned());
            queues.push(format!("{}.receivers", hop.name));
            if hop.kind == hops::HopKind::Ordered {
                queues.extend((0..self.options.partitions).map(|nth| format!("{}.{nth}", hop.name)));
            }
        }
        queues.into_iter().map(|below| self.queue(&below)).collect()
    }

    async fn clear(&self) {
        let (connection, _) = self.channel().await;
        let (connection, queues) = (&connection, self.queues());
        join_all(queues.chunks(16).map(async |queues| {
            let channel = connection.create_channel().await.unwrap();
            for queue in queues {
                channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
            }
        }))
        .await;
        // lapin fails to close a connection while it closes a channel of it.
        let _closed = connection.close(200, "done".into()).await;
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        if !self.shared || std::thread::panicking() {
            return;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(self.clear());
            });
        });
    }
}

/// One process's driver, and its cable.
pub(crate) struct Process {
    pub(crate) rabbit: Rabbit,
    pub(crate) cable: Cable,
}

impl Process {
    pub(crate) fn bus(&self) -> Bus {
        self.rabbit.bus()
    }
}

/// A way to the broker that can be cut: then nothing gets through any more, and the broker sees a connection end without
/// a word, as when a process is killed. Dropped, it is cut.
pub(crate) struct Cable {
    port: u16,
    carrying: AbortHandle,
}

impl Cable {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let own_port = listener.local_addr().unwrap().port();
        let carrying = tokio::spawn(async move {
            // Aborted with this task.
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    // A broker that is down closes what is opened.
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    near.set_nodelay(true).unwrap();
                    far.set_nodelay(true).unwrap();
                    let _ended = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self { port: own_port, carrying: carrying.abort_handle() }
    }

    pub(crate) fn cut(&self) {
        self.carrying.abort();
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.cut();
    }
}

pub(crate) fn room() -> RoomId {
    format!("room-{}", MessageId::generate()).parse().unwrap()
}

/// One room in each of so many partitions.
pub(crate) fn rooms_apart(count: usize) -> Vec<RoomId> {
    let mut partitions = std::collections::HashSet::new();
    std::iter::repeat_with(room).filter(|room| partitions.insert(partition(room))).take(count).collect()
}

pub(crate) fn partition(room: &RoomId) -> u32 {
    partition_of(room, PARTITIONS)
}

pub(crate) fn user() -> UserId {
    "ada".parse().unwrap()
}

/// A message of this room; its content is its number.
pub(crate) fn accepted(room: &RoomId, number: u32) -> Event<Accepted> {
    let payload = Accepted {
        id: MessageId::generate(),
        chat_room_id: room.clone(),
        sender_id: user(),
        sender_name: "Ada".into(),
        content: number.to_string().into(),
        timestamp: Timestamp::now(),
        client_message_id: format!("c{number}").parse().unwrap(),
        after: None,
        origin: None,
        trace: Trace::start(),
    };
    Event::new(payload, Trace::start())
}

pub(crate) fn number(event: &Event<Accepted>) -> u32 {
    event.payload.content.parse().unwrap()
}

pub(crate) fn offline() -> Event<Offline> {
    let message: Message = accepted(&room(), 1).payload.at(Seq(1));
    Event::new(Offline { message, recipients: vec![user()] }, Trace::start())
}

pub(crate) async fn done<T: hops::Payload>(batch: Vec<Delivery<T>>) -> Vec<Event<T>> {
    let (events, ack_handles): (_, Vec<_>) =
        batch.into_iter().map(|delivery| (delivery.event, delivery.ack_handle)).unzip();
    // What can't be acknowledged comes again, which is for the test to see.
    let _comes_again = ack(ack_handles).await;
    events
}

/// The next one, acknowledged.
pub(crate) async fn next<T: hops::Payload>(receiver: &mut Box<dyn Receiver<T>>) -> Event<T> {
    let batch = soon("an event", receiver.receive(1)).await.unwrap();
    done(batch).await.remove(0)
}

/// Tries until it works; how long that took.
pub(crate) async fn until_ok<T, E: std::fmt::Debug>(
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> (T, Duration) {
    let began = Instant::now();
    loop {
        match attempt().await {
            Ok(answer) => return (answer, began.elapsed()),
            Err(error) if began.elapsed() > TEST_TIMEOUT => panic!("still {error:?} after {TEST_TIMEOUT:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
