//! The HTTP API, as an app or its backend calls it.

use reqwest::Method;
use serde_json::{Value, json};

use crate::TEST_TIMEOUT;

/// A caller of the HTTP API with one token.
#[derive(Debug, Clone)]
pub struct Http {
    base_url: String,
    token: Option<String>,
    client: reqwest::Client,
}

impl Http {
    /// Calls the server at `base_url` (`http://host:port`) with `Authorization: Bearer <token>`.
    pub fn new(base_url: &str, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..Self::without_token(base_url) }
    }

    /// Calls it without a token.
    pub fn without_token(base_url: &str) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(TEST_TIMEOUT).build();
        Self {
            base_url: base_url.trim_end_matches('/').to_owned(),
            token: None,
            client: client.expect("a client without options"),
        }
    }

    /// The same caller with another token, sharing the connections.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// `GET`: the status, and the body as [`Http::request`] gives it.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.must(Method::GET, path, None).await
    }

    /// `POST` with a JSON body.
    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.must(Method::POST, path, Some(body)).await
    }

    /// `PUT` with a JSON body.
    pub async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        self.must(Method::PUT, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.must(Method::DELETE, path, None).await
    }

    /// Any call: the status, and the body as JSON, as a JSON string where it is not JSON, `null` where it is empty.
    /// Errors when no complete answer came.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> reqwest::Result<(u16, Value)> {
        let mut request = self.client.request(method, format!("{}{path}", self.base_url));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        let body = match text.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        };
        Ok((status, body))
    }

    /// Creates the room of these members, or finds their direct room; returns its id.
    pub async fn create_room(&self, members: &[&str]) -> String {
        let (status, room) = self.post("/api/rooms", json!({"memberIds": members})).await;
        assert!(matches!(status, 200 | 201), "a room of {members:?} was refused with {status}: {room}");
        room["id"].as_str().expect("a room has an id").to_owned()
    }

    /// Sends a message: 200 and the fields of an `ACK`, or the refusal.
    pub async fn send(&self, room: &str, content: &str, client_message_id: &str) -> (u16, Value) {
        let body = json!({"content": content, "clientMessageId": client_message_id});
        self.post(&format!("/api/rooms/{room}/messages"), body).await
    }

    /// The room's messages, page by page until there are no more. `query` is that of the first page: newest first
    /// (`""`, `"limit=7"`, `"beforeSeq=9"`), or oldest first with `afterSeq` (`"afterSeq=0&limit=7"`).
    pub async fn history(&self, room: &str, query: &str) -> Vec<Value> {
        let cursor = if query.contains("afterSeq=") { "afterSeq" } else { "beforeSeq" };
        let others = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with(cursor));
        let others: String = others.map(|pair| format!("&{pair}")).collect();
        let mut page_query = query.to_owned();
        let mut messages = Vec::new();
        loop {
            let (status, mut page) = self.get(&format!("/api/rooms/{room}/messages?{page_query}")).await;
            assert_eq!(status, 200, "the history of {room} was refused: {page}");
            let Value::Array(page_messages) = page["messages"].take() else {
                panic!("a history page without messages: {page}");
            };
            let last = page_messages.last().map(|message| message["seq"].clone());
            messages.extend(page_messages);
            if page["hasMore"] != true {
                return messages;
            }
            let last = last.expect("an empty page does not promise more");
            page_query = format!("{cursor}={last}{others}");
        }
    }

    async fn must(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let what = format!("{method} {path}");
        self.request(method, path, body)
            .await
            .unwrap_or_else(|error| panic!("{what} got no answer: {error:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answer, Webhook};

    fn page(seqs: &[u64], has_more: bool) -> Answer {
        let messages: Vec<Value> = seqs.iter().map(|seq| json!({"seq": seq})).collect();
        Answer::body(200, &json!({"messages": messages, "hasMore": has_more}).to_string())
    }

    #[tokio::test]
    async fn history_reads_every_page_in_its_direction() {
        for (query, pages, next_query) in [
            ("limit=2", [[3, 2], [1, 0]], "beforeSeq=2&limit=2"),
            ("afterSeq=0&limit=2", [[1, 2], [3, 4]], "afterSeq=2&limit=2"),
        ] {
            let mut server = Webhook::start().await;
            server.script([page(&pages[0], true), page(&pages[1], false)]);
            let messages = Http::new(&server.url(""), "token").history("A_B", query).await;
            let seqs: Vec<_> = messages.iter().map(|message| message["seq"].as_u64()).collect();
            assert_eq!(seqs, pages.concat().into_iter().map(Some).collect::<Vec<_>>());
            let first = server.next().await;
            assert_eq!(first.path, format!("/api/rooms/A_B/messages?{query}"));
            assert_eq!(first.header("authorization"), "Bearer token");
            assert_eq!(server.next().await.path, format!("/api/rooms/A_B/messages?{next_query}"));
        }
    }

    #[tokio::test]
    async fn bodies_may_be_json_or_text_or_nothing() {
        let server = Webhook::start().await;
        server.script([Answer::body(200, "[1]"), Answer::body(200, "up 1"), Answer::status(204)]);
        let http = Http::without_token(&server.url(""));
        assert_eq!(http.get("/").await, (200, json!([1])));
        assert_eq!(http.get("/metrics").await, (200, "up 1".into()));
        assert_eq!(http.delete("/").await, (204, Value::Null));
    }
}
