//! What a message may cost: the bounds, and the table of `docs/COSTS.md` that is made from them.
//!
//! Costs are counted, not timed. A lone message has a bound of its own; of a burst each thing is bounded by the batches that
//! formed, and batches must really form.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use naru::pipeline::Changes;
use naru_client::Client;
use naru_embedded::Counts;

use crate::support::Naru;

/// How many people write, two in each room, and how many messages each of them writes at once.
pub const WRITERS: usize = 50;
pub const BURST: usize = 20;
/// A burst's batches hold so many messages on average.
const MIN_MEAN_BATCH: u64 = 4;
/// How often the fanout writes down what only counts.
const TICK: Duration = Duration::from_millis(250);

/// What in a burst bounds how often something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// A batch of the gateway's intake.
    Intake,
    /// A batch of the persister.
    Persist,
    /// A batch of the fanout.
    Publish,
    /// A batch that is sent on an ordered hop: of the intake, or of the persister.
    Hop,
    /// 250 ms.
    Tick,
    /// A hundred messages.
    Hundred,
    Message,
}

impl Per {
    const fn as_str(self) -> &'static str {
        match self {
            Per::Intake => "intake batch",
            Per::Persist => "persister batch",
            Per::Publish => "fanout batch",
            Per::Hop => "batch of either",
            Per::Tick => "250 ms",
            Per::Hundred => "100 messages",
            Per::Message => "message",
        }
    }
}

/// How often something may be done.
pub struct Bound {
    pub of: &'static str,
    /// For one message that comes alone.
    pub lone: u64,
    /// In a burst: so often …
    pub times: u64,
    /// … for each of these.
    pub per: Per,
    pub why: &'static str,
}

pub const fn bound(of: &'static str, lone: u64, times: u64, per: Per, why: &'static str) -> Bound {
    Bound { of, lone, times, per, why }
}

/// What was done, by name.
pub type Done = BTreeMap<String, u64>;

/// How much there was to do.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub messages: u64,
    pub intake: u64,
    pub persist: u64,
    pub publish: u64,
    pub lasted: Duration,
}

impl Load {
    fn count(&self, per: Per) -> u64 {
        match per {
            Per::Intake => self.intake,
            Per::Persist => self.persist,
            Per::Publish => self.publish,
            Per::Hop => self.intake + self.persist,
            // One at either end.
            Per::Tick => 2 + u64::try_from(self.lasted.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX),
            Per::Hundred => self.messages.div_ceil(100),
            Per::Message => self.messages,
        }
    }
}

/// Holds what was done for a lone message and for a burst to the bounds. What has no bound may not be done at all.
pub fn hold(bounds: &[Bound], lone: &Done, burst: &Done, load: &Load) {
    eprintln!("lone: {lone:#?}\nburst: {burst:#?}\nof {load:?}");
    for (what, count) in lone.iter().chain(burst) {
        assert!(bounds.iter().any(|bound| bound.of == what), "{what} is done {count} times and has no bound");
    }
    for Bound { of, lone: max_lone, times, per, .. } in bounds {
        let (lone, burst) = (lone.get(*of).copied().unwrap_or(0), burst.get(*of).copied().unwrap_or(0));
        assert!(lone <= *max_lone, "{of}: {lone} for a lone message, {max_lone} may be");
        let max = times * load.count(*per);
        assert!(burst <= max, "{of}: {burst} for a burst, {max} may be: {times} per {}", per.as_str());
    }
    for (batches, of) in [(load.intake, "intake"), (load.persist, "persister"), (load.publish, "fanout")] {
        assert!(
            load.messages >= MIN_MEAN_BATCH * batches,
            "{} messages in {batches} batches of the {of}",
            load.messages
        );
    }
}

