//! What a batch costs, by its size and the number of partitions: `batches AMQP_URL BEAM_PID`.

use std::time::{Duration, Instant};

use naru_engines::bus::ack;
use naru_model::hops::Accepted;
use naru_model::{Event, MessageId, RoomId, Timestamp, Trace};
use naru_rabbit::{Options, Rabbit};

const ROOMS: usize = 1_000;
const TICKS_PER_SECOND: f64 = 100.0;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (url, pid) = (arguments.next().expect("a URL"), arguments.next().expect("a pid"));
    let only: Vec<u32> = arguments.map(|partitions| partitions.parse().unwrap()).collect();
    let only = if only.is_empty() { vec![4, 8, 16, 32] } else { only };
    let rooms: Vec<RoomId> = (0..ROOMS).map(|_| room()).collect();
    println!("partitions  batch  send p50/p90 ms  all p50/p90 ms  broker µs/event  own µs/event");
    for partitions in only {
        let namespace = format!("bench{partitions}.{}", Timestamp::now().as_millis());
        let options = Options { partitions, namespace, ..Options::default() };
        let rabbit = Rabbit::open(&url, options).await.unwrap();
        let queue = rabbit.bus().accepted;
        let mut receiver = queue.receiver().await.unwrap();
        let mut next = 0;
        for (size, rounds) in [(1, 50), (1, 1_000), (4, 1_000), (16, 600), (64, 300), (256, 100)] {
            let (mut sends, mut totals) = (Vec::new(), Vec::new());
            let (broker, own) = (cpu(&pid), cpu("self"));
            for _ in 0..rounds {
                let events = (0..size).map(|_| {
                    next += 7;
                    event(&rooms[next % ROOMS])
                });
                let events = events.collect();
                let began = Instant::now();
                queue.send(events).await.unwrap();
                sends.push(began.elapsed());
                let mut received = 0;
                while received < size {
                    let batch = receiver.receive(512).await.unwrap();
                    received += batch.len();
                    ack(batch.into_iter().map(|delivery| delivery.ack_handle)).await.unwrap();
                }
                totals.push(began.elapsed());
            }
            let events = f64::from(rounds) * size as f64;
            println!(
                "{partitions:10} {size:6} {:16} {:15} {:16.0} {:13.0}",
                percentiles(sends),
                percentiles(totals),
                (cpu(&pid) - broker) * 1e6 / events,
                (cpu("self") - own) * 1e6 / events,
            );
        }
        rabbit.close().await;
    }
}

fn percentiles(mut spans: Vec<Duration>) -> String {
    spans.sort();
    let at = |part: usize| spans[spans.len() * part / 100].as_secs_f64() * 1e3;
    format!("{:.2}/{:.2}", at(50), at(90))
}

/// The CPU time of a process, in seconds.
fn cpu(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS_PER_SECOND
}

fn room() -> RoomId {
    format!("room-{}", MessageId::generate()).parse().unwrap()
}

fn event(room: &RoomId) -> Event<Accepted> {
    let payload = Accepted {
        id: MessageId::generate(),
        chat_room_id: room.clone(),
        sender_id: "ada".parse().unwrap(),
        sender_name: "Ada".into(),
        content: "Hello Ben, how are you today? We meet at eight, don't be late.".into(),
        timestamp: Timestamp::now(),
        client_message_id: "c1".parse().unwrap(),
        after: None,
        origin: None,
        trace: Trace::start(),
    };
    Event::new(payload, Trace::start())
}
