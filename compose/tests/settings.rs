//! Every setting of all five programs: a value with which a program could not work is refused when it starts, with the key
//! and the reason.

use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::programs::Running;
use crate::support::SECRET;

const NARU: &str = env!("CARGO_BIN_EXE_naru");
const GATEWAY: &str = env!("CARGO_BIN_EXE_gateway");
const NOTIFIER: &str = env!("CARGO_BIN_EXE_notifier");
const PERSISTER: &str = env!("CARGO_BIN_EXE_persister");
const FANOUT: &str = env!("CARGO_BIN_EXE_fanout");

/// Programs that refuse a value; the others don't read the key.
type Programs = &'static [&'static str];
const ALL: Programs = &[NARU, GATEWAY, PERSISTER, FANOUT, NOTIFIER];
const WITH_CLIENTS: Programs = &[NARU, GATEWAY];
const WITH_PUSHES: Programs = &[NARU, NOTIFIER];

/// Each key, the values that are refused, and by which programs. A key without such a value takes any text, or is checked with
/// another one.
const SETTINGS: &[(&str, &[&str], Programs)] = &[
    ("listen", &["nowhere", ""], WITH_CLIENTS),
    ("tls_certificate", &["/no/such"], WITH_CLIENTS),
    ("tls_key", &["/no/such"], WITH_CLIENTS),
    ("trusted_proxies", &["nowhere", "10.0.0.0/33"], WITH_CLIENTS),
    ("proxy_header", &["x-real-ip", ""], WITH_CLIENTS),
    ("admin_listen", &["nowhere"], ALL),
    ("engine", &["cloud", ""], &[NARU]),
    ("data_dir", &[""], ALL),
    ("mongodb_url", &["", "nowhere", "http://db/"], ALL),
    ("mongodb_database", &[""], ALL),
    ("amqp_url", &["", "nowhere", "amqp://"], ALL),
    ("partitions", &["0", "65", "-1"], ALL),
    ("redis_url", &["", "nowhere"], ALL),
    ("jwt_secret", &["of 10 bytes"], WITH_CLIENTS),
    ("jwt_algorithm", &["none", "HS1"], WITH_CLIENTS),
    ("jwt_public_key_file", &["/no/such"], WITH_CLIENTS),
    ("jwt_jwks_file", &["/no/such"], WITH_CLIENTS),
    ("jwt_jwks_url", &["nowhere"], ALL),
    ("jwt_jwks_refresh", &["0s", "2days", "soon", ""], ALL),
    ("jwt_jwks_max_age", &["0s", "600years", "soon", ""], ALL),
    ("jwt_issuer", &[], ALL),
    ("jwt_audience", &[], ALL),
    ("jwt_leeway", &["soon", "", "2days"], ALL),
    ("allowed_origins", &["chat.example.com", "https://chat.example.com/chat"], WITH_CLIENTS),
    ("max_content_bytes", &["0", "-1", "16777217"], ALL),
    ("max_frame_bytes", &["0", "63", "16777217"], ALL),
    ("max_room_members", &["0", "1", "100001"], ALL),
    ("room_creation", &["anyone", ""], WITH_CLIENTS),
    ("rate_messages_per_second", &["-1", "4294967296"], ALL),
    ("rate_burst", &["-1", "4294967296"], ALL),
    ("rate_frames_per_second", &["-1", "4294967296"], ALL),
    ("rate_frames_burst", &["-1", "4294967296"], ALL),
    ("rate_calls_per_second", &["-1", "4294967296"], ALL),
    ("rate_calls_burst", &["-1", "4294967296"], ALL),
    ("rate_connects_per_second", &["-1", "4294967296"], ALL),
    ("rate_connects_per_address", &["-1", "4294967296"], ALL),
    ("max_sessions_per_user", &["0", "9223372036854775807"], ALL),
    ("max_rooms_per_user", &["-1", "9223372036854775807"], ALL),
    ("max_devices_per_user", &["0", "9223372036854775807"], ALL),
    ("max_connections", &["0", "9223372036854775807"], ALL),
    ("session_queue", &["0", "9223372036854775807"], ALL),
    ("session_queue_bytes", &["0", "1023"], ALL),
    ("max_queued_bytes", &["0", "65535"], ALL),
    ("max_pending_sends", &["0", "9223372036854775807"], ALL),
    ("message_ttl", &["0s", "59m", "soon", "600years"], ALL),
    ("intake_keep", &["0s", "23h", "soon", "600years"], ALL),
    ("last_seen_keep", &["0s", "soon", "", "600years"], ALL),
    ("parked_keep", &["0s", "59m", "soon", "600years"], ALL),
    ("delivery_grace", &["soon", "", "2days"], ALL),
    ("delivery_proof", &["hope", ""], WITH_CLIENTS),
    ("drain_deadline", &["0s", "soon", "", "600years"], ALL),
    ("http_keep_alive", &["0s", "soon", ""], ALL),
    ("ping_interval", &["0s", "1ms", "soon", ""], ALL),
    ("push_concurrency", &["0", "65536"], ALL),
    ("push_ttl", &["0s", "soon", "", "600years"], ALL),
    ("push_hide_content", &["yes", ""], ALL),
    ("push_loc_key", &["", " "], ALL),
    ("push_sound", &[], ALL),
    ("push_mutable_content", &["maybe", ""], ALL),
    ("push_interruption_level", &["loud"], WITH_PUSHES),
    ("push_android_channel", &[], ALL),
    ("push_group_title", &[], ALL),
    ("push_device_ttl", &["0s", "soon", ""], ALL),
    ("push_webhook_url", &["backend:8080/push"], ALL),
    ("push_webhook_secret", &[], ALL),
    ("push_webhook_timeout", &["0s", "1h", "soon", ""], ALL),
    ("fcm_service_account_file", &["/no/such"], WITH_PUSHES),
    ("fcm_base_url", &["nowhere"], ALL),
    ("apns_key_file", &["/no/such"], WITH_PUSHES),
    ("apns_key_id", &[], ALL),
    ("apns_team_id", &[], ALL),
    ("apns_topic", &[], ALL),
    ("apns_base_url", &["nowhere"], ALL),
    ("extra_ca_file", &[], ALL),
    ("demo", &["maybe", ""], &[NARU]),
    ("log", &["warning", "loud", ""], ALL),
    ("log_format", &["xml", ""], ALL),
];

