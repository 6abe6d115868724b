//! The demo page, as its two people see it: a real browser on the real binary, started as `cargo run --release` does.
//!
//! What a sender sees, and when.

mod browser;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use naru_client::ServerProcess;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use self::browser::Browser;

const BINARY: &str = env!("CARGO_BIN_EXE_naru");
const ENTER: &str = "\u{e007}";
/// `ANSWER_WITHIN_MS` and `LONGEST_DELAY_MS` of the page, with something to spare.
const NO_ANSWER: Duration = Duration::from_secs(20);
const RECONNECT: Duration = Duration::from_secs(20);

/// Ada's message is on her screen at once, becomes sent when it is saved, and is at Ben's; no phone buzzes.
#[tokio::test]
async fn a_message_is_drawn_at_once_and_arrives() {
    let fixture = Fixture::set_up().await;
    fixture.watch_bubbles("ada").await;
    fixture.write("ada", "안녕하세요, Ben").await;
    let sent = fixture.bubble("ada", "안녕하세요, Ben", "sent").await;
    let received = fixture.bubble("ben", "안녕하세요, Ben", "received").await;
    assert_eq!(received["id"], sent["id"]);

    // From Enter on: first sending, then sent under the saved id, and nothing in between.
    let seen = fixture.browser.run("return window.seen").await;
    let states: Vec<_> = seen.as_array().expect("what was seen").iter().map(|step| &step["state"]).collect();
    assert_eq!(states, ["sending", "sent"], "{seen}");
    assert_eq!((&seen[0]["id"], &seen[1]["id"]), (&Value::Null, &sent["id"]));
    assert!(is_object_id(&sent["id"]), "{seen}");
    let drawn_after = seen[0]["after"].as_f64().expect("milliseconds");
    assert!(drawn_after < 100.0, "drawn after {drawn_after} ms: {seen}");

    // Ben reads it, and Ada sees that. He answers.
    fixture
        .browser
        .until(&format!("bubbles('ada', {})[0].dataset.mark === 'read'", json!("안녕하세요, Ben")))
        .await;
    fixture.write("ben", "Hello, Ada").await;
    let answer = fixture.bubble("ada", "Hello, Ada", "received").await;
    assert_eq!(fixture.bubble("ben", "Hello, Ada", "sent").await["id"], answer["id"]);
    assert_eq!(fixture.pushes("ada").await, json!([]));
    assert_eq!(fixture.pushes("ben").await, json!([]));
    fixture.clear_away().await;
}

/// Ben is switched off, so his phone buzzes; when he is back, the message is there, once.
#[tokio::test]
async fn a_phone_buzzes_when_its_owner_is_away() {
    let fixture = Fixture::set_up().await;
    fixture.write("ada", "you are here").await;
    fixture.bubble("ben", "you are here", "received").await;

    fixture.switch("ben", "offline").await;
    fixture.write("ada", "밥 먹었어?").await;
    let sent = fixture.bubble("ada", "밥 먹었어?", "sent").await;
    fixture.browser.until("all('ben', 'push').length > 0").await;
    // One push: none was sent for the message that found him here.
    assert_eq!(
        fixture.pushes("ben").await,
        json!([{"title": "Ada", "body": "밥 먹었어?", "id": sent["id"]}])
    );
    assert_eq!(fixture.texts("ben").await, json!(["you are here"]));

    fixture.switch("ben", "connected").await;
    let received = fixture.bubble("ben", "밥 먹었어?", "received").await;
    assert_eq!(received["id"], sent["id"]);
    assert_eq!(fixture.texts("ben").await, json!(["you are here", "밥 먹었어?"]));
    assert_eq!(fixture.pushes("ada").await, json!([]));
    fixture.clear_away().await;
}

/// What is written with the network switched off fails at once, and says that it was not sent.
#[tokio::test]
async fn what_is_written_offline_fails_and_can_be_resent() {
    let fixture = Fixture::set_up().await;
    fixture.switch("ada", "offline").await;
    fixture.write("ada", "into the void").await;
    let failed = fixture.bubble("ada", "into the void", "failed").await;
    assert_eq!((&failed["reason"], &failed["fate"]), (&json!("not_connected"), &json!("not_sent")));

    fixture.switch("ada", "connected").await;
    fixture.resend("ada").await;
    let sent = fixture.bubble("ada", "into the void", "sent").await;
    assert_eq!(sent["clientMessageId"], failed["clientMessageId"]);
    assert_eq!(fixture.bubble("ben", "into the void", "received").await["id"], sent["id"]);
    fixture.clear_away().await;
}

