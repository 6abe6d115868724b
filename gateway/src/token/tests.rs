use std::path::Path;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use jsonwebtoken::jwk::{Jwk, JwkSet, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{EncodingKey, Header};
use naru_client::{Answer, Webhook};
use serde_json::{Value, json};

use super::key_set::{FAILURE_GAP, REFRESH_GAP};
use super::*;

const SECRET: &str = "a secret of thirty-two bytes, ok";

/// A signer and its public key as PEM.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    public: String,
}

impl Signer {
    fn new(algorithm: Algorithm) -> Self {
        let pem = |tag: &str, der: &[u8]| pem::encode(&pem::Pem::new(tag, der));
        let (private, public) = match algorithm {
            Algorithm::EdDSA => {
                let pair = Ed25519KeyPair::generate().unwrap();
                let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
                (pair.to_pkcs8v1().unwrap().as_ref().to_vec(), public.as_ref().to_vec())
            }
            Algorithm::ES256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
                let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
                (pair.to_pkcs8v1().unwrap().as_ref().to_vec(), public.as_ref().to_vec())
            }
            _ => {
                let pair = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
                let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
                let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
                (private.as_ref().to_vec(), public.as_ref().to_vec())
            }
        };
        let private = pem("PRIVATE KEY", &private);
        let key = match algorithm {
            Algorithm::EdDSA => EncodingKey::from_ed_pem(private.as_bytes()),
            Algorithm::ES256 => EncodingKey::from_ec_pem(private.as_bytes()),
            _ => EncodingKey::from_rsa_pem(private.as_bytes()),
        };
        Self { algorithm, key: key.unwrap(), public: pem("PUBLIC KEY", &public) }
    }

    fn token(&self, kid: Option<&str>) -> String {
        self.sign(&Header { kid: kid.map(str::to_owned), ..Header::new(self.algorithm) }, json!({}))
    }

    /// A token for a minute, with these claims besides.
    fn sign(&self, header: &Header, claims: Value) -> String {
        let mut all = json!({ "sub": "ada", "exp": Timestamp::now().as_millis() / 1000 + 60 });
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        jsonwebtoken::encode(header, &all, &self.key).unwrap()
    }

    fn jwk(&self, kid: &str) -> Jwk {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(kid.to_owned());
        jwk
    }
}

fn config() -> TokenConfig {
    TokenConfig {
        jwt_secret: None,
        jwt_algorithm: None,
        jwt_public_key_file: None,
        jwt_jwks_file: None,
        jwt_jwks_url: None,
        jwt_jwks_refresh: Span(Duration::from_secs(300)),
        jwt_jwks_max_age: Span(Duration::from_secs(3600)),
        jwt_issuer: None,
        jwt_audience: None,
        jwt_leeway: Span(Duration::ZERO),
        extra_ca_file: None,
    }
}

fn file(dir: &Path, content: &str) -> Option<PathBuf> {
    let path = dir.join(format!("{:p}-{}", content, content.len()));
    std::fs::write(&path, content).unwrap();
    Some(path)
}

const PUBLIC: [Algorithm; 3] = [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256];

#[tokio::test]
async fn a_public_key_takes_the_tokens_of_its_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    for algorithm in PUBLIC {
        let (owner, other) = (Signer::new(algorithm), Signer::new(algorithm));
        let config = TokenConfig { jwt_public_key_file: file(dir.path(), &owner.public), ..config() };
        let verifier = Verifier::new(&config).unwrap();
        assert_eq!(verifier.verify(&owner.token(None)).await.unwrap().user.as_str(), "ada");
        assert!(verifier.verify(&other.token(None)).await.is_err(), "{algorithm:?}");

        // A common attack: the public key as an HS256 secret.
        let forged = Signer {
            algorithm: Algorithm::HS256,
            key: EncodingKey::from_secret(owner.public.as_bytes()),
            public: String::new(),
        };
        assert!(verifier.verify(&forged.token(None)).await.is_err(), "{algorithm:?}");

        let mismatched = PUBLIC.into_iter().find(|other| *other != algorithm);
        let refused = Verifier::new(&TokenConfig { jwt_algorithm: mismatched, ..config });
        assert!(matches!(refused, Err(TokenConfigError::NoUsableKey { .. })), "{algorithm:?}");
    }
}

