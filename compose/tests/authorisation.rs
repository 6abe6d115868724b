//! Who may do what: every call of the HTTP API, every frame of the WebSocket and every page, for every kind of caller.
//! The tables are complete: a call, a frame or a page that is in no row fails its test.
//!
//! What is refused has no effect: nobody's rooms, messages, positions, devices and block lists change, and nobody is
//! told of anything. To those who are not in a room it looks like one that is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;
use std::time::Duration;

use naru::pipeline::Changes;
use naru_client::{Claims, Client, Connect, Http, TEST_TIMEOUT, token};
use naru_engines::Engines;
use naru_model::hops::{Lane, Payload};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::parked::push;
use crate::programs::unused_address;
use crate::support::{Naru, SECRET};

const PROTOCOL: &str = include_str!("../../docs/PROTOCOL.md");
const SERVER: &str = include_str!("../../gateway/src/server.rs");
const DEMO: &str = include_str!("../src/demo.rs");

/// A call, its body, what it changes where it is allowed, and the status of the answer to each kind of caller. Braces
/// hold who or what is meant. It changes: nothing; own: what is the caller's; others: what is others', too; sessions:
/// who is connected.
///
/// No good token: none, no JWT, one that has expired, one of another signer. A stranger is in no room with the others,
/// and asks once more with the device id of the member. The one who was removed was in the room. The one who is
/// blocked, by the maker and by the newcomer, is in it. The member asks from two devices. The room's maker is a
/// member; the victim is one, too, and asks nothing.
const CALLS: &str = r#"
| call                                              | body                                        | changes  | no good token | stranger | removed | blocked | member | maker | service |
|---------------------------------------------------|---------------------------------------------|----------|---------------|----------|---------|---------|--------|-------|---------|
| POST /api/rooms                                   | {"memberIds":["{caller}","{newcomer}"]}     | others   | 401           | 201      | 201     | 403     | 201    | 201   | 201     |
| POST /api/rooms                                   | {"memberIds":["{newcomer}","{victim}"]}     | others   | 401           | 403      | 403     | 403     | 403    | 403   | 201     |
| POST /api/rooms                                   | {"memberIds":["{caller}","x"],"id":"mine"}  | own      | 401           | 403      | 403     | 403     | 403    | 403   | 201     |
| GET /api/rooms                                    |                                             | nothing  | 401           | 200      | 200     | 200     | 200    | 200   | 200     |
| GET /api/rooms/{room}                             |                                             | nothing  | 401           | 404      | 404     | 200     | 200    | 200   | 200     |
| POST /api/rooms/{room}/members                    | {"userId":"{newcomer}"}                     | others   | 401           | 404      | 404     | 403     | 200    | 200   | 200     |
| POST /api/rooms/{room}/members                    | {"userId":"{caller}"}                       | nothing  | 401           | 404      | 404     | 200     | 200    | 200   |         |
| DELETE /api/rooms/{room}/members/{victim}         |                                             | others   | 401           | 404      | 404     | 403     | 403    | 204   | 204     |
| DELETE /api/rooms/{room}/members/{caller}         |                                             | others   | 401           | 404      | 404     | 204     | 204    | 204   |         |
| PUT /api/rooms/{room}/settings                    | {"muted":true}                              | own      | 401           | 404      | 404     | 200     | 200    | 200   | 404     |
| GET /api/rooms/{room}/messages                    |                                             | nothing  | 401           | 404      | 404     | 200     | 200    | 200   | 200     |
| GET /api/rooms/{room}/messages?afterSeq=0         |                                             | nothing  | 401           | 404      | 404     | 200     | 200    | 200   | 200     |
| POST /api/rooms/{room}/messages                   | {"content":"x","clientMessageId":"c"}       | others   | 401           | 404      | 404     | 200     | 200    | 200   | 404     |
| POST /api/rooms/{room}/messages                   | {"content":"x","clientMessageId":"c","senderId":"{victim}"}  | others | 401 | 403   | 403     | 403     | 403    | 403   | 200     |
| POST /api/rooms/{room}/messages                   | {"content":"x","clientMessageId":"c","senderName":"Victim"}  | others | 401 | 403   | 403     | 403     | 403    | 403   | 404     |
| GET /api/devices                                  |                                             | nothing  | 401           | 200      | 200     | 200     | 200    | 200   | 200     |
| PUT /api/devices/{device}                         | {"platform":"fcm","token":"of-{caller}"}    | own      | 401           | 200      | 200     | 200     | 200    | 200   | 200     |
| DELETE /api/devices/{device}                      |                                             | own      | 401           | 204      | 204     | 204     | 204    | 204   | 204     |
| GET /api/presence?userIds={maker}                 |                                             | nothing  | 401           | 200      | 200     | 200     | 200    | 200   | 200     |
| GET /api/blocks                                   |                                             | nothing  | 401           | 200      | 200     | 200     | 200    | 200   | 200     |
| PUT /api/blocks/{victim}                          |                                             | own      | 401           | 204      | 204     | 204     | 204    | 204   | 204     |
| DELETE /api/blocks/{blocked}                      |                                             | own      | 401           | 204      | 204     | 204     | 204    | 204   | 204     |
| DELETE /api/users/{victim}/sessions               |                                             | sessions | 401           | 403      | 403     | 403     | 403    | 403   | 204     |
| DELETE /api/users/{caller}/sessions               |                                             | nothing  | 401           | 403      | 403     | 403     | 403    | 403   |         |
| DELETE /api/users/{victim}                        |                                             | others   | 401           | 403      | 403     | 403     | 403    | 403   | 202     |
| GET /api/users/{victim}/erasure                   |                                             | nothing  | 401           | 403      | 403     | 403     | 403    | 403   | 200     |
| GET /api/users/{victim}/export                    |                                             | nothing  | 401           | 403      | 403     | 403     | 403    | 403   | 200     |
| GET /api/parked                                   |                                             | nothing  | 401           | 403      | 403     | 403     | 403    | 403   | 200     |
| GET /api/parked/{event}                           |                                             | nothing  | 401           | 403      | 403     | 403     | 403    | 403   | 200     |
| POST /api/parked/{event}/replay                   |                                             | others   | 401           | 403      | 403     | 403     | 403    | 403   | 202     |
| DELETE /api/parked/{event}                        |                                             | others   | 401           | 403      | 403     | 403     | 403    | 403   | 204     |
"#;

