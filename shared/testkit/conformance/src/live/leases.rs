//! [`Leases`](naru_engines::live::Leases).

use std::time::Duration;

use naru_model::MessageId;
use tokio::time::Instant;

use super::{LiveLayer, Of, together};

const LONG: Duration = Duration::from_secs(600);

pub(super) async fn a1_a_lease_has_one_holder(subject: Of<'_, LiveLayer>) {
    let layer = subject.open().await;
    let name = lease();
    let mut rivals = Vec::new();
    for rival in 0..8 {
        let (layer, name) = (subject.beside(&layer).await, name.clone());
        rivals.push(
            async move { layer.leases.hold(&name, &format!("persister {rival}"), LONG).await.unwrap() },
        );
    }
    let held = together(rivals).await;
    let holders: Vec<_> = (0..8).filter(|rival| held[*rival]).collect();
    assert_eq!(holders.len(), 1, "holders: {holders:?}");
    for rival in 0..8 {
        let held = layer.leases.hold(&name, &format!("persister {rival}"), LONG).await.unwrap();
        assert_eq!(held, rival == holders[0], "persister {rival}");
    }
    assert!(layer.leases.hold(&lease(), "another", LONG).await.unwrap(), "another lease");
}

pub(super) async fn a1_a_lease_ends_after_its_time(subject: Of<'_, LiveLayer>) {
    const SHORT: Duration = Duration::from_millis(300);
    let layer = subject.open().await;
    let name = lease();
    assert!(layer.leases.hold(&name, "first", LONG).await.unwrap());
    // The lease now runs from its renewal, for the renewal's time.
    let renewed = Instant::now();
    assert!(layer.leases.hold(&name, "first", SHORT).await.unwrap());
    while !layer.leases.hold(&name, "second", LONG).await.unwrap() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let waited = renewed.elapsed();
    assert!(waited >= SHORT, "it ended after {waited:?}, {SHORT:?} was asked");
    assert!(!layer.leases.hold(&name, "first", LONG).await.unwrap(), "the second has it");
}

fn lease() -> String {
    format!("sweeper of {}", MessageId::generate())
}