#[tokio::test]
async fn a_key_set_is_searched_by_kid() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (Signer::new(Algorithm::EdDSA), Signer::new(Algorithm::EdDSA));
    let set = serde_json::to_string(&JwkSet { keys: vec![one.jwk("one"), two.jwk("two")] }).unwrap();
    let config = TokenConfig { jwt_jwks_file: file(dir.path(), &set), ..config() };
    let verifier = Verifier::new(&config).unwrap();
    for token in [one.token(Some("one")), two.token(Some("two")), two.token(None)] {
        verifier.verify(&token).await.unwrap();
    }
    assert!(verifier.verify(&one.token(Some("two"))).await.is_err());
    assert!(verifier.verify(&one.token(Some("three"))).await.is_err());
}

fn hs256(secret: &str) -> Signer {
    let key = EncodingKey::from_secret(secret.as_bytes());
    Signer { algorithm: Algorithm::HS256, key, public: String::new() }
}

fn shared_secret() -> TokenConfig {
    TokenConfig { jwt_secret: Some(SECRET.to_owned().into()), ..config() }
}

fn set_of(keys: Vec<Jwk>) -> Answer {
    Answer::body(200, &serde_json::to_string(&JwkSet { keys }).unwrap())
}

/// A verifier of the set at this path, which fetches it.
fn at_url(server: &Webhook, change: impl FnOnce(&mut TokenConfig)) -> Arc<Verifier> {
    let mut config = TokenConfig { jwt_jwks_url: Some(server.url("/jwks")), ..config() };
    change(&mut config);
    let verifier = Arc::new(Verifier::new(&config).unwrap());
    let running = verifier.clone();
    tokio::spawn(async move { running.run().await });
    verifier
}

/// Lets this much time pass at once.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

