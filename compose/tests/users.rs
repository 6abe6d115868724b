//! Sessions and tokens that the app's backend ends, users who block others, and rooms that only the backend makes.

use naru_client::{Claims, Client, Http, token};
use naru_model::Timestamp;
use serde_json::{Value, json};

use crate::support::{Naru, SECRET, token_of};

/// The app's backend.
fn backend(url: &str) -> Http {
    Http::new(url, &token(SECRET.as_bytes(), &Claims::user("backend").service()))
}

/// A token of A that was made at this second.
fn token_made_at(second: i64) -> String {
    token(SECRET.as_bytes(), &Claims::user("A").with("iat", second))
}

/// Ends the sessions of A, each of which is connected through another gateway, and the tokens of before.
pub async fn sessions_end_everywhere_and_tokens_with_them(gateways: [&str; 2]) {
    let now = Timestamp::now().as_millis() / 1000;
    let (old, new) = (token_made_at(now), token_made_at(now + 1));
    let mut phones = Vec::new();
    for url in gateways {
        let mut phone = Client::connect(url, &old).await.expect("a welcome");
        phone.welcome().await;
        phones.push(phone);
    }
    let mut ben = Client::connect(gateways[1], &token_of("B")).await.expect("a welcome");
    ben.welcome().await;

    assert_eq!(backend(gateways[0]).delete("/api/users/A/sessions").await.0, 204);
    for phone in &mut phones {
        assert_eq!(phone.closed().await.0, 4401);
    }
    // Only sessions were ended: the token is good for new ones.
    let mut phone = Client::connect(gateways[1], &old).await.expect("a welcome");
    phone.welcome().await;

    let not_before = Timestamp::from_millis((now + 1) * 1000);
    let path = format!("/api/users/A/sessions?notBefore={not_before}");
    assert_eq!(backend(gateways[0]).delete(&path).await.0, 204);
    assert_eq!(phone.closed().await.0, 4401);
    for url in gateways {
        for refused in [&old, &token_of("A")] {
            let (status, body) = Http::new(url, refused).get("/api/rooms").await;
            assert_eq!((status, &body["code"]), (401, &json!("UNAUTHENTICATED")), "{body}");
            let refused = Client::connect(url, refused).await.expect_err("an old token");
            assert_eq!(refused.status(), Some(401));
        }
        assert_eq!(Http::new(url, &new).get("/api/rooms").await.0, 200);
        Client::connect(url, &new).await.expect("a welcome").welcome().await;
    }
    ben.until_pong().await;
}

#[tokio::test]
async fn a_service_ends_a_users_sessions_and_tokens() {
    let naru = Naru::start(&[]).await;
    let mut phone = naru.phone("A").await;
    for caller in ["A", "B"] {
        let (status, body) = naru.http(caller).delete("/api/users/A/sessions").await;
        assert_eq!((status, &body["code"]), (403, &json!("FORBIDDEN")));
    }
    let (status, _) = backend(&naru.url).delete("/api/users/A/sessions?notBefore=yesterday").await;
    assert_eq!(status, 400);
    phone.until_pong().await;
    sessions_end_everywhere_and_tokens_with_them([&naru.url, &naru.url]).await;
    assert_eq!(phone.closed().await.0, 4401);
    naru.stop().await;
}