/// A frame, what the other members are told where it is allowed, and the answer to each kind of caller: a frame's
/// type, or the code of an `ERROR`.
const FRAMES: &str = r#"
| frame                                                                  | tells    | stranger       | removed        | blocked       | member        | maker         | service        |
|------------------------------------------------------------------------|----------|----------------|----------------|---------------|---------------|---------------|----------------|
| {"type":"CHAT","chatRoomId":"{room}","content":"x"}                    | CHAT     | ROOM_NOT_FOUND | ROOM_NOT_FOUND | ACK           | ACK           | ACK           | ROOM_NOT_FOUND |
| {"type":"CHAT","chatRoomId":"{room}","content":"x","senderId":"{victim}"} | CHAT  | FORBIDDEN      | FORBIDDEN      | FORBIDDEN     | FORBIDDEN     | FORBIDDEN     | FORBIDDEN      |
| {"type":"DROP","chatRoomId":"{room}","clientMessageId":"c"}            |          |                |                |               |               |               |                |
| {"type":"SYNC","rooms":[{"chatRoomId":"{room}","afterSeq":0}]}         |          | ROOM_NOT_FOUND | ROOM_NOT_FOUND | SYNCED        | SYNCED        | SYNCED        | ROOM_NOT_FOUND |
| {"type":"SYNC"}                                                        |          | SYNCED         | SYNCED         | SYNCED        | SYNCED        | SYNCED        | SYNCED         |
| {"type":"RECEIVED","chatRoomId":"{room}","seq":2}                      | RECEIVED | ROOM_NOT_FOUND | ROOM_NOT_FOUND |               |               |               | ROOM_NOT_FOUND |
| {"type":"READ","chatRoomId":"{room}","seq":2}                          | READ     | ROOM_NOT_FOUND | ROOM_NOT_FOUND |               |               |               | ROOM_NOT_FOUND |
| {"type":"TYPING","chatRoomId":"{room}"}                                | TYPING   | ROOM_NOT_FOUND | ROOM_NOT_FOUND |               |               |               | ROOM_NOT_FOUND |
| {"type":"PING"}                                                        |          | PONG           | PONG           | PONG          | PONG          | PONG          | PONG           |
| {"type":"JOIN","chatRoomId":"{room}"}                                  |          | INVALID_FRAME  | INVALID_FRAME  | INVALID_FRAME | INVALID_FRAME | INVALID_FRAME | INVALID_FRAME  |
"#;

/// A page, and its status for everyone, whatever token is sent: at the gateway, at a gateway with an admin address, at
/// that address, and at a gateway with the demo that is asked for by another name than this machine's.
const PAGES: &str = r#"
| page                         | body             | gateway | with admin | admin | demo | demo elsewhere |
|------------------------------|------------------|---------|------------|-------|------|----------------|
| GET /healthz                 |                  | 200     | 404        | 200   | 200  | 200            |
| GET /readyz                  |                  | 200     | 404        | 200   | 200  | 200            |
| GET /metrics                 |                  | 200     | 404        | 200   | 200  | 200            |
| GET /                        |                  | 404     | 404        | 404   | 200  | 404            |
| GET /demo/app.js             |                  | 404     | 404        | 404   | 200  | 404            |
| GET /demo/phone?userId=ada   |                  | 404     | 404        | 404   | 200  | 404            |
| GET /demo/pushes?userId=ada  |                  | 404     | 404        | 404   | 200  | 404            |
| POST /demo/token             | {"userId":"ada"} | 404     | 404        | 404   | 200  | 404            |
"#;