/// P2: the server dies. What Ada writes then gets no answer and fails; when the server is back, the page is too,
/// and a resend is the same message. (The page waits 10 s for an answer, and so does this test.)
#[tokio::test]
async fn a_message_written_while_the_server_is_dead_is_resent() {
    let mut fixture = Fixture::set_up().await;
    fixture.server.kill9().await;
    fixture.connection("ada", "reconnecting").await;
    fixture.write("ada", "is anyone there?").await;
    fixture.bubble("ada", "is anyone there?", "sending").await;
    let failed = fixture.bubble_within(NO_ANSWER, "ada", "is anyone there?", "failed").await;
    assert_eq!((&failed["reason"], &failed["fate"]), (&json!("not_connected"), &json!("not_sent")));

    fixture.start_server_again().await;
    for person in ["ada", "ben"] {
        fixture.connected_within(RECONNECT, person).await;
    }
    fixture.resend("ada").await;
    let sent = fixture.bubble("ada", "is anyone there?", "sent").await;
    assert_eq!(sent["clientMessageId"], failed["clientMessageId"]);
    assert!(is_object_id(&sent["id"]), "{sent}");
    assert_eq!(fixture.bubble("ben", "is anyone there?", "received").await["id"], sent["id"]);
    fixture.browser.reload().await;
    fixture.ready().await;
    fixture.bubble("ada", "is anyone there?", "sent").await;
    assert_eq!(fixture.texts("ada").await, json!(["is anyone there?"]));
    fixture.clear_away_after_an_outage().await;
}

/// P4 as the page sees it: the server dies with a message in its hands, whose fate is unknown. The page sends it
/// again by itself, and there is one.
#[tokio::test]
async fn a_message_of_unknown_fate_is_sent_again_by_the_page() {
    let mut fixture = Fixture::set_up().await;
    fixture.halt_server();
    fixture.write("ada", "in your hands").await;
    let sending = fixture.bubble("ada", "in your hands", "sending").await;
    fixture.server.kill9().await;
    fixture.start_server_again().await;
    for person in ["ada", "ben"] {
        fixture.connected_within(RECONNECT, person).await;
    }
    let sent = fixture.bubble("ada", "in your hands", "sent").await;
    assert_eq!(sent["clientMessageId"], sending["clientMessageId"]);
    assert_eq!(fixture.bubble("ben", "in your hands", "received").await["id"], sent["id"]);
    fixture.browser.reload().await;
    fixture.ready().await;
    fixture.bubble("ada", "in your hands", "sent").await;
    assert_eq!(fixture.texts("ada").await, json!(["in your hands"]));
    fixture.clear_away_after_an_outage().await;
}

/// The history is there again after a reload, in order, and text is text, whatever it says.
#[tokio::test]
async fn the_history_survives_a_reload() {
    let texts = ["first", "안녕하세요 👋", "<b>bold?</b><script>alert(1)</script>", "  &amp; last"];
    let fixture = Fixture::set_up().await;
    for (text, (from, to)) in texts.iter().zip([("ada", "ben"), ("ben", "ada")].into_iter().cycle()) {
        fixture.write(from, text).await;
        fixture.bubble(from, text, "sent").await;
        fixture.bubble(to, text, "received").await;
    }
    for round in ["before", "after"] {
        for person in ["ada", "ben"] {
            assert_eq!(fixture.texts(person).await, json!(texts), "{person}, {round} the reload");
        }
        let markup = "return document.querySelectorAll('[data-role=content] *').length";
        assert_eq!(fixture.browser.run(markup).await, 0);
        if round == "before" {
            fixture.browser.reload().await;
            fixture.ready().await;
            fixture.browser.until(&format!("all('ben', 'message').length === {}", texts.len())).await;
        }
    }
    fixture.clear_away().await;
}

/// The page speaks English and Korean, and remembers which.
#[tokio::test]
async fn the_page_speaks_korean() {
    let fixture = Fixture::set_up().await;
    fixture.write("ada", "hello").await;
    fixture.bubble("ada", "hello", "sent").await;
    let words =
        "[document.documentElement.lang, one('ada', 'send').textContent, one('ben', 'input').placeholder,
        one('ada', 'mark').ariaLabel]";
    let in_language =
        |wanted: [&str; 4]| format!("JSON.stringify({words}) === {}", json!(json!(wanted).to_string()));
    let english = in_language(["en", "Send", "Message to Ada", "sent"]);
    let korean = in_language(["ko", "보내기", "Ada에게 보낼 메시지", "보냄"]);

    fixture.browser.until(&english).await;
    fixture.browser.click("[data-role=language]").await;
    fixture.browser.until(&korean).await;
    assert_eq!(fixture.texts("ada").await, json!(["hello"]));
    fixture.browser.reload().await;
    fixture.ready().await;
    fixture.bubble("ada", "hello", "sent").await;
    fixture.browser.until(&korean).await;
    fixture.browser.click("[data-role=language]").await;
    fixture.browser.until(&english).await;
    fixture.clear_away().await;
}

