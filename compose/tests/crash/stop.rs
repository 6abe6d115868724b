//! An orderly stop: what is in hand is answered, everybody is told to go, and nothing is left to recover.

use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use naru_client::{Http, Webhook};

use super::history::{History, Pushes};
use super::load::{Habits, Happenings, LISTENER, Memory, Moment, Person, ROOMS, WRITERS};
use super::stored::Stored;
use super::{environment, start};
use crate::support::token_of;

/// By when the process must have left: the default of `NARU_DRAIN_DEADLINE`.
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);
/// "Going away": the client reconnects.
const GOING_AWAY: u16 = 1001;

/// SIGTERM in the middle of the load, a few times on the same data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminate_drains() {
    let data = tempfile::tempdir().expect("a folder for the data");
    let mut backend = Webhook::start().await;
    let environment = environment(&backend);
    let (mut rooms, mut people) = (Vec::new(), Vec::new());
    for moment in [100, 1, 237].map(Moment::AcksReceived) {
        let mut server = start(data.path(), &environment).await;
        if people.is_empty() {
            for members in ROOMS {
                rooms.push(Http::new(server.url(), &token_of(members[0])).create_room(members).await);
            }
            let everybody = WRITERS.iter().zip(0..).chain([(&LISTENER, 6)]);
            people.extend(everybody.map(|(user, seed)| Person::new(user, &rooms, seed)));
        }
        let url = server.url().to_owned();
        let happenings = Happenings::new();
        let sessions = people.iter_mut().map(|person| {
            let window = if person.user == LISTENER { 0 } else { 16 };
            person.session(&url, Habits { memory: Memory::Resends, window }, &happenings)
        });
        let sessions = join_all(sessions);
        let stop = async {
            happenings.wait_for(moment).await;
            happenings.end();
            server.terminate();
        };
        let (closes, ()) = join(sessions, stop).await;
        for close in closes {
            assert_eq!(close.unwrap_or(GOING_AWAY), GOING_AWAY, "everybody is told to come back");
        }
        let begun = Instant::now();
        let status = server.wait_exit(DRAIN_DEADLINE).await;
        assert!(status.success(), "it left with {status} after {:?}", begun.elapsed());
        assert_eq!(Stored::open(data.path()).open_entries(), 0, "something is left to recover");
    }

    // The next one finds everything, and has nothing to make good but pushes.
    let server = start(data.path(), &environment).await;
    Stored::settled(data.path()).await;
    let history = History::read(server.url(), &rooms).await;
    let pushes = Pushes::taken_by(&mut backend);
    let (listener, writers) = people.split_last().expect("the listener is the last");
    for person in writers {
        history.check_sender(person);
    }
    for person in &people {
        history.check_heard(person);
        // Refused only because it was too late for it; whoever was told so and not "unknown" was told the truth.
        let there = history.of(person);
        for error in &person.errors {
            let place = error["clientMessageId"].as_str().and_then(|text| text.parse().ok());
            let place: usize = place.unwrap_or_else(|| panic!("an error about nothing: {error}"));
            let is_resent = person.sent[place].saved.is_some();
            assert!(
                error["code"] == "UNAVAILABLE" || is_resent || !there.contains_key(&place),
                "it was saved in spite of {error}"
            );
        }
    }
    history.check_recipients(listener, &pushes, &rooms);
    history.check_stored(&Stored::open(data.path()));
}
