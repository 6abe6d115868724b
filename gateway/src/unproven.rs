//! Messages that were written to one session and are not proven to be received, and the pings that ask for proof. Pure.

use naru_model::{MessageId, RoomId, Seq, Timestamp};

/// How many messages one session remembers as unproven. Messages beyond them stay unproven: a client that reads this many
/// without answering a ping does not answer pings.
const MAX_UNPROVEN: usize = 1024;
/// A session with this many unproven messages is asked for proof without waiting for the ticker.
const MAX_UNASKED: usize = 256;

/// A message whose receipt a client has to prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToProve {
    pub(crate) room: RoomId,
    pub(crate) seq: Seq,
    pub(crate) id: MessageId,
    /// When it was accepted.
    pub(crate) timestamp: Timestamp,
}

/// The messages that were written to one session and are not proven yet, and the pings that ask for their proof. An idle
/// session holds an empty one, which has no heap memory.
#[derive(Debug)]
pub(crate) struct Unproven {
    /// Whether pings ask for proof, and pongs prove.
    by_ping: bool,
    /// Oldest first.
    written: Vec<ToProve>,
    /// How many of them the last ping covers.
    covered: usize,
    /// The last ping's number, which is its payload.
    ping: u32,
    /// The last ping is not answered yet.
    is_asked: bool,
    /// A ping is wanted even if all messages are proven.
    is_wanted: bool,
    /// A ping for proof is to be written once no frame waits.
    is_due: bool,
    /// The session is registered with the ticker.
    is_registered: bool,
}

impl Unproven {
    pub(crate) fn new(by_ping: bool) -> Self {
        let (written, covered, ping) = (Vec::new(), 0, 0);
        let [is_asked, is_wanted, is_due, is_registered] = [false; 4];
        Self { by_ping, written, covered, ping, is_asked, is_wanted, is_due, is_registered }
    }

    /// Notes that a message was written. Returns whether to register the session with the ticker.
    pub(crate) fn wrote(&mut self, message: ToProve) -> bool {
        if self.written.len() < MAX_UNPROVEN {
            self.written.push(message);
        }
        !std::mem::replace(&mut self.is_registered, true)
    }

    /// Has the client pinged as a sign of life.
    pub(crate) fn want_ping(&mut self) {
        self.is_wanted = true;
    }

    /// Takes a turn of the ticker. Returns whether another turn is needed, because messages are still unproven.
    pub(crate) fn ask(&mut self, is_too_old: impl Fn(&ToProve) -> bool) -> bool {
        self.take(is_too_old);
        self.is_registered = !self.written.is_empty();
        // Only the last ping's pong counts: a new ping would make the pong of one under way worthless.
        self.is_due = self.is_registered && self.by_ping && !self.is_asked;
        self.is_registered
    }

    /// Whether a ping for proof is to be written.
    pub(crate) fn is_due(&self) -> bool {
        self.is_due
    }

    /// Makes a last ping due if messages are not covered by one.
    pub(crate) fn ask_for_the_rest(&mut self) {
        self.is_due = self.by_ping && self.covered < self.written.len();
    }

    /// The ping to write now, if one is due. A ping for proof comes when no frame waits to be written, so that a burst shares
    /// it; or when many messages were written.
    pub(crate) fn next_ping(&mut self, more_waits: bool) -> Option<[u8; 4]> {
        let is_due = self.is_due && !more_waits;
        let is_much = self.by_ping && !self.is_asked && self.written.len() >= MAX_UNASKED;
        if !(self.is_wanted || is_due || is_much) {
            return None;
        }
        self.ping = self.ping.wrapping_add(1);
        (self.covered, self.is_asked) = (self.written.len(), true);
        (self.is_wanted, self.is_due) = (false, false);
        Some(self.ping.to_be_bytes())
    }