/// What a message and a room's name here hold, and no answer to those who are not in the room.
const INSIDE: &str = "for members only";
/// The device id of the member, and of everybody else who gives one.
const DEVICE: &str = "phone";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    NoToken,
    Garbage,
    Expired,
    OtherSigner,
    Stranger,
    StrangerWithTheDeviceOfTheMember,
    Removed,
    Blocked,
    Member,
    OtherDevice,
    Maker,
    Service,
}

use Caller::{
    Blocked, Expired, Garbage, Maker, Member, NoToken, OtherDevice, OtherSigner, Removed, Service, Stranger,
    StrangerWithTheDeviceOfTheMember,
};

const WITHOUT_A_GOOD_TOKEN: [Caller; 4] = [NoToken, Garbage, Expired, OtherSigner];
const WITH_ONE: [Caller; 8] =
    [Stranger, StrangerWithTheDeviceOfTheMember, Removed, Blocked, Member, OtherDevice, Maker, Service];
/// Whose things are looked at.
const PEOPLE: [&str; 7] = ["stranger", "removed", "blocked", "member", "maker", "victim", "newcomer"];

impl Caller {
    /// The column of the tables.
    fn column(self) -> &'static str {
        match self {
            NoToken | Garbage | Expired | OtherSigner => "no good token",
            Stranger | StrangerWithTheDeviceOfTheMember => "stranger",
            Removed => "removed",
            Blocked => "blocked",
            Member | OtherDevice => "member",
            Maker => "maker",
            Service => "service",
        }
    }

    /// Whether a room is to look to this caller like one that is not there.
    fn is_outside(self) -> bool {
        !matches!(self, Blocked | Member | OtherDevice | Maker | Service)
    }
}

/// The rows of a table, each as its cells by column.
fn rows(table: &str) -> Vec<BTreeMap<&str, &str>> {
    let mut lines = table.trim().lines().map(|line| line.trim_matches('|').split(" | ").map(str::trim));
    let names: Vec<&str> = lines.next().expect("the names of the columns").collect();
    let _line = lines.next();
    let rows: Vec<BTreeMap<_, _>> = lines.map(|cells| names.iter().copied().zip(cells).collect()).collect();
    assert!(rows.iter().all(|row| row.len() == names.len()), "a cell is missing: {rows:?}");
    rows
}

/// The first words in backticks of the rows below a heading of the contract.
fn in_the_contract(heading: &str) -> impl Iterator<Item = Vec<&'static str>> {
    let (_, rest) = PROTOCOL.split_once(&format!("\n## {heading}\n")).expect("the heading");
    let section = rest.split_once("\n## ").map_or(rest, |(section, _)| section);
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    rows.map(|cell| cell.split('`').skip(1).step_by(2).collect())
}

/// A room with people, in a Naru of many.
struct World<'a> {
    /// Without a token; shares its connections with all callers.
    http: &'a Http,
    number: u8,
    room: String,
    event: String,
    /// The phone of the victim, a member who does nothing.
    watcher: Client,
}

/// The claims of a caller, of the world with this number.
fn claims(caller: Caller, number: u8) -> Claims {
    let user = |who: &str| Claims::user(&format!("{who}-{number}"));
    match caller {
        NoToken | Garbage | Expired | OtherSigner | Member => user("member").device(DEVICE),
        OtherDevice => user("member").device("tablet"),
        Stranger => user("stranger").device("own"),
        StrangerWithTheDeviceOfTheMember => user("stranger").device(DEVICE),
        Removed | Blocked | Maker => user(caller.column()).device(DEVICE),
        Service => Claims::user("backend").device(DEVICE).service(),
    }
}

fn token_of(caller: Caller, number: u8) -> Option<String> {
    let claims = claims(caller, number);
    match caller {
        NoToken => None,
        Garbage => Some("garbage".to_owned()),
        Expired => Some(token(SECRET.as_bytes(), &claims.expired_since(Duration::from_secs(2)))),
        OtherSigner => Some(token(b"another secret, of 32 bytes or more", &claims)),
        _ => Some(token(SECRET.as_bytes(), &claims)),
    }
}

