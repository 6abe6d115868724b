//! `docs/PROTOCOL.md` and the code say the same.

use std::collections::{BTreeMap, BTreeSet};

use naru_model::frame::ClientFrame;
use serde_json::Value;

const PAGE: &str = include_str!("../../docs/PROTOCOL.md");
const ERRORS: &str = include_str!("../../docs/ERRORS.md");
const ROUTES: &str = include_str!("../src/api/mod.rs");
const CLIENT_FRAMES: &str = include_str!("../../shared/model/src/frame.rs");
const SERVER_FRAMES: [&str; 2] = [
    include_str!("../../shared/model/tests/snapshots/shapes__frames_server.snap"),
    include_str!("../../shared/model/tests/snapshots/shapes__frames_news.snap"),
];

/// What stands below a heading, up to the next one.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("\n## {heading}\n")).expect("the heading");
    rest.split_once("\n## ").map_or(rest, |(section, _)| section)
}

/// The rows of a section's tables, each as its cells.
fn rows(section: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = section.lines().filter(|line| line.starts_with("| "));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect())
}

/// What stands between backticks.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn examples(section: &str) -> impl Iterator<Item = &str> {
    section.lines().filter(|line| line.starts_with('{'))
}

fn type_of(frame: &Value) -> String {
    frame["type"].as_str().expect("a type").to_owned()
}

#[test]
fn the_frames_of_the_client_are_those_that_are_read() {
    let section = section(PAGE, "Frames of the client");
    let mut shown = BTreeSet::new();
    for example in examples(section) {
        ClientFrame::parse(example).unwrap_or_else(|error| panic!("{example}: {error}"));
        shown.insert(type_of(&serde_json::from_str(example).expect("JSON")));
    }
    let listed: BTreeSet<String> =
        rows(section).flat_map(|row| words(row[0]).map(str::to_owned).collect::<Vec<_>>()).collect();
    let arms = CLIENT_FRAMES.lines().filter_map(|line| line.trim().strip_prefix('"')?.split_once("\" => "));
    let read: BTreeSet<String> = arms.map(|(name, _)| name.to_owned()).collect();
    assert_eq!(shown, read);
    assert_eq!(listed, read);
}

#[test]
fn the_frames_of_the_server_are_those_of_the_snapshots() {
    let section = section(PAGE, "Frames of the server");
    let by_type = |frames: Vec<Value>| -> BTreeMap<String, Value> {
        frames.into_iter().map(|frame| (type_of(&frame), frame)).collect()
    };
    let shown = examples(section).map(|example| serde_json::from_str(example).expect("JSON"));
    let sent = SERVER_FRAMES.iter().flat_map(|snapshot| {
        let (_, json) = snapshot.rsplit_once("---\n").expect("a snapshot");
        serde_json::from_str::<Vec<Value>>(json).expect("a list of frames")
    });
    let (shown, sent) = (by_type(shown.collect()), by_type(sent.collect()));
    assert_eq!(shown, sent);
    let mut listed = BTreeSet::new();
    for row in rows(section).filter(|row| row[0].starts_with('`')) {
        for name in words(row[0]) {
            listed.insert(name);
            for field in sent[name].as_object().expect("an object").keys().filter(|field| *field != "type") {
                assert!(row[1].contains(field.as_str()), "{name} has {field}");
            }
        }
    }
    assert_eq!(listed, sent.keys().map(String::as_str).collect());
}

#[test]
fn the_codes_are_those_of_the_table_of_errors() {
    let section = section(PAGE, "What an error means for a message");
    let (codes, close_codes) = ERRORS.split_once("## Close codes").expect("both tables");
    let codes: BTreeSet<&str> = rows(codes).filter_map(|row| words(row[0]).next()).collect();
    let (text, _) = section.split_once("\n|").expect("a table below the text");
    let is_code = |word: &&str| word.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_');
    assert_eq!(words(text).filter(is_code).collect::<BTreeSet<_>>(), codes);

    let numbers = |table: &str| -> BTreeSet<u16> {
        let cells = rows(table).map(|row| row[0].to_owned()).collect::<Vec<_>>().join(", ");
        cells.split(", ").filter_map(|code| code.parse().ok()).collect()
    };
    assert_eq!(numbers(section), numbers(close_codes));
}

#[test]
fn the_calls_are_those_of_the_table_of_routes() {
    let listed: BTreeSet<String> =
        rows(section(PAGE, "HTTP")).filter_map(|row| words(row[0]).next().map(str::to_owned)).collect();
    let routes = ROUTES.lines().filter_map(|line| {
        let (method, rest) = line.trim().strip_prefix("(\"")?.split_once("\", [")?;
        let (path, _) = rest.split_once("]) =>")?;
        let segments = path.split(", ").map(|segment| match segment.strip_prefix('"') {
            Some(fixed) => fixed.trim_end_matches('"').to_owned(),
            None => format!("{{{segment}}}"),
        });
        Some(format!("{method} /api/{}", segments.collect::<Vec<_>>().join("/")))
    });
    assert_eq!(listed, routes.collect());
}