/// Pictures of the page for its developers, in `target/screenshots`. On a small screen one person is shown at a
/// time, and the other's tab counts the pushes on the phone that is out of sight. Nothing is wider than the screen.
#[tokio::test]
async fn the_page_fits_its_screens() {
    let fixture = Fixture::set_up().await;
    let browser = &fixture.browser;
    fixture.picture("1-empty", 1280, 900, "light").await;

    fixture.write("ada", "Shall we meet at the landing?").await;
    fixture.bubble("ben", "Shall we meet at the landing?", "received").await;
    fixture
        .write("ben", "네, 나루터에서 만나요! 여섯 시쯤 어때요? 강가에 있는 오래된 찻집 앞에서 기다릴게요.")
        .await;
    fixture.browser.until("all('ada', 'message').length === 2").await;
    fixture.switch("ben", "offline").await;
    fixture.write("ada", "Six is fine. 🚢").await;
    fixture
        .write(
            "ada",
            "Don’t forget the tickets; the last ferry leaves at half past nine and there is no other.",
        )
        .await;
    browser.until("all('ben', 'push').length === 2").await;
    fixture.switch("ada", "offline").await;
    fixture.write("ada", "Ben?").await;
    fixture.bubble("ada", "Ben?", "failed").await;
    for scheme in ["light", "dark"] {
        fixture.picture("2-away", 1280, 900, scheme).await;
    }
    for scheme in ["light", "dark"] {
        fixture.picture("3-ada", 390, 844, scheme).await;
    }
    let in_sight = "[...document.querySelectorAll('[data-person]')]
        .filter((person) => person.offsetParent).map((person) => person.dataset.person).join()";
    browser.until(&format!("{in_sight} === 'ada'")).await;
    assert_eq!(
        browser.run("return document.querySelector('[data-show=ben] [data-role=badge]').textContent").await,
        "2"
    );
    browser.click("[data-role=tab][data-show=ben]").await;
    browser.until(&format!("{in_sight} === 'ben'")).await;
    fixture.picture("4-ben", 390, 844, "light").await;
    browser.click("[data-role=language]").await;
    fixture.picture("5-korean", 390, 844, "dark").await;
    fixture.picture("5-korean", 1280, 900, "light").await;
    browser.click("[data-role=language]").await;
    fixture.picture("6-tablet", 820, 1180, "light").await;
    fixture.switch("ada", "connected").await;
    fixture.halt_server();
    fixture.write("ada", "Ben, are you there?").await;
    fixture.bubble("ada", "Ben, are you there?", "sending").await;
    fixture.picture("7-sending", 1280, 900, "light").await;
    fixture.clear_away().await;
}

/// Only one of these tests at a time has its browser: what is timed here is the page, not the machine's load.
static TURN: Mutex<()> = Mutex::const_new(());