impl<'a> World<'a> {
    async fn new(naru: &'a Naru, http: &'a Http, engines: &Engines, number: u8) -> Self {
        let name = |who: &str| format!("{who}-{number}");
        let of = |who: &str| http.with_token(&token(SECRET.as_bytes(), &Claims::user(&name(who))));
        let maker = of("maker");
        let members = ["maker", "member", "blocked", "victim", "removed"].map(name);
        let (status, room) = maker.post("/api/rooms", json!({"memberIds": members, "name": INSIDE})).await;
        assert_eq!(status, 201, "{room}");
        let room = room["id"].as_str().expect("an id").to_owned();
        let members = format!("/api/rooms/{room}/members/{}", name("removed"));
        assert_eq!(maker.delete(&members).await.0, 204);
        let mut watcher = naru.phone_of(&Claims::user(&name("victim"))).await;
        let mut parked = push(number, Lane::Webhook);
        for number in ["1", "2"] {
            assert_eq!(of("victim").send(&room, INSIDE, number).await.0, 200);
            let chat = watcher.expect("CHAT").await;
            parked.job.message_id = serde_json::from_value(chat["id"].clone()).expect("an id");
        }
        for who in ["maker", "newcomer"] {
            assert_eq!(of(who).put(&format!("/api/blocks/{}", name("blocked")), Value::Null).await.0, 204);
        }
        let phone = json!({"platform": "fcm", "token": format!("of-the-member-{number}")});
        assert_eq!(of("member").put(&format!("/api/devices/{DEVICE}"), phone).await.0, 200);
        parked.event_id = parked.job.event_id();
        engines.store.pushes.park(std::slice::from_ref(&parked)).await.expect("it is kept");
        let event = parked.event_id.to_string();
        let mut world = Self { http, number, room, event, watcher };
        world.told().await;
        world
    }

    fn of(&self, caller: Caller) -> Http {
        token_of(caller, self.number).map_or_else(|| self.http.clone(), |token| self.http.with_token(&token))
    }

    /// A text of a table, for a caller and a room.
    fn filled(&self, text: &str, caller: Caller, room: &str) -> String {
        let me = match caller {
            Service => "backend".to_owned(),
            _ => format!(
                "{}-{}",
                if caller.column() == "no good token" { "member" } else { caller.column() },
                self.number
            ),
        };
        let mut text = text.replace("{caller}", &me).replace("{room}", room).replace("{event}", &self.event);
        for who in PEOPLE {
            text = text.replace(&format!("{{{who}}}"), &format!("{who}-{}", self.number));
        }
        text.replace("{device}", DEVICE)
    }

    /// What a row's call is answered.
    async fn call(&self, row: &BTreeMap<&str, &str>, caller: Caller, room: &str) -> (u16, Value) {
        let call = self.filled(row["call"], caller, room);
        let (method, path) = call.split_once(' ').expect("a method and a path");
        let method: Method = method.parse().expect("a method");
        let body = row["body"];
        let body =
            (!body.is_empty()).then(|| serde_json::from_str(&self.filled(body, caller, room)).expect("JSON"));
        self.of(caller).request(method, path, body).await.expect("an answer")
    }

    /// What everybody has, by owner.
    async fn state(&self) -> BTreeMap<String, Vec<(u16, Value)>> {
        let mut state = BTreeMap::new();
        for who in PEOPLE {
            let user = Claims::user(&format!("{who}-{}", self.number));
            let http = self.http.with_token(&token(SECRET.as_bytes(), &user));
            let mut own = Vec::new();
            for path in ["/api/rooms", "/api/devices", "/api/blocks"] {
                own.push(http.get(path).await);
            }
            state.insert(who.to_owned(), own);
        }
        let service = self.of(Service);
        let room = format!("/api/rooms/{}", self.room);
        let mut all = Vec::new();
        for path in [room.clone(), format!("{room}/messages"), format!("/api/parked/{}", self.event)] {
            all.push(service.get(&path).await);
        }
        state.insert("all".to_owned(), all);
        state
    }

    /// What the watcher was told since the last time.
    async fn told(&mut self) -> Vec<Value> {
        self.watcher.until_pong().await
    }
}

/// Of whom a frame tells.
fn user_of(frame: &Value) -> &Value {
    if frame["type"] == "CHAT" { &frame["senderId"] } else { &frame["userId"] }
}

/// A Naru with these flags, and its engines.
async fn start(flags: &[&str]) -> (Naru, Engines) {
    let (tell, told) = mpsc::channel();
    let change = move |engines: Engines| {
        tell.send(engines.clone()).expect("the test waits for it");
        engines
    };
    let changes = Changes { engines: Some(Box::new(change)), ..Changes::default() };
    let naru = Naru::start_with(flags, changes).await;
    (naru, told.recv().expect("engines"))
}

#[tokio::test]
async fn every_call_is_answered_by_who_asks() {
    every_call_is_answered_by_who_asks_on(&[]).await;
}