async fn refused(verifier: &Verifier, token: &str) -> &'static str {
    match verifier.verify(token).await {
        Err(Refusal::Unauthenticated(reason)) => reason,
        other => panic!("wanted a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn a_key_set_at_a_url_is_asked_for_again_when_its_keys_rotate() {
    let (old, new) = (Signer::new(Algorithm::EdDSA), Signer::new(Algorithm::ES256));
    let server = Webhook::start().await;
    server.script([set_of(vec![old.jwk("old")]), set_of(vec![new.jwk("new")])]);
    let verifier = at_url(&server, |_| {});
    verifier.verify(&old.token(Some("old"))).await.unwrap();
    refused(&verifier, &new.token(Some("new"))).await; // Fetched twice within ten seconds: it is not.
    pass(REFRESH_GAP).await;
    verifier.verify(&new.token(Some("new"))).await.unwrap();
    refused(&verifier, &old.token(Some("old"))).await;
}

#[tokio::test]
async fn a_failed_signature_has_the_key_set_fetched_again() {
    let (old, new) = (Signer::new(Algorithm::RS256), Signer::new(Algorithm::RS256));
    let server = Webhook::start().await;
    server.script([set_of(vec![old.jwk("same")]), set_of(vec![new.jwk("same")])]);
    let verifier = at_url(&server, |_| {});
    verifier.verify(&old.token(Some("same"))).await.unwrap();
    pass(REFRESH_GAP).await;
    verifier.verify(&new.token(Some("same"))).await.unwrap();
}

#[tokio::test]
async fn a_removed_key_is_refused_after_the_refresh_without_any_other_token() {
    let key = Signer::new(Algorithm::EdDSA);
    let mut server = Webhook::start().await;
    server.script([set_of(vec![key.jwk("a")]), set_of(Vec::new())]);
    let verifier = at_url(&server, |config| config.jwt_jwks_refresh = Span(REFRESH_GAP));
    verifier.verify(&key.token(Some("a"))).await.unwrap();
    server.next().await;
    server.none_waiting();
    pass(REFRESH_GAP).await;
    server.next().await;
    while verifier.check().is_ok() {
        tokio::task::yield_now().await;
    }
    refused(&verifier, &key.token(Some("a"))).await;
    assert_eq!(verifier.check(), Err("the key set for tokens holds no key that can be used"));
}

#[tokio::test]
async fn made_up_tokens_cause_one_fetch_and_those_of_other_algorithms_none() {
    let (key, stranger) = (Signer::new(Algorithm::EdDSA), Signer::new(Algorithm::EdDSA));
    let mut server = Webhook::start().await;
    server.script([set_of(vec![key.jwk("a")]), set_of(vec![key.jwk("a")])]);
    let verifier = at_url(&server, |_| {});
    verifier.verify(&key.token(Some("a"))).await.unwrap();
    server.next().await;
    pass(REFRESH_GAP).await;
    refused(&verifier, &hs256(SECRET).token(Some("b"))).await;
    server.none_waiting();
    let tokens: Vec<_> = (0..50).map(|kid| stranger.token(Some(&kid.to_string()))).collect();
    let all = tokens.iter().map(|token| verifier.verify(token));
    assert!(futures_util::future::join_all(all).await.iter().all(Result::is_err));
    server.next().await;
    server.none_waiting();
}

#[tokio::test]
async fn without_a_key_set_tokens_are_unavailable_and_so_are_those_with_new_keys() {
    let (key, new) = (Signer::new(Algorithm::EdDSA), Signer::new(Algorithm::EdDSA));
    let server = Webhook::start().await;
    server.script([Answer::status(500), set_of(vec![key.jwk("a")]), Answer::status(500)]);
    let verifier = at_url(&server, |_| {});
    assert!(verifier.check().is_err());
    assert_eq!(verifier.verify(&key.token(Some("a"))).await, Err(Refusal::Unavailable));
    assert!(verifier.degradation().unwrap().contains("500"), "{:?}", verifier.degradation());
    // An outage that is over is noticed at the next token.
    pass(FAILURE_GAP).await;
    verifier.verify(&key.token(Some("a"))).await.unwrap();
    assert_eq!((verifier.check(), verifier.degradation()), (Ok(()), None));
    // The next outage: what is known counts on, what is not can't be judged.
    pass(REFRESH_GAP).await;
    assert_eq!(verifier.verify(&new.token(Some("b"))).await, Err(Refusal::Unavailable));
    verifier.verify(&key.token(Some("a"))).await.unwrap();
    assert_eq!(verifier.check(), Ok(()));
    assert!(verifier.degradation().is_some());
}

#[tokio::test]
async fn keys_count_no_longer_than_their_age_allows() {
    let key = Signer::new(Algorithm::EdDSA);
    let server = Webhook::start().await;
    server.script([set_of(vec![key.jwk("a")])]);
    let verifier = at_url(&server, |config| {
        config.jwt_jwks_refresh = Span(Duration::from_secs(30));
        config.jwt_jwks_max_age = Span(Duration::from_secs(30));
    });
    verifier.verify(&key.token(Some("a"))).await.unwrap();
    server.stop().await;
    pass(Duration::from_secs(31)).await;
    assert_eq!(verifier.verify(&key.token(Some("a"))).await, Err(Refusal::Unavailable));
    assert!(verifier.check().is_err());
}

#[tokio::test]
async fn a_key_set_of_another_host_or_beyond_measure_is_not_taken() {
    let (good, evil) = (Signer::new(Algorithm::EdDSA), Signer::new(Algorithm::EdDSA));
    let redirect = |to: &str| {
        let answer = http::Response::builder().status(302).header("location", to);
        Answer::Response(answer.body(bytes::Bytes::new()).unwrap())
    };
    let elsewhere = Webhook::start().await;
    elsewhere.script([set_of(vec![evil.jwk("a")])]);
    let many = set_of((0..101).map(|kid| evil.jwk(&kid.to_string())).collect());
    let long = Answer::body(200, &format!(r#"{{"pad":"{}","keys":[]}}"#, "x".repeat(256 * 1024)));
    for (what, bad) in [
        ("redirects to another host", redirect(&elsewhere.url("/jwks"))),
        ("holds more than 100 keys", many),
        ("longer than 262144 bytes", long),
        ("not a JSON Web Key Set", Answer::body(200, "<html>")),
    ] {
        let server = Webhook::start().await;
        server.script([bad, redirect("/other"), set_of(vec![good.jwk("a")])]);
        let verifier = at_url(&server, |_| {});
        assert_eq!(verifier.verify(&evil.token(Some("a"))).await, Err(Refusal::Unavailable), "{what}");
        let degradation = verifier.degradation().unwrap();
        assert!(degradation.contains(what), "{degradation}");
        // A redirect within the host is followed.
        pass(FAILURE_GAP).await;
        verifier.verify(&good.token(Some("a"))).await.unwrap();
    }
}

#[tokio::test]
async fn a_key_of_a_set_is_used_for_what_it_is_for() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::new(Algorithm::RS256);
    let changed = |change: &dyn Fn(&mut Jwk)| {
        let mut jwk = signer.jwk("a");
        change(&mut jwk);
        let other = json!({ "kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA" });
        let set = json!({ "keys": [other, jwk, Signer::new(Algorithm::EdDSA).jwk("b")] }).to_string();
        Verifier::new(&TokenConfig { jwt_jwks_file: file(dir.path(), &set), ..config() }).unwrap()
    };
    let token = signer.token(Some("a"));
    for good in [
        changed(&|jwk| jwk.common.public_key_use = Some(PublicKeyUse::Signature)),
        changed(&|jwk| jwk.common.key_operations = Some(vec![KeyOperations::Verify])),
        changed(&|jwk| jwk.common.key_algorithm = None),
    ] {
        good.verify(&token).await.unwrap();
    }
    for bad in [
        changed(&|jwk| jwk.common.public_key_use = Some(PublicKeyUse::Encryption)),
        changed(&|jwk| jwk.common.key_operations = Some(vec![KeyOperations::Encrypt])),
        changed(&|jwk| jwk.common.key_algorithm = Some(KeyAlgorithm::RSA_OAEP)),
        changed(&|jwk| jwk.common.key_algorithm = Some(KeyAlgorithm::PS256)),
        changed(&|jwk| jwk.common.key_algorithm = Some(KeyAlgorithm::HS256)),
    ] {
        refused(&bad, &token).await;
    }
    let only = json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0" }] }).to_string();
    let error = Verifier::new(&TokenConfig { jwt_jwks_file: file(dir.path(), &only), ..config() }).err();
    let error = error.unwrap().to_string();
    assert!(error.ends_with("its type is none of EC, RSA and OKP"), "{error}");
}

#[tokio::test]
async fn an_extension_that_must_be_understood_is_refused() {
    let (signer, verifier) = (hs256(SECRET), Verifier::new(&shared_secret()).unwrap());
    verifier.verify(&signer.token(None)).await.unwrap();
    let crit = |names: &[&str]| {
        let crit = Some(names.iter().map(|name| (*name).to_owned()).collect());
        signer.sign(&Header { crit, ..Header::new(Algorithm::HS256) }, json!({}))
    };
    for token in [crit(&["b64"]), crit(&["http://example.com/UNDEFINED"]), crit(&[])] {
        assert!(refused(&verifier, &token).await.contains("crit"));
    }
}

#[tokio::test]
async fn issuer_and_audience_are_those_of_the_configuration() {
    let (signer, text) = (hs256(SECRET), |text: &str| Some(text.to_owned()));
    let config = TokenConfig {
        jwt_issuer: text("https://id.example/"),
        jwt_audience: text("chat"),
        ..shared_secret()
    };
    let strict = Verifier::new(&config).unwrap();
    let open = Verifier::new(&shared_secret()).unwrap();
    let token = |claims: Value| signer.sign(&Header::new(Algorithm::HS256), claims);
    for audience in [json!("chat"), json!(["shop", "chat"])] {
        let claims = json!({ "iss": "https://id.example/", "aud": audience });
        strict.verify(&token(claims)).await.unwrap();
    }
    for (claims, wanted) in [
        (json!({ "aud": "chat" }), "the token names no issuer"),
        (json!({ "iss": "https://id.example", "aud": "chat" }), "the token is of another issuer"),
        (json!({ "iss": "https://id.example/" }), "the token names no audience"),
        (json!({ "iss": "https://id.example/", "aud": "shop" }), "the token is for another audience"),
        (
            json!({ "iss": "https://id.example/", "aud": ["shop", "till"] }),
            "the token is for another audience",
        ),
        (json!({ "iss": "https://id.example/", "aud": [] }), "the token is for another audience"),
        (json!({ "iss": "https://id.example/", "aud": 5 }), "the token names no audience"),
    ] {
        let token = token(claims);
        assert_eq!(refused(&strict, &token).await, wanted);
        open.verify(&token).await.unwrap();
    }
}

#[test]
fn a_key_set_for_any_application_is_warned_of() {
    let url = |issuer: Option<&str>, audience: Option<&str>| {
        let config = TokenConfig {
            jwt_jwks_url: Some("https://id.example/jwks".to_owned()),
            jwt_issuer: issuer.map(str::to_owned),
            jwt_audience: audience.map(str::to_owned),
            ..config()
        };
        Verifier::new(&config).unwrap().warning()
    };
    for (issuer, audience) in [(None, None), (Some("i"), None), (None, Some("a"))] {
        assert!(url(issuer, audience).is_some_and(|warning| warning.contains("jwt_audience")));
    }
    assert_eq!(url(Some("i"), Some("a")), None);
    assert_eq!(Verifier::new(&shared_secret()).unwrap().warning(), None);
}

#[tokio::test]
async fn a_leeway_counts_with_its_fraction() {
    let (signer, leeway) = (hs256(SECRET), Span(Duration::from_millis(60_900)));
    let verifier = Verifier::new(&TokenConfig { jwt_leeway: leeway, ..shared_secret() }).unwrap();
    let now = Timestamp::now().as_millis();
    #[expect(clippy::cast_precision_loss, reason = "a time of this century in milliseconds has 41 bits")]
    let seconds = |millis: i64| (now + millis) as f64 / 1000.0;
    let token = |claims: Value| signer.sign(&Header::new(Algorithm::HS256), claims);
    verifier.verify(&token(json!({ "nbf": seconds(60_850) }))).await.unwrap();
    verifier.verify(&token(json!({ "exp": seconds(-50_000) }))).await.unwrap();
    let early = token(json!({ "nbf": seconds(120_000) }));
    assert_eq!(refused(&verifier, &early).await, "the token is not valid yet");
    assert_eq!(refused(&verifier, &token(json!({ "exp": seconds(-60_950) }))).await, "the token has expired");
    for nbf in [json!("soon"), json!([1]), json!(true)] {
        refused(&verifier, &token(json!({ "nbf": nbf }))).await;
    }
}

/// Made with `openssl genrsa 1024 | openssl rsa -pubout`.
const RSA_1024: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDUFmZm59+IswIyVCssNM3J/9xk
mmRl9RXxOtHHjCYjrLINKBsWCOnZxeKQQSFS4qXnhw6TND0Fy1QO6dFb3uY15NZt
U85Sew2Hm3eQsiG2Dwpij+RWNGuSYGZYBphqnh1lnYLNaJ+FhC05dDZkAJ5n9qF3
b1+n2me8TE3R4X9YywIDAQAB
-----END PUBLIC KEY-----
";

#[test]
fn keys_that_can_be_broken_or_not_used_are_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let of_pem = |pem: &str| TokenConfig { jwt_public_key_file: file(dir.path(), pem), ..config() };
    let of_set = |set: &str| TokenConfig { jwt_jwks_file: file(dir.path(), set), ..config() };
    let of_secret = |secret: &str| TokenConfig { jwt_secret: Some(secret.to_owned().into()), ..config() };
    let p384 = EcdsaKeyPair::generate(&aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let p384: PublicKeyX509Der<'_> = p384.public_key().as_der().unwrap();
    let p384 = pem::encode(&pem::Pem::new("PUBLIC KEY", p384.as_ref()));
    let private = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
    let private: Pkcs8V1Der<'_> = private.as_der().unwrap();
    let private = pem::encode(&pem::Pem::new("PRIVATE KEY", private.as_ref()));
    let point = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA" }] }).to_string();
    let modulus = "w".repeat(171);
    let short = json!({ "keys": [{ "kty": "RSA", "n": modulus, "e": "AQAB" }] }).to_string();
    let url = |url: &str| TokenConfig { jwt_jwks_url: Some(url.to_owned()), ..config() };
    let with = |algorithm, config| TokenConfig { jwt_algorithm: Some(algorithm), ..config };
    for (config, wanted) in [
        (
            of_secret("31 bytes are not enough of them"),
            "jwt_secret is 31 bytes long, and HS256 needs at least 32",
        ),
        (of_pem(""), "is empty"),
        (of_pem(" \n"), "is empty"),
        (of_set(""), "is empty"),
        (of_pem("nonsense"), "it is no PEM file of an Ed25519, P-256 or RSA key"),
        (of_pem(RSA_1024), "an RSA key must have 2048 to 8192 bits"),
        (of_set(&short), "an RSA key must have 2048 to 8192 bits"),
        (of_pem(&p384), "it is not a public key on Ed25519 or P-256, or of RSA"),
        (of_pem(&private), "it is not a public key on Ed25519 or P-256, or of RSA"),
        (of_set(&point), "it is not a public key on Ed25519 or P-256, or of RSA"),
        (of_set("{}"), "it is not a JSON Web Key Set"),
        (of_set(r#"{"keys": []}"#), "it is an empty set"),
        (url("ftp://id.example/jwks"), "jwt_jwks_url is not an http or https URL"),
        (with(Algorithm::RS256, shared_secret()), "jwt_secret is for HS256"),
        (with(Algorithm::HS256, url("https://id.example/")), "a public key is for EdDSA, ES256 or RS256"),
    ] {
        let error = Verifier::new(&config).err().expect(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn one_key_must_be_configured() {
    assert!(matches!(Verifier::new(&config()), Err(TokenConfigError::NoKey)));
    let two = TokenConfig { jwt_jwks_url: Some("http://localhost/".to_owned()), ..shared_secret() };
    assert!(matches!(Verifier::new(&two), Err(TokenConfigError::TwoKeys)));
}
