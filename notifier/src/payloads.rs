//! `docs/PUSHES.md` shows the payloads as they are.

use naru_model::hops::{Lane, PushEnvironment, PushJob, PushTarget};
use naru_model::{DeviceId, MessageId, RoomId, Seq, Timestamp, UserId};
use serde_json::Value;

use crate::render::{Appearance, hide};
use crate::{Config, apns, fcm, webhook};

/// 2026-11-22T09:30:00Z.
const NOW: Timestamp = Timestamp::from_millis(1_795_339_800_000);

pub(crate) fn job() -> PushJob {
    PushJob {
        lane: Lane::Fcm,
        message_id: MessageId::from_bytes(*b"\x65\xf0\xc0\xff\xee\x65\xf0\xc0\xff\xee\x65\xf0"),
        chat_room_id: RoomId::new("A_B").unwrap(),
        seq: Seq(7),
        recipient_id: UserId::new("B").unwrap(),
        title: "Ada".into(),
        body: "안녕하세요".into(),
        hides_content: false,
        badge: Some(3),
        room_name: None,
        target: None,
        expires_at: NOW.after(std::time::Duration::from_secs(24 * 3600)),
    }
}

fn target() -> PushTarget {
    PushTarget {
        device_id: DeviceId::new("phone").unwrap(),
        token: "the device's token".into(),
        environment: PushEnvironment::Production,
    }
}

#[test]
fn the_page_shows_each_payload_as_it_is() {
    let config: Config = crate::tests::configured(&[]).unwrap();
    let appearance = Appearance::from(&config);
    let direct = job();
    let group = PushJob {
        chat_room_id: RoomId::new("project").unwrap(),
        room_name: Some("Project X".into()),
        ..job()
    };
    let mut hidden = group.clone();
    hide(&mut hidden);
    let mut payloads = Vec::new();
    for job in [&direct, &group, &hidden] {
        payloads.push(fcm::message(job, &target(), &appearance, NOW).unwrap().to_vec());
        payloads.push(apns::payload(job, &appearance).unwrap().to_vec());
    }
    payloads.extend([&direct, &group].map(|job| webhook::body(job).unwrap()));
    let payloads: Vec<Value> = payloads.iter().map(|body| serde_json::from_slice(body).unwrap()).collect();

    let page = include_str!("../../docs/PUSHES.md");
    let shown = page.split("```json\n").skip(1).map(|block| block.split("```").next().unwrap());
    let shown: Vec<Value> = shown.map(|block| serde_json::from_str(block).unwrap()).collect();
    for (payload, shown) in payloads.iter().zip(&shown) {
        assert_eq!(shown, payload, "{}", serde_json::to_string_pretty(payload).unwrap());
    }
    assert_eq!(shown.len(), payloads.len());
}

#[test]
fn a_payload_stays_within_the_limit_whatever_its_names() {
    let config: Config = crate::tests::configured(&[]).unwrap();
    let appearance = Appearance::from(&config);
    let long = PushJob {
        title: "\u{1}".repeat(4000).into(),
        body: "\"안녕\"".repeat(2000).into(),
        room_name: Some("👨‍👩‍👧‍👦".repeat(200).into()),
        ..job()
    };
    let by_fcm = fcm::message(&long, &target(), &appearance, NOW).unwrap();
    let by_apns = apns::payload(&long, &appearance).unwrap();
    for body in [by_fcm, by_apns] {
        assert!((4000..=4096).contains(&body.len()), "{}", body.len());
    }
}
