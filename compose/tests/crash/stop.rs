//! An orderly stop: unanswered messages are answered, every client is sent away, and nothing is lost on the way out.

use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use naru_client::{Http, Webhook};
use tempfile::TempDir;

use super::history::{History, Pushes};
use super::load::{Habits, LISTENER, Memory, Moment, Person, Progress, ROOMS, WRITERS};
use super::stored::Stored;
use super::{environment, start};
use crate::support::token_of;

/// By when the process must have left: the default of `NARU_DRAIN_DEADLINE`.
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);
/// "Going away": the client reconnects.
const GOING_AWAY: u16 = 1001;

/// What is left after a few stops.
struct StopResult {
    data: TempDir,
    rooms: Vec<String>,
    writers: Vec<Person>,
    listener: Person,
    backend: Webhook,
}

/// SIGTERM in the middle of the load, a few times on the same data. Each time every client must be told to come back, and
/// the process must leave in order and in time.
async fn stop_under_load() -> StopResult {
    let data = tempfile::tempdir().expect("a folder for the data");
    let backend = Webhook::start().await;
    let environment = environment(&backend);
    let (mut rooms, mut people) = (Vec::new(), Vec::new());
    for moment in [100, 1, 237].map(Moment::AcksReceived) {
        let mut server = start(data.path(), &environment).await;
        if people.is_empty() {
            for members in ROOMS {
                rooms.push(Http::new(server.url(), &token_of(members[0])).create_room(members).await);
            }
            let all = WRITERS.iter().chain([&LISTENER]).zip(0..);
            people.extend(all.map(|(user, seed)| Person::new(user, &rooms, seed)));
        }
        let url = server.url().to_owned();
        let progress = Progress::new();
        let sessions = people.iter_mut().map(|person| {
            let window = if person.user == LISTENER { 0 } else { 16 };
            person.session(&url, Habits { memory: Memory::Resends, window }, &progress)
        });
        let sessions = join_all(sessions);
        let stop = async {
            progress.wait_for(moment).await;
            progress.end();
            server.terminate();
            Instant::now()
        };
        let (closes, asked) = join(sessions, stop).await;
        for close in closes {
            // None: it was too late to connect.
            assert_eq!(close.unwrap_or(GOING_AWAY), GOING_AWAY, "every client is told to come back");
        }
        let status = server.wait_exit(DRAIN_DEADLINE).await;
        assert!(status.success() && asked.elapsed() < DRAIN_DEADLINE, "{status}, {:?}", asked.elapsed());
        // What is left here is no loss: the next start takes it up. But its recipients receive it only then.
        eprintln!("left for the next start: {} messages", Stored::open(data.path()).open_entries());
    }
    let listener = people.pop().expect("the listener is the last");
    StopResult { data, rooms, writers: people, listener, backend }
}

/// Whatever was acknowledged is saved, and whatever was refused is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminate_drains() {
    let StopResult { data, rooms, writers, listener, backend } = stop_under_load().await;
    let server = start(data.path(), &environment(&backend)).await;
    Stored::recovered(data.path()).await;
    let history = History::read(server.url(), &rooms).await;
    history.check_received(&listener);
    for person in &writers {
        history.check_sender(person);
        history.check_received(person);
        let there = history.of(person);
        for error in &person.errors {
            let place = error["clientMessageId"].as_str().and_then(|text| text.parse().ok());
            let place: usize = place.unwrap_or_else(|| panic!("an error about nothing: {error}"));
            // Unknown is never a lie, and a user who was refused may have sent it again in the next session.
            let may_be_there = error["code"] == "UNAVAILABLE" || person.sent[place].saved.is_some();
            assert!(may_be_there || !there.contains_key(&place), "it was saved in spite of {error}");
        }
    }
    history.check_stored(&Stored::open(data.path()));
}

/// P5: a stop, too, leaves no recipient untold: what was not written to a session any more is pushed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminate_leaves_no_recipient_untold() {
    let StopResult { data, rooms, writers, listener, mut backend } = stop_under_load().await;
    let server = start(data.path(), &environment(&backend)).await;
    Stored::when_closed(data.path()).await;
    let history = History::read(server.url(), &rooms).await;
    let all: Vec<&Person> = writers.iter().chain([&listener]).collect();
    history.check_recipients(&all, &Pushes::taken_by(&mut backend), &rooms);
}
