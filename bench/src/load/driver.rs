//! The loop that sends messages when they are due and reads frames: epoll(7) and a timer, without a runtime in between.
//! A message costs the tool a write, and a read for each frame that it causes.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, EventData, EventFlags},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use super::{Chat, Event, Session};
use crate::record::{RunRecord, Schedule};

/// Bytes read from a session at a time.
const READ_BYTES: usize = 64 * 1024;
/// Events taken from the system at a time.
const MAX_EVENTS: usize = 256;
/// The timer's event; sessions have their numbers.
const TIMER: u64 = u64::MAX;
/// Above this rate several messages are due at each tick.
const MIN_TICK: Duration = Duration::from_micros(40);
/// A session whose message was refused sends none for so long, which is Naru's `retryAfterMs` of an `OVERLOADED`.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// How long the loop waits at most before it reads the clock.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A room of two, by their sessions' numbers.
#[derive(Debug, Clone)]
pub struct Room {
    pub id: String,
    pub members: [usize; 2],
}

/// The state of the loop.
pub struct Driver {
    epoll: OwnedFd,
    members: Vec<Member>,
    rooms: Vec<Room>,
    users: Arc<[String]>,
    content: String,
    record: RunRecord,
    schedule: Schedule,
    buffer: Vec<u8>,
    events: Vec<Event>,
}

struct Member {
    session: Session,
    is_open: bool,
    /// The messages in `output`, at least partly.
    unsent: Vec<usize>,
    /// Until then what is due is withheld.
    paused_until: Option<Instant>,
}