/// A server with its data, and a browser that shows its page: both people connected, both phones on the desk.
struct Fixture {
    browser: Browser,
    server: ServerProcess,
    data: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Fixture {
    async fn set_up() -> Self {
        let turn = TURN.lock().await;
        let data = tempfile::tempdir().expect("a folder for the data");
        let server = ServerProcess::start(BINARY, data.path(), &[]).await.expect("a server");
        let browser = Browser::start().await;
        browser.open(server.url()).await;
        let fixture = Self { browser, server, data, _turn: turn };
        fixture.ready().await;
        fixture
    }

    async fn ready(&self) {
        for person in ["ada", "ben"] {
            self.connection(person, "connected").await;
            self.browser.until(&format!("one('{person}', 'phone').dataset.stream === 'open'")).await;
        }
    }

    /// The test is over: the browser had nothing to complain of.
    async fn clear_away(self) {
        let complaints = self.browser.console().await;
        assert!(complaints.is_empty(), "{complaints:#?}");
    }

    /// The same, but that the server could not be reached for a while may be complained of.
    async fn clear_away_after_an_outage(self) {
        let mut complaints = self.browser.console().await;
        assert!(
            !complaints.is_empty(),
            "an outage that the browser does not see? Then it sees nothing else either"
        );
        complaints.retain(|entry| !entry["message"].as_str().is_some_and(|text| text.contains("net::ERR_")));
        assert!(complaints.is_empty(), "{complaints:#?}");
    }

    /// Starts the killed server on the same address and the same data.
    async fn start_server_again(&mut self) {
        let address = self.server.url().trim_start_matches("http://").to_owned();
        let same = [("NARU_LISTEN", address.as_str())];
        self.server = ServerProcess::start(BINARY, self.data.path(), &same).await.expect("the server again");
    }

    /// Keeps the server from reading what is sent to it. (The system takes it for the server meanwhile.)
    fn halt_server(&self) {
        let stopped = Command::new("sh").args(["-c", &format!("kill -STOP {}", self.server.pid())]).status();
        assert!(stopped.is_ok_and(|status| status.success()), "the server can't be halted");
    }

    async fn write(&self, person: &str, text: &str) {
        let input = format!("[data-person={person}] [data-role=input]");
        self.browser.type_into(&input, &format!("{text}{ENTER}")).await;
    }

    async fn resend(&self, person: &str) {
        self.browser.click(&format!("[data-person={person}] [data-role=resend]")).await;
    }

    /// Flips a person's network switch.
    async fn switch(&self, person: &str, then: &str) {
        self.browser.click(&format!("[data-person={person}] [data-role=power]")).await;
        self.connection(person, then).await;
    }

    async fn connection(&self, person: &str, state: &str) {
        self.browser.until(&format!("one('{person}', 'state').dataset.connection === '{state}'")).await;
    }

    async fn connected_within(&self, patience: Duration, person: &str) {
        let connected = format!("one('{person}', 'state').dataset.connection === 'connected'");
        self.browser.until_within(patience, &connected).await;
    }

    /// Waits until a person has exactly one bubble with this text, in this state: its data.
    async fn bubble(&self, person: &str, text: &str, state: &str) -> Value {
        self.bubble_within(naru_client::TEST_TIMEOUT, person, text, state).await
    }

    async fn bubble_within(&self, patience: Duration, person: &str, text: &str, state: &str) -> Value {
        let found = format!(
            "((found) => found.length === 1 && found[0].dataset.state === '{state}' && {{...found[0].dataset}})
            (bubbles('{person}', {}))",
            json!(text)
        );
        self.browser.until_within(patience, &found).await
    }

    /// All that a person's screen says, from top to bottom.
    async fn texts(&self, person: &str) -> Value {
        self.browser.run(&format!("return all('{person}', 'content').map((text) => text.textContent)")).await
    }

    /// All that a person's phone shows, newest first.
    async fn pushes(&self, person: &str) -> Value {
        let script = format!(
            "return all('{person}', 'push').map((push) => ({{
                title: push.querySelector('[data-role=pushTitle]').textContent,
                body: push.querySelector('[data-role=pushBody]').textContent,
                id: push.dataset.messageId,
            }}))"
        );
        self.browser.run(&script).await
    }

    /// Notes each state that a person's newest bubble is in from now on, and how many milliseconds after Enter.
    async fn watch_bubbles(&self, person: &str) {
        let script = format!(
            "window.seen = [];
            let pressed;
            one('{person}', 'input').addEventListener('keydown', (event) => {{
                if (event.key === 'Enter') pressed = performance.now();
            }}, {{ capture: true }});
            new MutationObserver(() => {{
                const {{ state, id = null }} = all('{person}', 'message').at(-1).dataset;
                if (window.seen.at(-1)?.state === state) return;
                window.seen.push({{ state, id, after: performance.now() - pressed }});
            }}).observe(one('{person}', 'list'), {{ childList: true, subtree: true, attributes: true }});"
        );
        self.browser.run(&script).await;
    }

    async fn picture(&self, name: &str, width: u32, height: u32, scheme: &str) {
        self.browser.look(width, height, scheme).await;
        let fits = "document.documentElement.scrollWidth <= innerWidth";
        self.browser.until(&format!("innerWidth === {width} && innerHeight === {height} && {fits}")).await;
        // The last animation has run out, and what came of it is drawn.
        let still = "document.getAnimations().every((animation) => animation.playState === 'finished')";
        self.browser.until(still).await;
        let folder =
            Path::new(env!("CARGO_TARGET_TMPDIR")).parent().map_or_else(PathBuf::new, Path::to_owned);
        let file = folder.join(format!("screenshots/{name}-{width}x{height}-{scheme}.png"));
        self.browser.screenshot(&file).await;
    }
}

fn is_object_id(id: &Value) -> bool {
    id.as_str().is_some_and(|id| id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
