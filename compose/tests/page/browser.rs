//! A browser for the page: Chromium, driven through chromedriver in the W3C WebDriver protocol.
//!
//! Both are started here and killed when the test ends, however it ends.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use naru_client::{Http, TEST_TIMEOUT};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, interval};

/// How long a browser may take to start on a busy machine.
const START: Duration = Duration::from_secs(60);
/// How long the page itself looks for what is waited for, before the test asks again.
const LOOK: Duration = Duration::from_secs(1);
/// A WebDriver element's key in JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// What every script here may use. A person is `ada` or `ben`; a bubble is a message by its exact text.
const HELPERS: &str = "
    const all = (person, role) => [...document.querySelectorAll(`[data-person=${person}] [data-role=${role}]`)];
    const one = (person, role) => all(person, role)[0];
    const bubbles = (person, text) => all(person, 'message')
        .filter((bubble) => bubble.querySelector('[data-role=content]').textContent === text);
";

/// A running browser with one window.
pub struct Browser {
    driver: Http,
    session: String,
    _chromium: Helper,
    _chromedriver: Helper,
    _profile: Profile,
}

/// A child process that is killed when it is dropped.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have left by itself already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the browser keeps its files. Its lesser processes outlive the killed one by a moment and may still write, so
/// that a single try to remove it all can fail.
struct Profile(TempDir);

impl Drop for Profile {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir_all(self.0.path()).is_err()
            && self.0.path().exists()
            && Instant::now() < deadline
        {
            std::thread::yield_now();
        }
    }
}

