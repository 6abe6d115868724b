//! Steering the providers over HTTP. The table is in this crate's documentation.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::answer::{Answer, ApnsReason, FcmError};
use crate::conduct::Conduct;
use crate::handle::Handle;
use crate::oauth::TOKEN_ENDPOINT;
use crate::provider::Provider;
use crate::reply::{self, Reply};

/// The most that a body may have, in bytes.
const MAX_BYTES: usize = 64 * 1_024;
/// A client that has not sent the head of its request by then is sent away.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, handle: Handle) {
    // Owns the connections, so that they end with this.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    // No free file descriptor, as a rule.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let handle = handle.clone();
                let service = service_fn(move |request| {
                    let handle = handle.clone();
                    async move { Ok::<_, Infallible>(answer(&handle, request).await) }
                });
                let mut builder = http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
                connections.spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A refusal: a status and a sentence.
type Refusal = (u16, String);

async fn answer(handle: &Handle, request: Request<Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let answered = match Limited::new(body, MAX_BYTES).collect().await {
        Ok(body) => route(handle, &head, &body.to_bytes()).await,
        Err(_) => Err((400, format!("The body must be whole, and have at most {MAX_BYTES} bytes."))),
    };
    answered.unwrap_or_else(|(status, sentence)| reply::json(status, &json!({"message": sentence})))
}

async fn route(handle: &Handle, head: &Parts, body: &[u8]) -> Result<Reply, Refusal> {
    let parts: Vec<String> = head
        .uri
        .path()
        .split('/')
        .skip(1)
        .map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned())
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match (&head.method, parts.as_slice()) {
        (&Method::GET, ["healthz" | "readyz"]) => Ok(reply::bytes(200, "ok\n")),
        (&Method::GET, ["counts"]) => {
            let counts = |provider| handle.counts(provider);
            Ok(reply::json(
                200,
                &json!({
                    "taken": handle.taken(),
                    "fcm": counts(Provider::Fcm),
                    "apns": counts(Provider::Apns),
                }),
            ))
        }
        (&Method::GET, ["pushes"]) => pushes(handle, head.uri.query().unwrap_or_default()),
        (&Method::PUT, ["answers", name, token]) => {
            let (answer, times) = read::<AskedAnswer>(body)?.into_answer(provider(name)?)?;
            let token = token_or_endpoint(token);
            match times {
                Some(times) => handle.answer_once(token, std::iter::repeat_n(answer, times)),
                None => handle.answer(token, answer),
            }
            Ok(done())
        }
        (&Method::DELETE, ["answers", name, token]) => {
            provider(name)?;
            handle.answer_as_usual(token_or_endpoint(token));
            Ok(done())
        }
        (&Method::PUT, ["providers", name]) => {
            let provider = provider(name)?;
            handle.set(provider, read::<AskedConduct>(body)?.into_conduct(provider)?).await;
            Ok(done())
        }
        (&Method::DELETE, ["providers", name]) => {
            handle.set(provider(name)?, Conduct::Usual).await;
            Ok(done())
        }
        (&Method::DELETE, ["access-tokens"]) => {
            handle.expire_access_tokens();
            Ok(done())
        }
        (method, _) => {
            Err((404, format!("There is no {method} {}: see naru-phones' documentation.", head.uri.path())))
        }
    }
}

fn done() -> Reply {
    reply::bytes(204, "")
}

fn provider(name: &str) -> Result<Provider, Refusal> {
    Provider::named(name).ok_or_else(|| (400, format!("There is no provider \"{name}\": it is fcm or apns.")))
}

/// `oauth2` in the place of a token is the OAuth2 endpoint, whose own name has a slash.
fn token_or_endpoint(token: &str) -> &str {
    if token == "oauth2" { TOKEN_ENDPOINT } else { token }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| (400, format!("The body cannot be read: {error}.")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    #[serde(default)]
    after: u64,
    token: Option<String>,
}

fn pushes(handle: &Handle, query: &str) -> Result<Reply, Refusal> {
    let which: Which = serde_urlencoded::from_str(query)
        .map_err(|error| (400, format!("The query cannot be read: {error}.")))?;
    // Before the pushes are: whoever asks again after this number misses none.
    let mut newest = handle.taken();
    let mut pushes = handle.received_after(which.after);
    newest = newest.max(pushes.last().map_or(0, |push| push.number));
    pushes.retain(|push| which.token.as_ref().is_none_or(|token| push.token == *token));
    Ok(reply::json(200, &json!({"newest": newest, "pushes": pushes})))
}

/// The body of `PUT /answers/…`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AskedAnswer {
    answer: String,
    times: Option<usize>,
    retry_after_seconds: Option<u64>,
    timestamp_ms: Option<u64>,
    ms: Option<u64>,
    status: Option<u16>,
    headers: Option<HashMap<String, String>>,
    body: Option<String>,
}

