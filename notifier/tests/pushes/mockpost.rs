//! A fake of FCM and APNs that was not written here: PyPI's mockpost under hypercorn. Its paths are prefixed, so base URLs
//! take a path.

use naru_phones::{Options, Phones};
use naru_services::Kind;

use super::*;

#[tokio::test]
async fn another_reading_of_the_protocols_takes_what_is_sent() {
    let mockpost = tokio::task::spawn_blocking(|| naru_services::url(Kind::Mockpost)).await.unwrap();
    let (fixture, keys) = (Fixture::new().await, tempfile::tempdir().unwrap());
    // It has no token endpoint of Google's, and its certificate is of another root than the phones'.
    let phones = Phones::start(Options::in_dir(keys.path())).await.unwrap();
    let roots = keys.path().join("roots.pem");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pushes/tls/ca.pem");
    let both = [std::fs::read(phones.ca_file()).unwrap(), std::fs::read(own).unwrap()].concat();
    std::fs::write(&roots, both).unwrap();
    let config = Config {
        fcm_base_url: Some(format!("{mockpost}/fcm")),
        apns_base_url: Some(format!("{mockpost}/apns/")),
        extra_ca_file: Some(roots.clone()),
        ..phones::with_phones(config(None), &phones)
    };
    let apns = MessageId::generate().to_string().repeat(3)[..64].to_owned();
    let fcm = format!("token-{}", MessageId::generate());
    for (platform, token) in [(Platform::Fcm, &fcm), (Platform::Apns, &apns)] {
        let device = fixture.registers("B", token, platform).await;
        fixture.engines.store.devices.claim(Device { token: token.as_str().into(), ..device }).await.unwrap();
    }
    let notifier = Running::start(&fixture, config, []);
    let message = fixture.says("안녕하세요").await;
    fixture.missed(&message, &["B"]).await;
    for lane in ["fcm", "apns"] {
        notifier.counts(&format!("pushes_total{{lane=\"{lane}\",outcome=\"pushed\"}} 1")).await;
    }

    let root = reqwest::Certificate::from_pem_bundle(&std::fs::read(&roots).unwrap()).unwrap();
    let client = reqwest::Client::builder().no_proxy().tls_certs_merge(root).build().unwrap();
    let taken = async |channel: &str, token: &str| -> serde_json::Value {
        let url = format!("{mockpost}/api/messages?channel={channel}");
        let messages: Vec<serde_json::Value> = client.get(url).send().await.unwrap().json().await.unwrap();
        let ours: Vec<_> = messages.into_iter().filter(|message| message["recipient"] == token).collect();
        assert_eq!(ours.len(), 1, "one push by {channel}");
        ours.into_iter().next().unwrap()
    };
    let parsed = |text: &serde_json::Value| -> serde_json::Value {
        serde_json::from_str(text.as_str().unwrap()).unwrap()
    };
    let by_fcm = taken("fcm", &fcm).await;
    assert_eq!((&by_fcm["body"], &parsed(&by_fcm["meta"])["title"]), (&"안녕하세요".into(), &"Ada".into()));
    let by_apns = taken("apns", &apns).await;
    let meta = parsed(&by_apns["meta"]);
    assert_eq!((&by_apns["body"], &meta["push_type"]), (&"안녕하세요".into(), &"alert".into()));
    assert_eq!(meta["topic"], naru_phones::TOPIC);

    // And it knows of dead tokens.
    for (channel, field, token) in [("fcm", "token", &fcm), ("apns", "device_token", &apns)] {
        let gone = serde_json::json!({ (field): token });
        let url = format!("{mockpost}/{channel}/simulate/unregister");
        client.post(url).json(&gone).send().await.unwrap().error_for_status().unwrap();
    }
    fixture.missed(&fixture.says("still there?").await, &["B"]).await;
    fixture.parked(2).await;
    assert_eq!(fixture.engines.store.devices.of_users(&[user("B")]).await.unwrap(), []);
    notifier.finished().await;
}