/// The code of an answer, after its status.
fn coded((status, body): (u16, Value)) -> (u16, String) {
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_blocked_user_reaches_the_one_who_blocked_in_no_new_way() {
    let naru = Naru::start(&[]).await;
    let (ada, ben, forbidden) = (naru.http("A"), naru.http("B"), (403, "FORBIDDEN".to_owned()));
    let shared = ben.create_room(&["A", "B", "C"]).await;
    let other = ben.create_room(&["B", "C", "D"]).await;
    let (mut phone_of_ada, mut phone_of_ben) = (naru.phone("A").await, naru.phone("B").await);
    let mut phone_of_cleo = naru.phone("C").await;

    for _ in 0..2 {
        assert_eq!(ada.put("/api/blocks/B", Value::Null).await, (204, Value::Null));
        assert_eq!(ada.get("/api/blocks").await, (200, json!({"blocks": [{"userId": "B"}]})));
    }
    assert_eq!(ben.get("/api/blocks").await, (200, json!({"blocks": []})));
    assert_eq!(ada.put("/api/blocks/A", Value::Null).await.0, 400);
    let make = |members: Value| json!({"memberIds": members});
    for members in [json!(["A", "B"]), json!(["A", "B", "D"])] {
        assert_eq!(coded(ben.post("/api/rooms", make(members)).await), forbidden);
    }
    let into = format!("/api/rooms/{other}/members");
    assert_eq!(coded(ben.post(&into, json!({"userId": "A"})).await), forbidden);
    assert_eq!(ben.get("/api/presence?userIds=A,C").await.1.as_array().map(Vec::len), Some(1));
    phone_of_ben.send_json(&json!({"type": "TYPING", "chatRoomId": shared})).await;
    phone_of_cleo.expect("TYPING").await;
    phone_of_ada.quiet("TYPING").await;

    // Others and the one who blocked are not hindered, and neither is the backend.
    assert_eq!(naru.http("C").post(&into, json!({"userId": "A"})).await.0, 200);
    assert_eq!(ada.get("/api/presence?userIds=B").await.1.as_array().map(Vec::len), Some(1));
    let direct = ada.create_room(&["A", "B"]).await;
    let (status, room) = ben.post("/api/rooms", make(json!(["A", "B"]))).await;
    assert_eq!((status, &room["id"]), (200, &json!(direct)), "it is there: none is made");
    assert_eq!(backend(&naru.url).post("/api/rooms", make(json!(["A", "B", "E"]))).await.0, 201);

    for _ in 0..2 {
        assert_eq!(ada.delete("/api/blocks/B").await.0, 204);
    }
    assert_eq!(ben.post("/api/rooms", make(json!(["A", "B", "D"]))).await.0, 201);
    phone_of_ben.send_json(&json!({"type": "TYPING", "chatRoomId": shared})).await;
    phone_of_ada.expect("TYPING").await;
    naru.stop().await;
}

#[tokio::test]
async fn a_block_list_has_an_end() {
    let naru = Naru::start(&[]).await;
    let ada = naru.http("A");
    for number in 0..1_000 {
        assert_eq!(ada.put(&format!("/api/blocks/user-{number}"), Value::Null).await.0, 204);
    }
    assert_eq!(coded(ada.put("/api/blocks/B", Value::Null).await), (409, "CONFLICT".to_owned()));
    assert_eq!(ada.put("/api/blocks/user-7", Value::Null).await.0, 204, "it is on it");
    naru.stop().await;
}

#[tokio::test]
async fn where_it_is_configured_only_the_backend_makes_rooms_and_adds_members() {
    let naru = Naru::start(&["--room-creation", "service"]).await;
    let (ada, backend, forbidden) = (naru.http("A"), backend(&naru.url), (403, "FORBIDDEN".to_owned()));
    let make = |members: Value| json!({"memberIds": members});
    for members in [json!(["A", "B"]), json!(["A", "B", "C"])] {
        assert_eq!(coded(ada.post("/api/rooms", make(members.clone())).await), forbidden);
        assert_eq!(backend.post("/api/rooms", make(members)).await.0, 201);
    }
    assert_eq!(ada.post("/api/rooms", make(json!(["A", "B"]))).await.0, 200, "it is there: none is made");
    let (_, list) = ada.get("/api/rooms").await;
    let rooms = list["rooms"].as_array().expect("rooms").iter();
    let group =
        rooms.map(|room| room["id"].as_str().expect("an id")).find(|id| *id != "A_B").expect("the group");
    let into = format!("/api/rooms/{group}/members");
    assert_eq!(coded(ada.post(&into, json!({"userId": "D"})).await), forbidden);
    assert_eq!(backend.post(&into, json!({"userId": "D"})).await.0, 200);
    assert_eq!(ada.delete(&format!("{into}/A")).await.0, 204, "leaving is free");
    naru.stop().await;
}