impl AskedAnswer {
    /// The answer, and how often; none is for ever.
    fn into_answer(self, provider: Provider) -> Result<(Answer, Option<usize>), Refusal> {
        /// More than anybody counts; each takes memory.
        const MAX_TIMES: usize = 100_000;
        if self.times.is_some_and(|times| !(1..=MAX_TIMES).contains(&times)) {
            return Err((400, format!("\"times\" is from 1 to {MAX_TIMES}, or absent: for ever.")));
        }
        let mut answer = match plain(&self.answer).as_str() {
            "taken" => Answer::Taken,
            "takenunheard" => Answer::TakenUnheard,
            "close" => Answer::Close,
            "hang" => Answer::Hang,
            "slow" => Answer::Slow(milliseconds(self.ms, "ms")?),
            "raw" => {
                let status = self.status.ok_or_else(|| (400, "\"raw\" needs a \"status\".".to_owned()))?;
                let headers: Vec<(String, String)> = self.headers.unwrap_or_default().into_iter().collect();
                if !reply::is_sendable(status, &headers) {
                    let sentence = "HTTP cannot carry this status, from 200 to 599, with these headers.";
                    return Err((400, sentence.to_owned()));
                }
                Answer::Raw { status, headers, body: self.body.unwrap_or_default() }
            }
            name => named(provider, name).ok_or_else(|| {
                let names = names(provider).join(", ");
                let answer = &self.answer;
                (400, format!("{provider} has no answer \"{answer}\". There are: {names}."))
            })?,
        };
        if let Some(seconds) = self.retry_after_seconds {
            answer = answer.retry_after(seconds);
        }
        if let Some(milliseconds) = self.timestamp_ms {
            answer = answer.since(milliseconds);
        }
        Ok((answer, self.times))
    }
}

/// Letters and digits only, in lower case: `QUOTA_EXCEEDED` and `quotaExceeded` are the same.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}

fn named(provider: Provider, name: &str) -> Option<Answer> {
    match provider {
        Provider::Fcm => {
            FcmError::ALL.iter().find(|code| plain(code.as_str()) == name).copied().map(Answer::fcm)
        }
        Provider::Apns => {
            ApnsReason::ALL.iter().find(|reason| plain(reason.as_str()) == name).copied().map(Answer::apns)
        }
    }
}

fn names(provider: Provider) -> Vec<&'static str> {
    let errors: Vec<&str> = match provider {
        Provider::Fcm => FcmError::ALL.iter().map(|code| code.as_str()).collect(),
        Provider::Apns => ApnsReason::ALL.iter().map(|reason| reason.as_str()).collect(),
    };
    ["taken", "takenUnheard", "slow", "close", "hang", "raw"].into_iter().chain(errors).collect()
}

/// The body of `PUT /providers/…`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AskedConduct {
    conduct: String,
    ms: Option<u64>,
    every_ms: Option<u64>,
    streams: Option<u32>,
    answer: Option<Value>,
}

impl AskedConduct {
    fn into_conduct(self, provider: Provider) -> Result<Conduct, Refusal> {
        Ok(match plain(&self.conduct).as_str() {
            "usual" => Conduct::Usual,
            "refuse" => Conduct::Refuse,
            "closed" => Conduct::Closed,
            "hang" => Conduct::Hang,
            "slow" => Conduct::Slow(milliseconds(self.ms, "ms")?),
            "goaway" => Conduct::GoAway(milliseconds(self.every_ms, "everyMs")?),
            "streams" => {
                Conduct::Streams(self.streams.filter(|streams| *streams > 0).ok_or_else(|| {
                    (400, "\"streams\" needs the number of \"streams\", from 1.".to_owned())
                })?)
            }
            "failing" => {
                let answer = match self.answer {
                    Some(Value::String(name)) => json!({"answer": name}),
                    Some(answer) => answer,
                    None => return Err((400, "\"failing\" needs an \"answer\".".to_owned())),
                };
                let asked = read::<AskedAnswer>(answer.to_string().as_bytes())?;
                if asked.times.is_some() {
                    return Err((400, "A provider's answer has no \"times\".".to_owned()));
                }
                Conduct::Failing(asked.into_answer(provider)?.0)
            }
            _ => {
                return Err((
                    400,
                    format!(
                        "There is no conduct \"{}\". There are: usual, refuse, closed, hang, slow, goaway, streams, failing.",
                        self.conduct
                    ),
                ));
            }
        })
    }
}

fn milliseconds(value: Option<u64>, name: &str) -> Result<Duration, Refusal> {
    let sentence = || (400, format!("\"{name}\" is needed: how many milliseconds."));
    value.map(Duration::from_millis).ok_or_else(sentence)
}
