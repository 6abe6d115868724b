//! Every row of the tables, from an answer that its provider documents, that was met or is made up: `tests/answers/`. (None
//! was recorded here: Google and Apple can't be reached.)

use std::collections::BTreeSet;
use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::apns::of_apns;
use super::fcm::of_fcm;
use super::*;
use crate::transport::Answer;

/// 2026-11-22T09:30:00Z.
const NOW: Timestamp = Timestamp::from_millis(1_795_339_800_000);
/// The call was made a second before.
const CALLED_AT: Timestamp = Timestamp::from_millis(1_795_339_799_000);

/// An answer and its verdict.
#[derive(Deserialize)]
struct Recorded {
    name: String,
    source: String,
    status: u16,
    headers: std::collections::BTreeMap<String, String>,
    body: String,
    verdict: String,
}

fn recorded(file: &str) -> Vec<Recorded> {
    serde_json::from_str(file).unwrap()
}

fn of_all_fcm() -> Vec<Recorded> {
    recorded(include_str!("../../tests/answers/fcm.json"))
}

fn of_all_apns() -> Vec<Recorded> {
    recorded(include_str!("../../tests/answers/apns.json"))
}

impl Recorded {
    fn answer(&self) -> Answer {
        let header = |(name, value): (&String, &String)| {
            (HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap())
        };
        let headers = HeaderMap::from_iter(self.headers.iter().map(header));
        Answer { status: self.status, headers, body: self.body.clone().into() }
    }

    fn check(&self, verdict: &Verdict) {
        assert!(!self.source.is_empty(), "{} comes from somewhere", self.name);
        assert_eq!(in_words(verdict), self.verdict, "{} ({})", self.name, self.body);
        let told = format!("{verdict:?}");
        assert!(!told.contains("Expected OAuth 2"), "{told}: a provider's sentences are not told");
    }
}

fn in_words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Delivered { provider_id } => format!("Delivered {provider_id}"),
        Verdict::TokenDead { since: CALLED_AT } => "TokenDead".to_owned(),
        Verdict::TokenDead { since } => format!("TokenDead since {}", since.as_millis()),
        Verdict::OurConfiguration { scope, .. } => format!("OurConfiguration {scope:?}"),
        Verdict::SlowDown { until, scope } => {
            format!("SlowDown {scope:?} in {} s", until.since(NOW).as_secs())
        }
        Verdict::TryLater { at_least, .. } => format!("TryLater in {} s or more", at_least.as_secs()),
        Verdict::TooBig => "TooBig".to_owned(),
        Verdict::Refused(_) => "Refused".to_owned(),
    }
}

#[test]
fn each_answer_of_fcm_has_its_verdict() {
    for recorded in of_all_fcm() {
        recorded.check(&of_fcm(&recorded.answer(), CALLED_AT, NOW));
    }
}

#[test]
fn each_answer_of_apns_has_its_verdict() {
    for recorded in of_all_apns() {
        recorded.check(&of_apns(&recorded.answer(), CALLED_AT, NOW));
    }
}

#[test]
fn every_row_has_an_answer_that_shows_it() {
    let shown = |recorded: Vec<Recorded>| -> BTreeSet<String> {
        recorded.into_iter().map(|recorded| recorded.name).collect()
    };
    let (by_fcm, by_apns) = (shown(of_all_fcm()), shown(of_all_apns()));
    let missing: Vec<_> =
        fcm::rows().into_iter().map(|(name, _)| name).filter(|name| !by_fcm.contains(name)).collect();
    assert_eq!(missing, [""; 0], "FCM");
    let missing: Vec<_> = apns::REASONS
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .filter(|name| !by_apns.contains(name))
        .collect();
    assert_eq!(missing, [""; 0], "APNs");
}

/// Only an answer about a token removes that token.
#[test]
fn a_token_dies_only_of_an_answer_about_it() {
    let names = |recorded: Vec<Recorded>| -> Vec<String> {
        let dead = recorded.into_iter().filter(|recorded| recorded.verdict.starts_with("TokenDead"));
        dead.map(|recorded| recorded.name).collect()
    };
    let expected = [
        "UNREGISTERED",
        "INVALID_ARGUMENT that names `message.token`",
        "INVALID_ARGUMENT whose sentence names the token",
    ];
    assert_eq!(names(of_all_fcm()), expected);
    let expected = [
        "BadDeviceToken",
        "ExpiredToken",
        "Unregistered",
        "Unregistered since a moment",
        "ExpiredToken since a moment",
        "Unregistered since a time that is none",
    ];
    assert_eq!(names(of_all_apns()), expected);
}

