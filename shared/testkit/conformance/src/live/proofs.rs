//! [`Proofs`](naru_engines::live::Proofs).

use std::time::Duration;

use naru_model::MessageId;
use tokio::time::Instant;

use super::fixtures::user;
use super::{LiveLayer, Of};

/// Longer than any case takes.
const KEEP: Duration = Duration::from_secs(600);

pub(super) async fn o1_a_proof_is_of_one_message_and_one_user(subject: Of<'_, LiveLayer>) {
    let LiveLayer { proofs, .. } = subject.open().await;
    let (one, two) = (MessageId::generate(), MessageId::generate());
    let [ada, ben, eve] = [user(), user(), user()];
    proofs.record(&[(one, ada.clone()), (two, ben.clone())], KEEP).await.unwrap();
    proofs.record(&[(one, eve.clone()), (one, ada.clone())], KEEP).await.unwrap();
    let asked = [
        ((one, &ada), true),
        ((two, &eve), false),
        ((one, &ben), false),
        ((two, &ben), true),
        ((one, &eve), true),
        ((MessageId::generate(), &ada), false),
        ((two, &ada), false),
        ((one, &ada), true),
    ];
    let (asked, expected): (Vec<_>, Vec<_>) =
        asked.into_iter().map(|((message, user), expected)| ((message, user.clone()), expected)).unzip();
    assert_eq!(proofs.proven(&asked).await.unwrap(), expected);
}

pub(super) async fn o1_a_proof_is_kept_as_long_as_asked(subject: Of<'_, LiveLayer>) {
    const KEEP: Duration = Duration::from_millis(400);
    let LiveLayer { proofs, .. } = subject.open().await;
    let proof = [(MessageId::generate(), user())];
    let asked = Instant::now();
    proofs.record(&proof, KEEP).await.unwrap();
    loop {
        let proven = proofs.proven(&proof).await.unwrap()[0];
        let age = asked.elapsed();
        if age >= KEEP {
            break;
        }
        assert!(proven, "forgotten after {age:?}, {KEEP:?} was asked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(super) async fn o2_any_number_is_recorded_and_asked_at_once(subject: Of<'_, LiveLayer>) {
    let LiveLayer { proofs, .. } = subject.open().await;
    let users = [user(), user(), user()];
    let asked: Vec<_> =
        (0..5_000).map(|nth: usize| (MessageId::generate(), users[nth % users.len()].clone())).collect();
    let recorded: Vec<_> = asked.iter().step_by(2).cloned().collect();
    proofs.record(&recorded, KEEP).await.unwrap();
    let expected: Vec<_> = (0..asked.len()).map(|nth| nth % 2 == 0).collect();
    assert_eq!(proofs.proven(&asked).await.unwrap(), expected);

    proofs.record(&[], KEEP).await.unwrap();
    assert!(proofs.proven(&[]).await.unwrap().is_empty());
}
