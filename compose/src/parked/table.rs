//! Parked pushes as text for a terminal: pure. No control character of a push reaches the terminal.

use std::fmt::Write;

use naru_model::Timestamp;

use super::Parked;

/// The columns: an event id is 36 wide, and the longest line is 100.
pub(super) const HEAD: &str =
    "EVENT                                 LANE     AGE   TRIES  USER            REASON";
/// The most columns of a user's id.
const USER: usize = 14;
/// The most columns of a reason.
const REASON: usize = 24;

/// One push in one line.
pub(super) fn line(push: &Parked, now: Timestamp) -> String {
    let Parked { event_id, lane, attempts, .. } = push;
    let age = age(push.parked_at, now);
    let (user, reason) = (cut(push.user_id.as_str(), USER), cut(&push.reason, REASON));
    // User ids are ASCII, so their width is their length.
    format!("{event_id}  {:<7}  {age:<4}  {attempts:<5}  {user:<USER$}  {reason}", lane.as_str())
}

pub(super) fn whole(push: &Parked, now: Timestamp) -> String {
    let device = push.device_id.as_ref().map_or("-", |device| device.as_str());
    let lines = [
        ("event", push.event_id.to_string()),
        ("lane", push.lane.as_str().to_owned()),
        ("user", push.user_id.to_string()),
        ("device", device.to_owned()),
        ("room", push.chat_room_id.to_string()),
        ("message", format!("{}, number {} of its room", push.message_id, push.seq.0)),
        ("title", push.title.clone()),
        ("body", push.body.clone()),
        ("reason", push.reason.clone()),
        ("tries", push.attempts.to_string()),
        ("parked", format!("{}, {} ago", push.parked_at, age(push.parked_at, now))),
        ("expires", push.expires_at.to_string()),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        // Writing to a String does not fail.
        let _infallible = writeln!(text, "{name:<8} {}", value.chars().map(harmless).collect::<String>());
    }
    text
}

/// The age, in at most four characters.
fn age(moment: Timestamp, now: Timestamp) -> String {
    let seconds = now.since(moment).as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (minutes, hours, days) {
        (0, ..) => format!("{seconds}s"),
        (_, 0, _) => format!("{minutes}m"),
        (_, 1..=47, _) => format!("{hours}h"),
        (_, _, 0..=999) => format!("{days}d"),
        _ => format!("{}y", (days / 365).min(999)),
    }
}

/// At most `columns` columns of a text. A character that is not ASCII counts as two, the width of a wide one.
fn cut(text: &str, columns: usize) -> String {
    let width = |c: char| if c.is_ascii() { 1 } else { 2 };
    let text = || text.chars().map(harmless);
    if text().map(width).sum::<usize>() <= columns {
        return text().collect();
    }
    let mut room = columns.saturating_sub(1);
    let kept = text().take_while(|c| {
        let fits = width(*c) <= room;
        room = room.saturating_sub(width(*c));
        fits
    });
    kept.chain(['…']).collect()
}

/// Replaces a control character, which the terminal would act on.
fn harmless(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_339_800_042);

    fn push(user: &str, reason: &str) -> Parked {
        let parked_at = NOW.before(Duration::from_secs(3 * 3_600));
        serde_json::from_value(json!({
            "eventId": "10a49b64-5437-560f-bb8b-85aee95df0ec", "lane": "webhook", "userId": user,
            "deviceId": null, "chatRoomId": "A_B", "messageId": "65f0c0ffee65f0c0ffee65f0", "seq": 7,
            "reason": reason, "attempts": 4_294_967, "parkedAt": parked_at, "expiresAt": NOW,
            "title": "Ada", "body": "안녕\u{1b}[2J\nhello",
        }))
        .unwrap()
    }

    #[test]
    fn a_line_says_it_in_a_hundred_columns() {
        let short = Parked { attempts: 2, ..push("B", "status 404") };
        assert_eq!(
            line(&short, NOW),
            "10a49b64-5437-560f-bb8b-85aee95df0ec  webhook  3h    2      B               status 404"
        );
        let column = |head: &str| HEAD.find(head);
        let place = |text: &str| line(&short, NOW).find(text);
        assert_eq!((column("LANE"), column("USER")), (place("webhook"), place("B  ")));
        assert_eq!((column("AGE"), column("REASON")), (place("3h"), place("status")));

        let long = Parked { attempts: 99_999, ..push(&"u".repeat(128), &"why ".repeat(50)) };
        let long = line(&long, NOW);
        assert_eq!(long.chars().count(), 100, "{long}");
        assert!(long.ends_with("uuuuuuuuuuuuu…  why why why why why why…"), "{long}");
    }

    #[test]
    fn what_is_wide_takes_two_columns() {
        assert_eq!(cut("안녕하세요", 10), "안녕하세요");
        assert_eq!(cut("안녕하세요", 9), "안녕하세…");
        assert_eq!(cut("안녕하세요", 8), "안녕하…");
        assert_eq!(cut("ab\u{7}\u{9b}", 5), "ab  ");
        assert_eq!(cut("abc", 2), "a…");
    }

    #[test]
    fn an_age_is_short() {
        let cases = [(0, "0s"), (59, "59s"), (60, "1m"), (3_599, "59m"), (3_600, "1h"), (172_799, "47h")];
        let days = [(172_800, "2d"), (999 * 86_400, "999d"), (1_000 * 86_400, "2y"), (u64::MAX, "999y")];
        for (seconds, wanted) in cases.into_iter().chain(days) {
            assert_eq!(age(NOW.before(Duration::from_secs(seconds)), NOW), wanted);
        }
        assert_eq!(age(NOW.after(Duration::from_secs(9)), NOW), "0s", "another clock");
    }

    #[test]
    fn all_of_it_is_shown_and_does_nothing_to_the_terminal() {
        assert_eq!(
            whole(&push("B", "status 404"), NOW),
            "event    10a49b64-5437-560f-bb8b-85aee95df0ec\n\
             lane     webhook\n\
             user     B\n\
             device   -\n\
             room     A_B\n\
             message  65f0c0ffee65f0c0ffee65f0, number 7 of its room\n\
             title    Ada\n\
             body     안녕 [2J hello\n\
             reason   status 404\n\
             tries    4294967\n\
             parked   2026-11-22T06:30:00.042Z, 3h ago\n\
             expires  2026-11-22T09:30:00.042Z\n"
        );
    }
}