fn of_row(meaning: Meaning) -> String {
    match meaning {
        Meaning::TokenDead => "token dead".to_owned(),
        Meaning::OurConfiguration(Scope::Provider) => "our configuration".to_owned(),
        Meaning::OurConfiguration(Scope::Device) => "our configuration, for this device".to_owned(),
        Meaning::SlowDown(Scope::Provider) => "slow down: `Retry-After`, else 60 s".to_owned(),
        Meaning::SlowDown(Scope::Device) => "slow down, this device: `Retry-After`, else 60 s".to_owned(),
        Meaning::TryLater(Duration::ZERO) => "try later".to_owned(),
        Meaning::TryLater(at_least) => format!("try later, not sooner than {} s", at_least.as_secs()),
        Meaning::TooBig => "too big".to_owned(),
        Meaning::Refused => "refused".to_owned(),
    }
}

fn page() -> String {
    let mut page = String::from(include_str!("page.md"));
    let mut table = |title: &str, rows: Vec<(String, String)>| {
        write!(page, "\n## {title}\n\n| answer | verdict |\n|---|---|\n").unwrap();
        for (answer, verdict) in rows {
            writeln!(page, "| {answer} | {verdict} |").unwrap();
        }
    };
    let code = |name: &str| if name.contains('`') { name.to_owned() } else { format!("`{name}`") };
    let of_fcm = fcm::rows().into_iter();
    let of_fcm =
        of_fcm.map(|(name, meaning)| (code(&name), meaning.map_or("by its status".to_owned(), of_row)));
    table("FCM: `error.details[].errorCode`", of_fcm.collect());
    let of_apns = apns::REASONS.iter().map(|(name, meaning)| (code(name), of_row(*meaning)));
    table("APNs: `reason`", of_apns.collect());
    let statuses = [301, 400, 401, 403, 404, 405, 408, 410, 413, 425, 429, 500, 503];
    let by_status = statuses.map(|status| {
        let (at_fcm, at_apns) = (of_row(by_status(status)), of_row(apns::unknown(status)));
        let verdict = if at_fcm == at_apns { at_fcm } else { format!("{at_fcm}; APNs: {at_apns}") };
        (status.to_string(), verdict)
    });
    table("Whatever is not known, by its status", by_status.into());
    page
}

#[test]
fn the_public_page_is_what_the_tables_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PUSH_VERDICTS.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, page()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), page(), "UPDATE_DOCS=1 cargo test -p notifier");
}

#[test]
fn the_webhooks_table() {
    let delivered = |status: u16| format!("Delivered status {status}");
    let later = "TryLater in 0 s or more".to_owned();
    let slow = |seconds| format!("SlowDown Provider in {seconds} s");
    let refused = "Refused".to_owned();
    let rows: [(u16, Option<&str>, String); 25] = [
        (200, None, delivered(200)),
        (202, None, delivered(202)),
        (204, Some("60"), delivered(204)),
        (299, None, delivered(299)),
        (408, None, later.clone()),
        (425, None, later.clone()),
        (429, None, later.clone()),
        (429, Some("0"), slow(0)),
        (429, Some(" 120 "), slow(120)),
        (429, Some("Sun, 22 Nov 2026 09:30:07 GMT"), slow(7)),
        (429, Some("-1"), later.clone()),
        (429, Some("soon"), later.clone()),
        (429, Some(""), later.clone()),
        (500, None, later.clone()),
        (503, Some("30"), slow(30)),
        (599, None, later),
        (301, None, refused.clone()),
        (304, None, refused.clone()),
        (307, Some("5"), refused.clone()),
        (400, None, refused.clone()),
        (401, None, refused.clone()),
        (404, Some("5"), refused.clone()),
        (410, None, refused.clone()),
        (413, None, refused.clone()),
        (600, None, refused),
    ];
    for (status, retry_after, verdict) in rows {
        assert_eq!(in_words(&of_webhook(status, retry_after, NOW)), verdict, "{status} {retry_after:?}");
    }
}

#[test]
fn a_moment_that_has_passed_is_now_and_one_beyond_all_numbers_is_far() {
    let past = retry_moment("Sat, 21 Nov 2026 09:30:00 GMT", NOW).unwrap();
    assert_eq!(past.since(NOW), Duration::ZERO);
    let far = retry_moment("99999999999999999999999999", NOW).unwrap();
    assert!(far > NOW.after(Duration::from_secs(u64::from(u32::MAX))));
}