impl Driver {
    /// A driver without sessions.
    pub fn new(schedule: Schedule) -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            members: Vec::new(),
            rooms: Vec::new(),
            users: Arc::default(),
            content: String::new(),
            record: RunRecord::new(schedule),
            schedule,
            buffer: vec![0; READ_BYTES],
            events: Vec::new(),
        })
    }

    /// Adds an open session.
    pub fn add(&mut self, mut session: Session) -> io::Result<()> {
        session.socket.opened()?;
        let number = EventData::new_u64(self.members.len() as u64);
        epoll::add(&self.epoll, &session.socket, number, EventFlags::IN)?;
        self.members.push(Member { session, is_open: true, unsent: Vec::new(), paused_until: None });
        // A frame may have come with the last answer.
        self.take(self.members.len() - 1, 0);
        Ok(())
    }

    /// Sets the rooms: message n goes to room n / 2, and its first and second member write in turn.
    pub fn rooms(&mut self, rooms: Vec<Room>, users: Arc<[String]>, content: String) {
        (self.rooms, self.users, self.content) = (rooms, users, content);
    }

    /// How many sessions have ended.
    pub fn ended(&self) -> usize {
        self.members.iter().filter(|member| !member.is_open).count()
    }

    /// Sends every message when it is due, the first at `start`, and waits for the stragglers.
    pub fn run(mut self, start: Instant, drain_timeout: Duration) -> io::Result<RunRecord> {
        self.schedule.start = start;
        self.record = RunRecord::new(self.schedule);
        let tick = Duration::from_secs(1) / self.schedule.rate;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let first = self.schedule.start.saturating_duration_since(Instant::now()).max(MIN_TICK);
        let spec = Itimerspec { it_interval: timespec(tick.max(MIN_TICK)), it_value: timespec(first) };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &spec)?;
        epoll::add(&self.epoll, timer.as_fd(), EventData::new_u64(TIMER), EventFlags::IN)?;
        let mut next = 0;
        while next < self.schedule.total {
            while next < self.schedule.total && self.schedule.due(next) <= Instant::now() {
                self.send(next);
                next += 1;
            }
            self.poll(POLL_INTERVAL)?;
            // A periodic timer goes on when it is read; one that has not expired has nothing to read.
            let _expiries = rustix::io::read(&timer, &mut [0; 8]);
        }
        epoll::delete(&self.epoll, timer.as_fd())?;
        let deadline = self.schedule.due(self.schedule.total) + drain_timeout;
        while !self.record.is_finished() && Instant::now() < deadline {
            self.poll(POLL_INTERVAL)?;
        }
        Ok(self.record)
    }

    /// Sends all messages as fast as they are answered, with this many unanswered at a time; gives up when nothing
    /// has been answered for `idle_timeout`.
    pub fn fill(mut self, window: usize, idle_timeout: Duration) -> io::Result<RunRecord> {
        let (mut next, mut finished, mut last_answer) = (0, 0, Instant::now());
        while !self.record.is_finished() && last_answer.elapsed() < idle_timeout {
            while next < self.schedule.total && next - self.record.finished() < window {
                self.send(next);
                next += 1;
            }
            self.poll(POLL_INTERVAL)?;
            if self.record.finished() > finished {
                (finished, last_answer) = (self.record.finished(), Instant::now());
            }
        }
        Ok(self.record)
    }

    /// Waits at most this long for input, and takes it.
    pub fn poll(&mut self, longest: Duration) -> io::Result<()> {
        let mut ready = Vec::with_capacity(MAX_EVENTS);
        match epoll::wait(&self.epoll, spare_capacity(&mut ready), Some(&timespec(longest))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in ready {
            let (number, flags) = (event.data.u64(), event.flags);
            if number == TIMER {
                continue;
            }
            if flags.contains(EventFlags::OUT) {
                self.flush(number as usize, true);
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                self.read(number as usize);
            }
        }
        Ok(())
    }

    fn send(&mut self, number: usize) {
        let room = &self.rooms[(number / 2) % self.rooms.len()];
        let (sender, receiver) = (room.members[number % 2], room.members[1 - number % 2]);
        let member = &mut self.members[sender];
        // A message whose sender's session has ended stays unsent.
        if !member.is_open {
            return;
        }
        if member.paused_until.is_some_and(|until| Instant::now() < until) {
            return self.record.withheld(number);
        }
        let chat = Chat { number, room: &room.id, receiver: &self.users[receiver], content: &self.content };
        let is_blocked = !member.session.socket.output.is_empty();
        member.session.dialect.chat(chat, &mut member.session.socket.output);
        member.unsent.push(number);
        if !is_blocked {
            self.flush(sender, false);
        }
    }

    /// Writes a session's output; `is_watched` is whether the loop waits for space already.
    fn flush(&mut self, number: usize, is_watched: bool) {
        let member = &mut self.members[number];
        match member.session.socket.flush() {
            Ok(true) => {
                member.unsent.drain(..).for_each(|number| self.record.sent(number));
                if is_watched {
                    self.watch(number, EventFlags::IN);
                }
            }
            Ok(false) if is_watched => {}
            Ok(false) => self.watch(number, EventFlags::IN | EventFlags::OUT),
            Err(_) => self.end(number, "session broken"),
        }
    }

    fn read(&mut self, number: usize) {
        let member = &mut self.members[number];
        if !member.is_open {
            return;
        }
        match member.session.socket.read(&mut self.buffer) {
            Ok(None) => {}
            Ok(Some(0)) | Err(_) => self.end(number, "session broken"),
            Ok(Some(count)) => self.take(number, count),
        }
    }

    /// Takes every complete frame of the last read's rest and this read.
    fn take(&mut self, number: usize, count: usize) {
        let Session { socket, dialect } = &mut self.members[number].session;
        let was_blocked = !socket.output.is_empty();
        let has_rest = !socket.input.is_empty();
        if has_rest {
            socket.input.extend_from_slice(&self.buffer[..count]);
        }
        let input = if has_rest { &socket.input[..] } else { &self.buffer[..count] };
        let mut taken = 0;
        let failed = loop {
            match dialect.take(&input[taken..], &mut socket.output, &mut self.events) {
                Ok(0) => break false,
                Ok(length) => taken += length,
                Err(_) => break true,
            }
        };
        if has_rest {
            socket.input.drain(..taken);
        } else {
            socket.input.extend_from_slice(&self.buffer[taken..count]);
        }
        let has_output = !socket.output.is_empty();
        let mut events = std::mem::take(&mut self.events);
        events.drain(..).for_each(|event| self.enter(number, event));
        self.events = events;
        if failed {
            self.end(number, "unreadable frame");
        } else if has_output && !was_blocked && self.members[number].is_open {
            self.flush(number, false);
        }
    }

    fn enter(&mut self, member: usize, event: Event) {
        match event {
            Event::Acked(number) if number < self.schedule.total => self.record.acked(number),
            Event::Delivered(Some(number)) if self.is_for(number, member) => self.record.delivered(number),
            Event::Acked(_) | Event::Delivered(_) => self.record.stray(),
            Event::Error(kind, number) => {
                if number.is_some() {
                    self.members[member].paused_until = Some(Instant::now() + REFUSED_PAUSE);
                }
                self.record.error(&kind, number);
            }
            Event::Resync => self.record.resync(),
            Event::Closed(how) => self.end(member, &how),
        }
    }

    fn is_for(&self, number: usize, member: usize) -> bool {
        number < self.schedule.total
            && !self.rooms.is_empty()
            && self.rooms[(number / 2) % self.rooms.len()].members[1 - number % 2] == member
    }

    fn end(&mut self, number: usize, why: &str) {
        let member = &mut self.members[number];
        if member.is_open {
            member.is_open = false;
            let _ = epoll::delete(&self.epoll, &member.session.socket);
            self.record.error(why, None);
        }
    }

    fn watch(&mut self, number: usize, flags: EventFlags) {
        let data = EventData::new_u64(number as u64);
        if epoll::modify(&self.epoll, &self.members[number].session.socket, data, flags).is_err() {
            self.end(number, "session broken");
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() }
}