/// Values that are legal by themselves and not together: two keys with a value each, and the key that is named.
const PAIRS: &[(&[(&str, &str)], &str)] = &[
    (&[("max_content_bytes", "9000"), ("max_frame_bytes", "8000")], "max_content_bytes"),
    (&[("jwt_jwks_refresh", "1h"), ("jwt_jwks_max_age", "1h")], "jwt_jwks_refresh"),
    (&[("tls_certificate", "/no/such"), ("tls_key", "/no/such")], "/no/such"),
    (&[("extra_ca_file", "/no/such"), ("push_webhook_url", "https://backend/")], "extra_ca_file"),
];

#[test]
fn what_cannot_work_is_refused_at_the_start_with_the_reason() {
    let shown = Command::new(NARU).env_clear().arg("--print-config").output().expect("it can be run");
    let shown = String::from_utf8(shown.stdout).expect("text");
    let keys: BTreeSet<&str> = shown.lines().filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
    let tried: BTreeSet<&str> = SETTINGS.iter().map(|(key, ..)| *key).collect();
    assert_eq!(keys, tried, "each key has a row in SETTINGS");

    let mut wrong = Vec::new();
    for (key, values, programs) in SETTINGS {
        for value in *values {
            let outcomes = programs.iter().map(|program| refusal(program, &[(key, value)], key));
            wrong.extend(outcomes.filter_map(Result::err));
        }
    }
    for (settings, key) in PAIRS {
        wrong.extend(refusal(NARU, settings, key).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Starts a program with these settings; an error when it does not end soon with a failure that names the key or the
/// value.
fn refusal(program: &str, settings: &[(&str, &str)], key: &str) -> Result<(), String> {
    let data = tempfile::tempdir().expect("a folder for the data");
    let mut command = Command::new(program);
    command.env_clear().env("NARU_LISTEN", "127.0.0.1:0").env("NARU_ADMIN_LISTEN", "127.0.0.1:0");
    command.env("NARU_DATA_DIR", data.path());
    let is_key = ["jwt_public_key_file", "jwt_jwks_file", "jwt_jwks_url"].contains(&key);
    if !is_key {
        command.env("NARU_JWT_SECRET", SECRET);
    }
    for (key, value) in settings {
        command.env(format!("NARU_{}", key.to_uppercase()), value);
    }
    let mut running =
        Running(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it can be run"));
    let begun = Instant::now();
    let status = loop {
        match running.0.try_wait().expect("a child") {
            Some(status) => break status,
            None if begun.elapsed() > Duration::from_secs(10) => {
                return Err(format!("{program} runs with {settings:?}"));
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    let mut said = String::new();
    running.0.stderr.take().expect("it is piped").read_to_string(&mut said).expect("text");
    // A file that can't be read may be named instead of its key. A panic is not a refusal.
    let is_named =
        said.contains(key) || settings.iter().any(|(_, value)| value.len() > 1 && said.contains(value));
    if status.code() == Some(1) && is_named && !said.contains("panicked") {
        return Ok(());
    }
    Err(format!("{program} with {settings:?} ended with {status}, and said: {said}"))
}