/// The same on whatever these flags say.
pub async fn every_call_is_answered_by_who_asks_on(flags: &[&str]) {
    let rows = rows(CALLS);
    let path_of = |call: &'static str| {
        let users = ["{caller}", "{victim}", "{blocked}"];
        let path = call.split('?').next().unwrap_or_default();
        users.iter().fold(path.to_owned(), |path, user| path.replace(user, "{user}"))
    };
    let listed: BTreeSet<String> = rows.iter().map(|row| path_of(row["call"])).collect();
    let calls = in_the_contract("HTTP").filter_map(|words| words.first().copied());
    assert_eq!(listed, calls.map(str::to_owned).collect(), "each call of the contract has a row");

    let (naru, engines) = start(flags).await;
    let http = Http::without_token(&naru.url);
    let mut number = 0;
    let mut next = async || {
        number += 1;
        World::new(&naru, &http, &engines, number).await
    };
    for row in &rows {
        let what = format!("{} {}", row["call"], row["body"]);
        let callers = || {
            WITHOUT_A_GOOD_TOKEN
                .iter()
                .chain(&WITH_ONE)
                .copied()
                .filter(|caller| !row[caller.column()].is_empty())
        };
        let wanted = |caller: Caller| row[caller.column()].parse::<u16>().expect("a status");
        let mut world = next().await;
        let before = world.state().await;
        for caller in callers().filter(|caller| wanted(*caller) >= 400) {
            let (status, body) = world.call(row, caller, &world.room).await;
            let code = match status {
                401 => "UNAUTHENTICATED",
                403 => "FORBIDDEN",
                404 => "ROOM_NOT_FOUND",
                _ => "",
            };
            assert_eq!(
                (status, &body["code"]),
                (wanted(caller), &json!(code)),
                "{what} by {caller:?}: {body}"
            );
            if caller.is_outside() {
                let elsewhere = world.call(row, caller, "a-room-that-is-not-there").await;
                assert_eq!(
                    (status, body),
                    elsewhere,
                    "{what} by {caller:?}: it tells that the room is there"
                );
            }
        }
        assert_eq!(world.state().await, before, "{what}: it was refused, and changed something");
        assert_eq!(world.told().await, [Value::Null; 0], "{what}: it was refused, and others were told");

        for caller in callers().filter(|caller| wanted(*caller) < 400) {
            // What changes nothing leaves the world as it was.
            if row["changes"] != "nothing" {
                world = next().await;
            }
            let before = world.state().await;
            let (status, body) = world.call(row, caller, &world.room).await;
            assert_eq!(status, wanted(caller), "{what} by {caller:?}: {body}");
            if caller.is_outside() {
                assert!(!body.to_string().contains(INSIDE), "{what} by {caller:?}: {body}");
            }
            if row["call"].starts_with("GET /api/presence") {
                let sees = !matches!(caller.column(), "stranger" | "removed" | "blocked");
                assert_eq!(body.as_array().map(Vec::len), Some(usize::from(sees)), "{caller:?}: {body}");
            }
            let mut after = world.state().await;
            match row["changes"] {
                "nothing" => {}
                "sessions" => assert_eq!(world.watcher.closed().await.0, 4401),
                "own" => {
                    after.insert(
                        caller.column().to_owned(),
                        before.get(caller.column()).cloned().unwrap_or_default(),
                    );
                    if caller == Service {
                        after.remove("service");
                    }
                }
                _ => {
                    assert_ne!(after, before, "{what} by {caller:?} had no effect");
                    continue;
                }
            }
            assert_eq!(after, before, "{what} by {caller:?}: it changed what is not the caller's");
        }
    }
    naru.stop().await;
}

#[tokio::test]
async fn every_frame_is_answered_by_who_sends_it() {
    every_frame_is_answered_by_who_sends_it_on(&[]).await;
}