/// The bounds on the embedded engine.
pub const EMBEDDED: &[Bound] = &[
    bound(
        "writer calls",
        3,
        2,
        Per::Hop,
        "the append, the run, and (for many messages at once) closing entries",
    ),
    bound(
        "reader calls",
        3,
        1,
        Per::Tick,
        "of the sweep, once a second: rooms, heads and members are answered from memory",
    ),
    bound("commits", 3, 2, Per::Hop, "one for each of these"),
    bound("syncs", 1, 1, Per::Persist, "of the run: it covers the append, and its sender is told after it"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_a_message_costs_one_sync_and_no_reader() {
    let counts = Arc::new(std::sync::Mutex::new(None));
    let keep = counts.clone();
    let changes = Changes {
        embedded: Some(Box::new(move |embedded| *keep.lock().expect("a lock") = Some(embedded.counts()))),
        ..Changes::default()
    };
    let naru = Naru::start_with(&[], changes).await;
    let counts: Arc<Counts> = counts.lock().expect("a lock").take().expect("it is embedded");
    let mut people = pairs(&naru).await;
    let done = |counts: &Counts| {
        Done::from([
            ("writer calls".to_owned(), counts.writer_calls()),
            ("reader calls".to_owned(), counts.reader_calls()),
            ("commits".to_owned(), counts.commits()),
            ("syncs".to_owned(), counts.syncs()),
        ])
    };
    let closed = AtomicU64::new(naru.counted("naru_fanout_closed_total").await);
    let all_closed = async |messages: u64| {
        let expected = closed.fetch_add(messages, Ordering::Relaxed) + messages;
        naru.counts(&format!("naru_fanout_closed_total {expected}")).await;
    };

    let before = done(&counts);
    let [(one, room), (other, _)] = &mut people[..2] else { unreachable!("there are fifty") };
    one.chat(room, "a lone message", "lone").await;
    one.expect("ACK").await;
    other.expect("CHAT").await;
    all_closed(1).await;
    let lone = since(&done(&counts), &before);

    let (before, load, began) = (done(&counts), naru.load().await, Instant::now());
    let _people = burst(people).await;
    all_closed((WRITERS * BURST) as u64).await;
    let load = naru.load().await.since(&load, began.elapsed());
    hold(EMBEDDED, &lone, &since(&done(&counts), &before), &load);
    naru.stop().await;
}

/// Fifty people, two in each room; rooms, heads and members are known, and everything before is closed.
async fn pairs(naru: &Naru) -> Vec<(Client, String)> {
    let mut people = Vec::new();
    for number in 0..WRITERS / 2 {
        let names = [format!("u{number}a"), format!("u{number}b")];
        let room = naru.http(&names[0]).create_room(&[&names[0], &names[1]]).await;
        let (mut one, mut other) = (naru.phone(&names[0]).await, naru.phone(&names[1]).await);
        one.chat(&room, "the room is known now", "warm-up").await;
        one.expect("ACK").await;
        other.expect("CHAT").await;
        people.extend([(one, room.clone()), (other, room)]);
    }
    naru.counts(&format!("naru_fanout_closed_total {}", WRITERS / 2)).await;
    people
}

/// Each of them writes all of their messages at once, and waits for the answers and for the other's messages. They stay
/// connected, to prove that they have them.
pub async fn burst(people: Vec<(Client, String)>) -> Vec<Client> {
    let mut writing = tokio::task::JoinSet::new();
    for (mut phone, room) in people {
        writing.spawn(async move {
            for number in 0..BURST {
                phone.chat(&room, "one of a burst", &format!("burst-{number}")).await;
            }
            for _ in 0..BURST {
                phone.expect("ACK").await;
            }
            for _ in 0..BURST {
                phone.expect("CHAT").await;
            }
            phone
        });
    }
    writing.join_all().await
}

/// What was done in between.
pub fn since(after: &Done, before: &Done) -> Done {
    let before = |what: &str| before.get(what).copied().unwrap_or(0);
    let done = after.iter().map(|(what, count)| (what.clone(), count - before(what)));
    done.filter(|(_, count)| *count > 0).collect()
}

impl Load {
    /// What was done since this.
    pub fn since(&self, before: &Load, lasted: Duration) -> Load {
        Load {
            messages: self.messages - before.messages,
            intake: self.intake - before.intake,
            persist: self.persist - before.persist,
            publish: self.publish - before.publish,
            lasted,
        }
    }
}

/// The tables of the page.
#[test]
fn the_page_has_the_bounds_that_are_tested() {
    let page = include_str!("../../docs/COSTS.md");
    for (title, bounds) in [("embedded", EMBEDDED), ("services", crate::distributed::costs::BOUNDS)] {
        let mut table = String::from("| what | a lone message | in a burst | why |\n|---|---|---|---|\n");
        for Bound { of, lone, times, per, why } in bounds {
            writeln!(table, "| {of} | {lone} | {times} per {} | {why} |", per.as_str())
                .expect("a String takes all");
        }
        assert!(page.contains(&table), "docs/COSTS.md, {title}: the table is\n{table}");
    }
}
