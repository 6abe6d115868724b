//! Google's OAuth2.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use naru_phones::{Answer, Provider, TOKEN_ENDPOINT};
use serde_json::{Value, json};

use crate::fixture::{FCM_TOKEN, Fixture, in_time, notification, now};

const GRANT: (&str, &str) = ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer");

async fn error(fixture: &Fixture, fields: &[(&str, &str)]) -> (String, String) {
    let answered = fixture.exchange(fields).await;
    assert_eq!(answered.status, 400, "{}", answered.text);
    let json = answered.json();
    let text = |name: &str| json[name].as_str().expect("text").to_owned();
    (text("error"), text("error_description"))
}

#[tokio::test]
async fn an_assertion_becomes_a_token_that_sends() {
    let fixture = Fixture::new().await;
    let assertion = fixture.assertion(&fixture.claims());
    let answered = fixture.exchange(&[GRANT, ("assertion", &assertion)]).await;
    let json = answered.json();
    assert_eq!((answered.status, &json["expires_in"]), (200, &json!(3_599)));
    assert_eq!(json["token_type"], "Bearer");
    let bearer = json["access_token"].as_str().expect("a token");
    let sent = in_time(fixture.send_request(bearer, &json!({"message": notification(FCM_TOKEN)}))).await;
    assert_eq!(sent.expect("an answer").status, 200);
    let counts = fixture.handle.counts(Provider::Fcm);
    assert_eq!((counts.oauth_tokens_issued, counts.jwts_seen, counts.taken), (1, 1, 1));
}

#[tokio::test]
async fn what_is_wrong_with_a_form_is_said() {
    let fixture = Fixture::new().await;
    assert_eq!(error(&fixture, &[]).await.0, "invalid_request");
    assert_eq!(error(&fixture, &[GRANT]).await.0, "invalid_request");
    let password = [("grant_type", "password"), ("assertion", "a.b.c")];
    assert_eq!(error(&fixture, &password).await.0, "unsupported_grant_type");
    assert_eq!(error(&fixture, &[GRANT, ("assertion", "a.b.c")]).await.0, "invalid_grant");
}

#[tokio::test]
async fn what_is_wrong_with_an_assertion_is_said() {
    let fixture = Fixture::new().await;
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut claims = fixture.claims();
        change(&mut claims);
        fixture.assertion(&claims)
    };
    let short_lived = "Invalid JWT: Token must be a short-lived token (60 minutes)";
    let cases: [(String, &str, &str); 8] = [
        (
            changed(&|claims| claims["iss"] = "other".into()),
            "invalid_grant",
            "Invalid grant: account not found",
        ),
        (
            changed(&|claims| claims["aud"] = "https://oauth2.googleapis.com/token".into()),
            "invalid_grant",
            "Invalid JWT: Failed audience check.",
        ),
        (changed(&|claims| claims["exp"] = (now() + 3_700).into()), "invalid_grant", short_lived),
        (changed(&|claims| claims["iat"] = (now() + 600).into()), "invalid_grant", short_lived),
        (changed(&|claims| claims["iat"] = Value::Null), "invalid_grant", short_lived),
        (
            changed(&|claims| {
                claims["iat"] = (now() - 3_600).into();
                claims["exp"] = now().into();
            }),
            "invalid_grant",
            short_lived,
        ),
        (changed(&|claims| claims["scope"] = Value::Null), "invalid_scope", "Invalid OAuth scope"),
        (changed(&|claims| claims["scope"] = "email openid".into()), "invalid_scope", "Invalid OAuth scope"),
    ];
    for (assertion, wanted, description) in cases {
        let (error, text) = error(&fixture, &[GRANT, ("assertion", &assertion)]).await;
        assert_eq!(error, wanted, "{text}");
        assert!(text.starts_with(description), "{text}");
    }
    assert_eq!(fixture.handle.counts(Provider::Fcm).oauth_tokens_issued, 0);
}

#[tokio::test]
async fn another_key_signs_in_vain() {
    let fixture = Fixture::new().await;
    let other = Fixture::with_new_keys().await;
    // The other's key, under this one's name.
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some(fixture.account["private_key_id"].as_str().expect("a key").to_owned());
    let key = other.account["private_key"].as_str().expect("a key");
    let key = EncodingKey::from_rsa_pem(key.as_bytes()).expect("a key");
    let forged = encode(&header, &fixture.claims(), &key).expect("a JWT");
    // This one's key, under another name, and under none.
    let key = fixture.account["private_key"].as_str().expect("a key");
    let key = EncodingKey::from_rsa_pem(key.as_bytes()).expect("a key");
    header.kid = Some("another".to_owned());
    let misnamed = encode(&header, &fixture.claims(), &key).expect("a JWT");
    header.kid = None;
    let unnamed = encode(&header, &fixture.claims(), &key).expect("a JWT");
    for assertion in [forged, misnamed, unnamed] {
        let refused = ("invalid_grant".to_owned(), "Invalid JWT Signature.".to_owned());
        assert_eq!(error(&fixture, &[GRANT, ("assertion", &assertion)]).await, refused);
    }
}

#[tokio::test]
async fn access_tokens_that_do_not_count_are_refused() {
    let fixture = Fixture::new().await;
    let body = json!({"message": notification(FCM_TOKEN)});
    let refused = (401, "UNAUTHENTICATED".to_owned(), String::new());
    let forged = in_time(fixture.send_request("ya29.forged", &body)).await.expect("an answer");
    assert_eq!(forged.error(), refused);
    let url = format!("{}/v1/projects/naru-demo/messages:send", fixture.phones.fcm_url());
    let without = in_time(fixture.client.post(url).json(&body)).await.expect("an answer");
    assert_eq!(without.error(), refused);
    assert_eq!(fixture.handle.taken(), 0);
}

#[tokio::test]
async fn the_endpoint_answers_on_demand_too() {
    let fixture = Fixture::new().await;
    fixture.handle.answer_once(TOKEN_ENDPOINT, [Answer::raw(503, "")]);
    let assertion = fixture.assertion(&fixture.claims());
    let answered = fixture.exchange(&[GRANT, ("assertion", &assertion)]).await;
    assert_eq!(answered.status, 503);
    assert_eq!(fixture.exchange(&[GRANT, ("assertion", &assertion)]).await.status, 200);
}