/// The same on whatever these flags say.
pub async fn every_frame_is_answered_by_who_sends_it_on(flags: &[&str]) {
    let rows = rows(FRAMES);
    let type_of = |frame: &str| {
        let frame: Value = serde_json::from_str(frame).expect("JSON");
        frame["type"].as_str().expect("a type").to_owned()
    };
    let listed: BTreeSet<String> = rows.iter().map(|row| type_of(row["frame"])).collect();
    let types = in_the_contract("Frames of the client").flatten().map(str::to_owned);
    assert_eq!(listed, types.chain(["JOIN".to_owned()]).collect(), "each frame of the contract has a row");

    let (naru, engines) = start(flags).await;
    let http = Http::without_token(&naru.url);
    for caller in WITHOUT_A_GOOD_TOKEN {
        let connect = token_of(caller, 0)
            .map_or_else(|| Connect::without_token(&naru.url), |token| Connect::to(&naru.url, &token));
        for connect in [connect.clone(), connect.as_browser()] {
            assert_eq!(connect.client().await.expect_err("no session").status(), Some(401), "{caller:?}");
        }
    }
    for (number, row) in (1..).zip(&rows) {
        let mut world = World::new(&naru, &http, &engines, number).await;
        let is_refusal =
            |caller: &Caller| row[caller.column()].contains('_') || row[caller.column()] == "FORBIDDEN";
        let before = world.state().await;
        let mut phones = Vec::new();
        for caller in WITH_ONE.into_iter().filter(is_refusal) {
            let mut phone = naru.phone_of(&claims(caller, number)).await;
            let mut refusals = Vec::new();
            for room in [&*world.room, "a-room-that-is-not-there"] {
                phone.send_text(&world.filled(row["frame"], caller, room)).await;
                let mut refusal = phone.expect("ERROR").await;
                assert_eq!(refusal["code"], row[caller.column()], "{} by {caller:?}", row["frame"]);
                // Made by the gateway, where the frame has none.
                refusal["clientMessageId"].take();
                refusals.push(refusal);
            }
            if caller.is_outside() {
                assert_eq!(
                    refusals[0], refusals[1],
                    "{} by {caller:?}: it tells that the room is there",
                    row["frame"]
                );
            }
            phones.push((caller, phone));
        }
        assert_eq!(world.state().await, before, "{}: it was refused, and changed something", row["frame"]);

        // The phones of before stay connected: what those who may do it say now is not for all of them.
        let mut allowed = Vec::new();
        for caller in WITH_ONE.into_iter().filter(|caller| !is_refusal(caller)) {
            let mut phone = naru.phone_of(&claims(caller, number)).await;
            phone.send_text(&world.filled(row["frame"], caller, &world.room)).await;
            let wanted = row[caller.column()];
            let answer = if wanted.is_empty() { Value::Null } else { phone.expect(wanted).await };
            if wanted == "SYNCED" {
                let rooms = if caller.is_outside() || caller == Service { 0 } else { 1 };
                assert_eq!(answer["rooms"].as_array().map(Vec::len), Some(rooms), "{answer} to {caller:?}");
            }
            allowed.push(json!(world.filled("{caller}", caller, "")));
            phones.push((caller, phone));
        }
        let mut told = Vec::new();
        if !row["tells"].is_empty() && !allowed.is_empty() {
            // The last of them: what was said before is told before.
            let maker = json!(world.filled("{caller}", Maker, ""));
            told.push(world.watcher.expect_where(row["tells"], |frame| *user_of(frame) == maker).await);
        }
        told.extend(world.told().await);
        for frame in &told {
            assert!(allowed.contains(user_of(frame)), "{}: {frame}, and only {allowed:?} may", row["frame"]);
        }
        for (caller, mut phone) in phones.into_iter().filter(|(caller, _)| caller.is_outside()) {
            let frames = phone.until_pong().await;
            assert_eq!(
                frames,
                [Value::Null; 0],
                "{}: {caller:?}, who is not in the room, was told",
                row["frame"]
            );
        }
    }
    naru.stop().await;
}

/// A request as it is written here, on a connection of its own: the status of the answer, and all that came.
pub async fn raw(url: &str, request: impl AsRef<[u8]>) -> (u16, String) {
    let address = url.strip_prefix("http://").expect("an http URL");
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(request.as_ref()).await.expect("it reads");
    let mut answer = Vec::new();
    let reading = async {
        loop {
            let count = stream.read_buf(&mut answer).await.unwrap_or(0);
            // A stream of events has no end, and neither has a session.
            let text = String::from_utf8_lossy(&answer).into_owned();
            let is_endless = text.contains("text/event-stream") || text.starts_with("HTTP/1.1 101 ");
            if count == 0 || is_endless && text.contains("\r\n\r\n") {
                return text;
            }
        }
    };
    let answer = tokio::time::timeout(TEST_TIMEOUT, reading).await;
    let answer =
        answer.unwrap_or_else(|_| panic!("no answer to {}", String::from_utf8_lossy(request.as_ref())));
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, answer)
}

