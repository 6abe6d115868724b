//! A client of a running Naru's HTTP API.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use naru_model::EventId;
use reqwest::{Method, StatusCode, redirect};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How long one answer may take: a request takes milliseconds, and longer only where a service is down.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How many pushes are requested at a time: the API's maximum.
const PAGE: usize = 200;

/// The address of a running Naru, and a token for it.
pub(super) struct Remote {
    url: String,
    token: String,
    client: reqwest::Client,
}

/// A page of the list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Page {
    pub(super) parked: Vec<Value>,
    pub(super) next_cursor: Option<String>,
}

/// A refusal by Naru, as its API words it.
#[derive(Serialize, Deserialize)]
pub(super) struct Refused {
    code: String,
    message: String,
}

impl Refused {
    /// The refusal as an error about one push.
    pub(super) fn about(&self, id: EventId) -> anyhow::Error {
        match self.code.as_str() {
            "NOT_FOUND" => anyhow!("{id}: no such push is parked"),
            code => anyhow!("{id}: {} ({code})", self.message),
        }
    }
}

type Answer<T> = anyhow::Result<Result<T, Refused>>;

impl Remote {
    /// # Errors
    /// When `url` is not an HTTP URL.
    pub(super) fn new(url: &str, token: String) -> anyhow::Result<Self> {
        if !url.starts_with("http://") && !url.starts_with("https://") {
            bail!("--url {url:?} is no http:// or https:// URL");
        }
        // The token goes to the named address only.
        let client = reqwest::Client::builder()
            .user_agent(concat!("naru/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .no_proxy()
            .timeout(CALL_TIMEOUT)
            .build()
            .context("no HTTP client can be made")?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), token, client })
    }

    /// The page of the list at a cursor.
    pub(super) async fn page(&self, cursor: Option<&str>) -> anyhow::Result<Page> {
        let cursor = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let page = self.ask(Method::GET, &format!("?limit={PAGE}{cursor}")).await?;
        page.map_err(|Refused { code, message }| anyhow!("{} answers: {message} ({code})", self.url))
    }

    pub(super) async fn show(&self, id: EventId) -> Answer<Value> {
        self.ask(Method::GET, &format!("/{id}")).await
    }

    pub(super) async fn replay(&self, id: EventId) -> Answer<Value> {
        self.ask(Method::POST, &format!("/{id}/replay")).await
    }

    pub(super) async fn drop(&self, id: EventId) -> Answer<Value> {
        self.ask(Method::DELETE, &format!("/{id}")).await
    }

    /// # Errors
    /// When there is no answer, the answer is not Naru's, or the token is refused, so that further requests would fail, too.
    async fn ask<T: DeserializeOwned>(&self, method: Method, below: &str) -> Answer<T> {
        let url = &self.url;
        let request =
            self.client.request(method, format!("{url}/api/parked{below}")).bearer_auth(&self.token);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => {
                let error = error.without_url();
                return Err(anyhow::Error::new(error)
                    .context(format!("nothing answers at {url}: does Naru run there? (--url says where)")));
            }
            Err(error) => {
                return Err(anyhow::Error::new(error.without_url()).context(format!("no answer from {url}")));
            }
        };
        let status = answer.status();
        let text = answer.text().await.with_context(|| format!("no whole answer from {url}"))?;
        let refused = || serde_json::from_str::<Refused>(&text).ok();
        match (status, refused()) {
            (StatusCode::UNAUTHORIZED, Some(_)) => {
                bail!(
                    "{url} does not know the token: it is signed with another secret, or has expired (--token)"
                )
            }
            (StatusCode::FORBIDDEN, Some(_)) => {
                bail!("{url} shows what is parked to a token with scope service only (--token)")
            }
            (_, Some(refused)) if !status.is_success() => Ok(Err(refused)),
            _ if status.is_success() => {
                let text = if text.is_empty() { "null" } else { &text };
                let unreadable = || format!("{url} answers {status}, but not as Naru does");
                serde_json::from_str(text).map(Ok).with_context(unreadable)
            }
            _ => bail!("{url} answers {status}, but not as Naru does"),
        }
    }
}