impl Browser {
    /// Starts one, with nothing in it but an empty page.
    pub async fn start() -> Self {
        let profile = Profile(tempfile::tempdir().expect("a folder for the profile"));
        let folder = profile.0.path();
        let profile_dir = format!("--user-data-dir={}", folder.display());
        let chromium_flags = [
            &profile_dir,
            "--remote-debugging-port=0",
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "about:blank",
        ];
        let chromium = start("chromium", &chromium_flags, &folder.join("chromium.log"));
        let chromedriver_log = folder.join("chromedriver.log");
        let chromedriver = start("chromedriver", &["--port=0"], &chromedriver_log);

        let debugger = folder.join("DevToolsActivePort");
        let debugger = read_once(&debugger, |text| Some(text.split_once('\n')?.0.to_owned())).await;
        let port = read_once(&chromedriver_log, |text| {
            let (_, after) = text.split_once("started successfully on port ")?;
            Some(after.split_once('.')?.0.to_owned())
        });
        let driver = Http::without_token(&format!("http://127.0.0.1:{}", port.await));
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"debuggerAddress": format!("127.0.0.1:{debugger}")},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let (status, answer) = driver.post("/session", wanted).await;
        assert_eq!(status, 200, "chromedriver can't drive this chromium: {answer}");
        let session = answer["value"]["sessionId"].as_str().expect("a session id").to_owned();
        Self { driver, session, _chromium: chromium, _chromedriver: chromedriver, _profile: profile }
    }

    /// Opens this address and waits until it has loaded.
    pub async fn open(&self, url: &str) {
        self.command("/url", json!({"url": url})).await;
    }

    /// Loads the page again.
    pub async fn reload(&self) {
        self.command("/refresh", json!({})).await;
    }

    /// Clicks this element, as a hand would: it must be in sight and not covered.
    pub async fn click(&self, selector: &str) {
        let element = self.find(selector).await;
        self.command(&format!("/element/{element}/click"), json!({})).await;
    }

    /// Types into this element. `\u{e007}` is the Enter key.
    pub async fn type_into(&self, selector: &str, text: &str) {
        let element = self.find(selector).await;
        self.command(&format!("/element/{element}/value"), json!({"text": text})).await;
    }

    /// Runs these statements in the page.
    pub async fn run(&self, statements: &str) -> Value {
        let script = format!("{HELPERS}{statements}");
        self.command("/execute/sync", json!({"script": script, "args": []})).await
    }

    /// Waits until this expression is true of the page: its value.
    pub async fn until(&self, expression: &str) -> Value {
        self.until_within(TEST_TIMEOUT, expression).await
    }

    /// The same, for what takes longer.
    pub async fn until_within(&self, patience: Duration, expression: &str) -> Value {
        let look = format!(
            "const end = performance.now() + {};
            return (async () => {{
                for (;;) {{
                    const value = ({expression});
                    if (value || performance.now() > end) return value || null;
                    await new Promise((again) => setTimeout(again, 10));
                }}
            }})();",
            LOOK.as_millis()
        );
        let deadline = Instant::now() + patience;
        loop {
            match self.run(&look).await {
                Value::Null if Instant::now() < deadline => {}
                Value::Null => {
                    let page = self.run("return document.querySelector('main').innerHTML").await;
                    panic!(
                        "not true within {patience:?}: {expression}\nthe console: {:#?}\nthe page: {page}",
                        self.console().await
                    );
                }
                value => return value,
            }
        }
    }

    /// What the browser has complained of since the last call: scripts that failed, what the page's policy forbade,
    /// what could not be loaded.
    pub async fn console(&self) -> Vec<Value> {
        match self.command("/se/log", json!({"type": "browser"})).await {
            Value::Array(entries) => entries,
            other => panic!("not a log: {other}"),
        }
    }

    /// Makes the window this large, in this colour scheme (`light` or `dark`).
    pub async fn look(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.chromium("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.chromium("Emulation.setEmulatedMedia", scheme).await;
    }

    /// What is in sight, as a PNG file.
    pub async fn screenshot(&self, file: &Path) {
        let (status, answer) = self.driver.get(&format!("/session/{}/screenshot", self.session)).await;
        assert_eq!(status, 200, "no screenshot: {answer}");
        let png = from_base64(answer["value"].as_str().expect("a picture"));
        assert!(png.starts_with(b"\x89PNG"), "not a PNG");
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder for screenshots");
        fs::write(file, png).expect("a screenshot is written");
    }

    async fn find(&self, selector: &str) -> String {
        let wanted = json!({"using": "css selector", "value": selector});
        let element = self.command("/element", wanted).await;
        element[ELEMENT].as_str().expect("an element").to_owned()
    }

    async fn chromium(&self, command: &str, params: Value) {
        self.command("/goog/cdp/execute", json!({"cmd": command, "params": params})).await;
    }

    async fn command(&self, path: &str, body: Value) -> Value {
        let (status, mut answer) =
            self.driver.post(&format!("/session/{}{path}", self.session), body.clone()).await;
        assert_eq!(status, 200, "{path} {body} failed: {}", answer["value"]["message"]);
        answer["value"].take()
    }
}

fn start(program: &str, flags: &[&str], log: &Path) -> Helper {
    let log = File::create(log).expect("a log file");
    let errors = log.try_clone().expect("the same file again");
    let child = Command::new(program)
        .args(flags)
        .env("LANGUAGE", "en")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn();
    Helper(child.unwrap_or_else(|error| {
        panic!(
            "{program} can't be started ({error}). The demo page is tested in a browser: \
            `apt-get install -y chromium chromium-driver`, or let `scripts/test` do it."
        )
    }))
}

/// What `part` finds in a file that a process writes when it is ready.
async fn read_once(file: &Path, part: impl Fn(&str) -> Option<String>) -> String {
    let mut looks = interval(Duration::from_millis(10));
    let deadline = Instant::now() + START;
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        if let Some(found) = part(&text) {
            return found;
        }
        if Instant::now() > deadline {
            let folder = file.parent().expect("a folder");
            let logs = ["chromium.log", "chromedriver.log"].map(|log| fs::read_to_string(folder.join(log)));
            panic!("no browser after {START:?}: nothing in {}; the logs: {logs:?}", file.display());
        }
        looks.tick().await;
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    let (mut bytes, mut bits, mut held) = (Vec::with_capacity(text.len() / 4 * 3), 0, 0_u32);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        held = held << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
        }
    }
    bytes
}