#[tokio::test]
async fn every_page_is_where_it_may_be_seen() {
    let rows = rows(PAGES);
    // What is served besides the API: pages of the contract, and the paths of the demo.
    let listed: BTreeSet<&str> = rows
        .iter()
        .map(|row| row["page"].split(' ').nth(1).and_then(|path| path.split('?').next()).expect("a path"))
        .collect();
    let paths =
        |code: &'static str| code.split("warp::path!(").skip(1).filter_map(|rest| rest.split(')').next());
    let demo: BTreeSet<String> = paths(DEMO)
        .map(|path| format!("/{}", path.replace(" / ", "/").replace('"', "").replace("String", "app.js")))
        .collect();
    assert!(
        DEMO.matches("warp::path::").count() == 1 && DEMO.contains("warp::path::end()"),
        "the page itself"
    );
    let (_, rest) = PROTOCOL.split_once("\n`GET /healthz`").expect("the pages for operators");
    let (names, _) = rest.split_once(" need no token").expect("which pages need none");
    let operators = names.split('`').skip(1).step_by(2).map(str::to_owned).chain(["/healthz".to_owned()]);
    let served: BTreeSet<String> = demo.into_iter().chain(operators).chain(["/".to_owned()]).collect();
    assert_eq!(listed, served.iter().map(String::as_str).collect(), "each page has a row");
    assert_eq!(paths(SERVER).collect::<Vec<_>>(), ["\"ws\""], "the gateway's paths besides the API");

    let admin = unused_address().to_string();
    let (naru, with_admin) = (Naru::start(&[]).await, Naru::start(&["--admin-listen", &admin]).await);
    let with_demo = Naru::start(&["--demo", "on"]).await;
    let admin = format!("http://{admin}");
    let service = token_of(Service, 0).expect("a token");
    for row in &rows {
        let (page, body) = (row["page"], row["body"]);
        for (column, url, host) in [
            ("gateway", &naru.url, "localhost"),
            ("with admin", &with_admin.url, "localhost"),
            ("admin", &admin, "localhost"),
            ("demo", &with_demo.url, "localhost"),
            ("demo elsewhere", &with_demo.url, "chat.example"),
        ] {
            for token in ["", "garbage", &service] {
                let authorization = if token.is_empty() {
                    String::new()
                } else {
                    format!("authorization: Bearer {token}\r\n")
                };
                let request = format!(
                    "{page} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{authorization}content-length: {}\r\n\r\n{body}",
                    body.len()
                );
                let (status, answer) = raw(url, &request).await;
                assert_eq!(status.to_string(), row[column], "{page} at {column} with {token:?}: {answer}");
            }
        }
    }
    // The admin address has nothing else; the demo gives tokens of its two people, with no rights but theirs.
    for path in ["/api/rooms", "/api/parked", "/ws", "/demo/app.js"] {
        assert_eq!(Http::new(&admin, &service).get(path).await.0, 404, "{path}");
    }
    let demo = Http::without_token(&with_demo.url);
    for (user, wanted) in [("ada", 200), ("ben", 200), ("backend", 404), ("A", 404), ("", 404)] {
        let (status, body) = demo.post("/demo/token", json!({"userId": user, "scope": "service"})).await;
        assert_eq!(status, wanted, "{user}: {body}");
        if let Some(token) = body["token"].as_str() {
            assert_eq!(demo.with_token(token).get("/api/parked").await.0, 403, "{user}");
        }
    }
    for path in [
        "/demo/../Cargo.toml",
        "/demo/..%2fCargo.toml",
        "/demo/%2e%2e/%2e%2e/etc/passwd",
        "/demo/..%5cCargo.toml",
        "/demo//etc/passwd",
        "/demo/app.js%00.html",
        "/../etc/passwd",
        "/demo/",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        assert_eq!(raw(&with_demo.url, &request).await.0, 404, "{path}");
    }
    for body in ["{", "[]", "{\"userId\":5}"] {
        let request = format!(
            "POST /demo/token HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, answer) = raw(&with_demo.url, &request).await;
        assert_eq!(status, 400, "{body}: {answer}");
    }
    naru.stop().await;
    with_admin.stop().await;
    with_demo.stop().await;
}