    /// Takes a pong; returns the messages that it proves, where pongs prove. Only the last ping's counts, because a client
    /// that has several to answer may answer just the last (RFC 6455, 5.5.3), which covers the messages of those before it.
    pub(crate) fn pong(&mut self, payload: &[u8]) -> Vec<MessageId> {
        if !self.is_asked || payload != self.ping.to_be_bytes() {
            return Vec::new();
        }
        self.is_asked = false;
        let covered = std::mem::take(&mut self.covered);
        if !self.by_ping {
            return Vec::new();
        }
        let proven = self.written.drain(..covered).map(|message| message.id).collect();
        self.tidy();
        proven
    }

    /// Takes a client's position in a room; returns the messages that it proves.
    pub(crate) fn received(&mut self, room: &RoomId, up_to: Seq) -> Vec<MessageId> {
        self.take(|message| message.seq <= up_to && message.room == *room)
    }

    /// Takes out the messages for which `is_meant` holds.
    fn take(&mut self, is_meant: impl Fn(&ToProve) -> bool) -> Vec<MessageId> {
        let (mut taken, mut place) = (Vec::new(), 0);
        let covered = self.covered;
        self.written.retain(|message| {
            let is_meant = is_meant(message);
            if is_meant {
                taken.push(message.id);
                self.covered -= usize::from(place < covered);
            }
            place += 1;
            !is_meant
        });
        self.tidy();
        taken
    }

