//! [`Proofs`](crate::live::Proofs).

use std::slice::from_ref;
use std::time::Duration;

use naru_model::{MessageId, Seq};
use tokio::time::Instant;

use super::given::{room, user};
use super::{LiveLayer, Of};

pub(super) async fn o1_a_proof_is_of_one_message_and_one_user(subject: Of<'_, LiveLayer>) {
    const KEEP: Duration = Duration::from_secs(600);
    let LiveLayer { proofs, .. } = subject.open().await;
    let (room, one, two) = (room(), MessageId::generate(), MessageId::generate());
    let people = [user(), user(), user()];
    let [ada, ben, eve] = people.clone();
    proofs.record(&[(one, ada.clone()), (two, ben.clone())], KEEP).await.unwrap();
    proofs.record(&[(one, eve.clone()), (one, ada.clone())], KEEP).await.unwrap();
    assert_eq!(proofs.proven(one, &room, Seq(1), &people).await.unwrap(), [true, false, true]);
    assert_eq!(proofs.proven(two, &room, Seq(2), &[ben, eve, ada]).await.unwrap(), [true, false, false]);
    assert_eq!(proofs.proven(MessageId::generate(), &room, Seq(3), &people).await.unwrap(), [false; 3]);
    assert_eq!(proofs.proven(one, &room, Seq(1), &[]).await.unwrap(), [false; 0]);
}

pub(super) async fn o1_a_proof_is_kept_as_long_as_asked(subject: Of<'_, LiveLayer>) {
    const KEEP: Duration = Duration::from_millis(400);
    let LiveLayer { proofs, .. } = subject.open().await;
    let (room, message, ada) = (room(), MessageId::generate(), user());
    let asked = Instant::now();
    proofs.record(&[(message, ada.clone())], KEEP).await.unwrap();
    loop {
        let proven = proofs.proven(message, &room, Seq(1), from_ref(&ada)).await.unwrap()[0];
        let age = asked.elapsed();
        if age >= KEEP {
            break;
        }
        assert!(proven, "forgotten after {age:?}, {KEEP:?} was asked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