/// Requests for a room, as they are written on the connection: header lines besides the token's, and the status for a
/// stranger and for a member. Where a line holds a token, no other one is sent. `%room` is the room's id with each
/// byte escaped, `%%room` with each escape escaped once more.
const SPELLINGS: &str = r"
| request                                  | headers                                  | stranger | member |
|------------------------------------------|------------------------------------------|----------|--------|
| GET /api/rooms/{room}                    |                                          | 404      | 200    |
| GET /api/rooms/%room                     |                                          | 404      | 200    |
| GET /%61pi/rooms/{room}                  |                                          | 404      | 200    |
| GET http://naru/api/rooms/{room}         |                                          | 404      | 200    |
| GET /api/rooms/{room}?userId={member}    |                                          | 404      | 200    |
| HEAD /api/rooms/{room}                   |                                          | 404      | 200    |
| GET /api/rooms/%%room                    |                                          | 404      | 404    |
| GET /api/rooms/{ROOM}                    |                                          | 404      | 404    |
| GET /api/rooms/{room}/                   |                                          | 404      | 404    |
| GET /api/rooms/{room}%2F                 |                                          | 404      | 404    |
| GET /api/rooms/{room};v=1                |                                          | 404      | 404    |
| GET /api/rooms/{room}%00                 |                                          | 400      | 400    |
| GET /api/rooms/{room}%ff                 |                                          | 400      | 400    |
| GET //api/rooms/{room}                   |                                          | 404      | 404    |
| GET /api//rooms/{room}                   |                                          | 404      | 404    |
| GET /api/./rooms/{room}                  |                                          | 404      | 404    |
| GET /x/../api/rooms/{room}               |                                          | 404      | 404    |
| GET /api/rooms/x/../{room}               |                                          | 404      | 404    |
| GET /api/rooms/x%2F..%2F{room}           |                                          | 404      | 404    |
| GET /api/rooms/%2e%2e/rooms/{room}       |                                          | 404      | 404    |
| GET /API/rooms/{room}                    |                                          | 404      | 404    |
| TRACE /api/rooms/{room}                  |                                          | 404      | 404    |
| PATCH /api/rooms/{room}                  |                                          | 404      | 404    |
| get /api/rooms/{room}                    |                                          | 404      | 404    |
| OPTIONS /api/rooms/{room}/messages       |                                          | 204      | 204    |
| POST /api/rooms/{room}/members/{victim}  | x-http-method-override: DELETE           | 404      | 404    |
| GET /api/rooms/{room}?_method=DELETE     | x-method-override: DELETE                | 404      | 200    |
| GET /healthz                             | x-original-url: /api/rooms/{room}        | 200      | 200    |
| GET /healthz                             | x-rewrite-url: /api/rooms/{room}         | 200      | 200    |
| GET /api/rooms/{room}                    | x-user-id: {member}                      | 404      | 200    |
| GET /api/rooms/{room}                    | upgrade: websocket                       | 404      | 200    |
| GET /ws                                  | upgrade: websocket                       | 101      | 101    |
| GET /ws/                                 | upgrade: websocket                       | 101      | 101    |
| GET //ws                                 | upgrade: websocket                       | 404      | 404    |
| GET /api/ws                              | upgrade: websocket                       | 404      | 404    |
| GET /WS                                  | upgrade: websocket                       | 404      | 404    |
| GET /%77s                                | upgrade: websocket                       | 404      | 404    |
| HEAD /ws                                 | upgrade: websocket                       | 400      | 400    |
| POST /ws                                 | upgrade: websocket                       | 404      | 404    |
| GET /api/rooms/{room}?token={token}      | x-no: Bearer {token}                     | 401      | 401    |
| GET /api/rooms/{room}?access_token={token} | x-no: Bearer {token}                   | 401      | 401    |
| GET /ws?token={token}                    | x-no: Bearer {token}                     | 401      | 401    |
| GET /api/rooms/{room}                    | cookie: token={token}                    | 401      | 401    |
| GET /api/rooms/{room}                    | sec-websocket-protocol: bearer.{token}   | 401      | 401    |
| GET /api/rooms/{room}                    | x-forwarded-authorization: Bearer {token} | 401     | 401    |
| GET /api/rooms/{room}                    | authorization: Basic {token}             | 401      | 401    |
| GET /api/rooms/{room}                    | authorization: Bearer {token}, authorization: Bearer {other} | 401 | 401 |
";

/// However a request is written: it is no way around its caller's rights, and no other caller's token is taken for it.
#[tokio::test]
async fn no_spelling_of_a_request_is_a_way_in() {
    let (naru, engines) = start(&[]).await;
    let http = Http::without_token(&naru.url);
    let world = World::new(&naru, &http, &engines, 1).await;
    let before = world.state().await;
    let escaped: String = world.room.bytes().map(|byte| format!("%{byte:02x}")).collect();
    for row in rows(SPELLINGS) {
        for (caller, other) in [(Stranger, Member), (Member, Stranger)] {
            let [token, other] = [caller, other].map(|caller| token_of(caller, 1).expect("a token"));
            let fill = |text: &str| {
                let text = text.replace("%%room", &escaped.replace('%', "%25")).replace("%room", &escaped);
                let text = text.replace("{ROOM}", &world.room.to_uppercase());
                let text = text.replace("{token}", &token).replace("{other}", &other);
                world.filled(&text, caller, &world.room)
            };
            let mut headers = fill(row["headers"]).replace(", ", "\r\n");
            if !headers.contains(&token) {
                headers = format!("authorization: Bearer {token}\r\n{headers}");
            }
            if headers.contains("websocket") {
                headers += "\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
            }
            let connection = if headers.contains("upgrade:") { "close, upgrade" } else { "close" };
            let headers = format!(
                "host: naru\r\nconnection: {connection}\r\ncontent-length: 0\r\n{}",
                headers.trim_end()
            );
            let (status, answer) =
                raw(&naru.url, &format!("{} HTTP/1.1\r\n{headers}\r\n\r\n", fill(row["request"]))).await;
            let wanted = row[caller.column()];
            assert_eq!(
                status.to_string(),
                wanted,
                "{} {} by {caller:?}: {answer}",
                row["request"],
                row["headers"]
            );
            if caller == Stranger {
                assert!(!answer.contains(INSIDE), "{}: {answer}", row["request"]);
            }
        }
    }
    assert_eq!(world.state().await, before);
    naru.stop().await;
}
