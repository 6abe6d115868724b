//! A client of both providers, with the keys that the emulator made.

use std::fs;
use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use naru_phones::{Handle, KEY_ID, Options, Phones, TEAM_ID, TOPIC};
use reqwest::{Certificate, Client, ClientBuilder, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// What takes longer has failed. Both cores may be compiling.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// What the emulator keeps.
pub const FILES: [&str; 4] = ["ca.key", "ca.pem", "service-account.json", "AuthKey_NARUDEMO01.p8"];
/// What an app's FCM token looks like.
pub const FCM_TOKEN: &str = "cEL2b7-tRkq:APA91bH";
/// What an app's APNs token looks like.
pub const APNS_TOKEN: &str = "8f3a1c5e7b9d2f4a6c8e0b1d3f5a7c9e8f3a1c5e7b9d2f4a6c8e0b1d3f5a7c9e";

pub struct Fixture {
    pub phones: Phones,
    pub handle: Handle,
    pub client: Client,
    pub account: Value,
    provider_token: String,
    pub dir: TempDir,
}

#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answered {
    async fn of(response: Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, text: response.text().await.expect("a whole body") }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    /// APNs' reason.
    pub fn reason(&self) -> (u16, String) {
        (self.status, self.json()["reason"].as_str().unwrap_or_default().to_owned())
    }

    /// Google's status, and FCM's error code where there is one.
    pub fn error(&self) -> (u16, String, String) {
        let error = &self.json()["error"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let code = |detail: &Value| detail["@type"] == "type.googleapis.com/google.firebase.fcm.v1.FcmError";
        let details = error["details"].as_array().cloned().unwrap_or_default();
        let code = details.iter().find(|detail| code(detail)).map(|detail| text(&detail["errorCode"]));
        (self.status, text(&error["status"]), code.unwrap_or_default())
    }

    /// The fields that Google found wrong.
    pub fn fields(&self) -> Vec<String> {
        let details = self.json()["error"]["details"].as_array().cloned().unwrap_or_default();
        let violations =
            details.iter().flat_map(|detail| detail["fieldViolations"].as_array().cloned()).flatten();
        violations.map(|violation| violation["field"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

impl Fixture {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With keys that the tests share: making them takes longer than most tests.
    pub async fn with(change: impl FnOnce(&mut Options)) -> Self {
        static KEYS: OnceCell<TempDir> = OnceCell::const_new();
        let keys = KEYS
            .get_or_init(|| async {
                let dir = tempfile::tempdir().expect("a folder");
                Phones::start(Options::in_dir(dir.path())).await.expect("they start");
                dir
            })
            .await;
        let dir = tempfile::tempdir().expect("a folder");
        for name in FILES {
            fs::copy(keys.path().join(name), dir.path().join(name)).expect("a file");
        }
        Self::start(dir, change).await
    }

    /// With keys of its own.
    pub async fn with_new_keys() -> Self {
        Self::start(tempfile::tempdir().expect("a folder"), |_| {}).await
    }

    async fn start(dir: TempDir, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::in_dir(dir.path());
        change(&mut options);
        let phones = Phones::start(options).await.expect("they start");
        let environment = phones.environment();
        let value = |name: &str| &environment.iter().find(|(it, _)| *it == name).expect("a variable").1;
        let account = fs::read(value("NARU_FCM_SERVICE_ACCOUNT_FILE")).expect("a file");
        let account: Value = serde_json::from_slice(&account).expect("JSON");
        let client = client(&phones).build().expect("a client");
        let provider_token = provider_token(dir.path(), &json!({"iss": TEAM_ID, "iat": now()}), KEY_ID);
        Self { handle: phones.handle(), phones, client, account, provider_token, dir }
    }

    /// Claims that get an access token.
    pub fn claims(&self) -> Value {
        json!({
            "iss": self.account["client_email"],
            "scope": "https://www.googleapis.com/auth/firebase.messaging",
            "aud": self.account["token_uri"],
            "iat": now(),
            "exp": now() + 3_600,
        })
    }

    /// An assertion with these claims.
    pub fn assertion(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(self.account["private_key_id"].as_str().expect("a key").to_owned());
        let key = self.account["private_key"].as_str().expect("a key");
        encode(&header, claims, &EncodingKey::from_rsa_pem(key.as_bytes()).expect("a key")).expect("a JWT")
    }

    /// `POST /token`.
    pub async fn exchange(&self, fields: &[(&str, &str)]) -> Answered {
        let url = self.account["token_uri"].as_str().expect("a URL");
        let form: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = self.client.post(url).header("content-type", "application/x-www-form-urlencoded");
        in_time(request.body(form.join("&"))).await.expect("an answer")
    }

    pub async fn access_token(&self) -> String {
        let assertion = self.assertion(&self.claims());
        let fields =
            [("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", &assertion)];
        let answered = self.exchange(&fields).await;
        assert_eq!(answered.status, 200, "{}", answered.text);
        answered.json()["access_token"].as_str().expect("a token").to_owned()
    }

    /// A request to FCM with this bearer, still to be sent.
    pub fn send_request(&self, bearer: &str, body: &Value) -> RequestBuilder {
        let url = format!("{}/v1/projects/naru-demo/messages:send", self.phones.fcm_url());
        self.client.post(url).bearer_auth(bearer).json(body)
    }

    /// Sends to FCM with a new access token.
    pub async fn send(&self, message: &Value) -> Answered {
        self.send_body(&json!({"message": message})).await
    }

    pub async fn send_body(&self, body: &Value) -> Answered {
        let bearer = self.access_token().await;
        in_time(self.send_request(&bearer, body)).await.expect("an answer")
    }

    /// A provider token with these claims and this key identifier.
    pub fn provider_token(&self, claims: &Value, key_id: &str) -> String {
        provider_token(self.dir.path(), claims, key_id)
    }

    /// A push to APNs that is in order, still to be sent. With `headers`, those in the place of the usual ones; one
    /// without a value is left out.
    pub fn device_request(
        &self,
        token: &str,
        headers: &[(&str, Option<&str>)],
        body: &Value,
    ) -> RequestBuilder {
        let url = format!("{}/3/device/{token}", self.phones.apns_url());
        let bearer = format!("bearer {}", self.provider_token);
        let usual = [("authorization", bearer.as_str()), ("apns-topic", TOPIC), ("apns-push-type", "alert")];
        let mut request = self.client.request(Method::POST, url);
        for (name, value) in
            usual.into_iter().filter(|(name, _)| headers.iter().all(|(other, _)| other != name))
        {
            request = request.header(name, value);
        }
        for (name, value) in headers {
            if let Some(value) = value {
                request = request.header(*name, *value);
            }
        }
        request.body(body.to_string())
    }

    pub async fn device(&self, token: &str, headers: &[(&str, Option<&str>)], body: &Value) -> Answered {
        in_time(self.device_request(token, headers, body)).await.expect("an answer")
    }

    /// Pushes to APNs, in order in every way.
    pub async fn push(&self, token: &str) -> Answered {
        self.device(token, &[], &alert()).await
    }
}

/// A client that trusts the emulator's authority and no other.
pub fn client(phones: &Phones) -> ClientBuilder {
    let ca = fs::read(phones.ca_file()).expect("a file");
    let ca = Certificate::from_pem(&ca).expect("a certificate");
    Client::builder().no_proxy().retry(reqwest::retry::never()).tls_certs_only([ca])
}

/// Sends; no answer in time is a failed test, a broken connection is an error.
pub async fn in_time(request: RequestBuilder) -> reqwest::Result<Answered> {
    soon(async { Ok(Answered::of(request.send().await?).await) }).await
}

/// What must come soon.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIMEOUT, what).await.unwrap_or_else(|_| panic!("not within {TEST_TIMEOUT:?}"))
}

fn provider_token(dir: &std::path::Path, claims: &Value, key_id: &str) -> String {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(key_id.to_owned());
    let key = fs::read(dir.join(format!("AuthKey_{KEY_ID}.p8"))).expect("a file");
    encode(&header, claims, &EncodingKey::from_ec_pem(&key).expect("a key")).expect("a JWT")
}

/// A payload that says something.
pub fn alert() -> Value {
    json!({"aps": {"alert": {"title": "Ada", "body": "Hello"}}})
}

/// A message that says something.
pub fn notification(token: &str) -> Value {
    json!({"token": token, "notification": {"title": "Ada", "body": "Hello"}})
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_secs()
}