    /// Frees the memory of an idle session, and makes no ping for proof due.
    fn tidy(&mut self) {
        if self.written.is_empty() {
            (self.written, self.is_due) = (Vec::new(), false);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn id(number: usize) -> MessageId {
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&number.to_be_bytes());
        MessageId::from_bytes(bytes)
    }

    /// The message with this number, at that place of a room.
    pub(crate) fn message(number: usize, room: &str) -> ToProve {
        let room = RoomId::new(room).unwrap();
        ToProve { room, seq: Seq(number as u64), id: id(number), timestamp: Timestamp::now() }
    }

    fn wrote(numbers: impl IntoIterator<Item = usize>) -> Unproven {
        let mut unproven = Unproven::new(true);
        numbers.into_iter().for_each(|number| _ = unproven.wrote(message(number, "r")));
        unproven
    }

    /// A turn of the ticker.
    fn ask(unproven: &mut Unproven) -> bool {
        unproven.ask(|_| false)
    }

    #[test]
    fn nothing_to_prove_is_no_reason_to_ping() {
        let mut unproven = Unproven::new(true);
        assert!(!ask(&mut unproven));
        assert_eq!(unproven.next_ping(false), None);
        unproven.want_ping();
        let ping = unproven.next_ping(true).expect("a sign of life is wanted");
        assert_eq!(unproven.next_ping(false), None);
        assert_eq!(unproven.pong(&ping), []);
    }

    #[test]
    fn only_the_ticker_asks_and_a_burst_shares_its_ping() {
        let mut unproven = wrote([1, 2]);
        assert_eq!(unproven.next_ping(false), None, "the ticker has not come");
        assert!(ask(&mut unproven));
        assert_eq!(unproven.next_ping(true), None, "more is about to be written");
        unproven.wrote(message(3, "r"));
        let first = unproven.next_ping(false).expect("nothing else waits");
        assert_eq!(unproven.next_ping(false), None, "one for each tick");
        assert_eq!(unproven.pong(&first), [id(1), id(2), id(3)]);
        assert_eq!(unproven.written.capacity(), 0, "an idle session owns no memory");
        assert!(!ask(&mut unproven));
        assert_eq!(unproven.next_ping(false), None);
    }

    #[test]
    fn a_ping_that_is_not_answered_yet_is_not_followed_by_another() {
        let mut unproven = wrote([1]);
        ask(&mut unproven);
        let ping = unproven.next_ping(false).unwrap();
        unproven.wrote(message(2, "r"));
        assert!(ask(&mut unproven), "the ticker comes again");
        assert_eq!(unproven.next_ping(false), None);
        assert_eq!(unproven.pong(&ping), [id(1)]);
        assert!(ask(&mut unproven));
        assert!(unproven.next_ping(false).is_some());
    }

    #[test]
    fn a_pong_proves_nothing_that_was_written_after_its_ping_and_nothing_twice() {
        let mut unproven = wrote([1]);
        ask(&mut unproven);
        let ping = unproven.next_ping(false).unwrap();
        unproven.wrote(message(2, "r"));
        assert_eq!(unproven.pong(&ping), [id(1)]);
        assert_eq!(unproven.pong(&ping), [], "the same pong again");
        assert_eq!(unproven.written.iter().map(|message| message.id).collect::<Vec<_>>(), [id(2)]);
    }

    #[test]
    fn pongs_that_answer_no_ping_prove_nothing() {
        let mut unproven = wrote([1]);
        assert_eq!(unproven.pong(&[]), []);
        assert_eq!(unproven.pong(&0_u32.to_be_bytes()), [], "there was no ping yet");
        ask(&mut unproven);
        unproven.next_ping(false).unwrap();
        assert_eq!(unproven.pong(b"hello"), []);
    }

    /// A client that has two pings to answer may answer only the later one.
    #[test]
    fn a_sign_of_life_covers_what_an_unanswered_ping_asked_for() {
        let mut unproven = wrote([1]);
        ask(&mut unproven);
        let first = unproven.next_ping(false).unwrap();
        unproven.wrote(message(2, "r"));
        unproven.want_ping();
        let second = unproven.next_ping(false).expect("a sign of life is not put off");
        assert_eq!(unproven.pong(&first), [], "the later one will say more");
        assert_eq!(unproven.pong(&second), [id(1), id(2)]);
    }

    #[test]
    fn a_received_proves_its_room_up_to_its_place_without_a_pong() {
        let mut unproven = wrote([1, 2]);
        unproven.wrote(message(2, "other"));
        unproven.wrote(message(3, "r"));
        ask(&mut unproven);
        let ping = unproven.next_ping(false).unwrap();
        unproven.wrote(message(4, "r"));
        let room = RoomId::new("r").unwrap();
        assert_eq!(unproven.received(&room, Seq(2)), [id(1), id(2)]);
        assert_eq!(unproven.received(&room, Seq(2)), [], "nothing twice");
        assert_eq!(unproven.pong(&ping), [id(2), id(3)], "what its ping covered and was not proven yet");
        assert_eq!(unproven.received(&room, Seq(9)), [id(4)]);
        assert!(!ask(&mut unproven), "there is nothing left to ask for");
    }

    #[test]
    fn a_received_in_time_saves_the_ping() {
        let mut unproven = wrote([1]);
        ask(&mut unproven);
        unproven.received(&RoomId::new("r").unwrap(), Seq(1));
        assert_eq!(unproven.next_ping(false), None);
    }

    #[test]
    fn where_only_a_received_counts_nothing_is_pinged_for_and_no_pong_proves() {
        let mut unproven = Unproven::new(false);
        (1..2 * MAX_UNASKED).for_each(|number| _ = unproven.wrote(message(number, "r")));
        assert!(ask(&mut unproven));
        unproven.ask_for_the_rest();
        assert_eq!(unproven.next_ping(false), None);
        unproven.want_ping();
        let ping = unproven.next_ping(false).unwrap();
        assert_eq!(unproven.pong(&ping), []);
        assert_eq!(unproven.received(&RoomId::new("r").unwrap(), Seq(1)), [id(1)]);
    }

    #[test]
    fn a_client_that_is_written_to_a_lot_is_asked_sooner() {
        let mut unproven = wrote(0..MAX_UNASKED);
        assert!(unproven.next_ping(true).is_some());
        assert_eq!(unproven.next_ping(true), None, "one at a time");
    }

    #[test]
    fn a_client_that_never_answers_is_not_remembered_without_bound() {
        let mut unproven = wrote(0..2 * MAX_UNPROVEN);
        assert_eq!(unproven.written.len(), MAX_UNPROVEN);
        let ping = unproven.next_ping(false).unwrap();
        assert!(!unproven.ask(|_| true), "nor when its proof is not asked for any more");
        assert_eq!((unproven.pong(&ping), unproven.written.capacity()), (Vec::new(), 0));
    }
}
