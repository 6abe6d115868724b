//! B6, for buses whose bound can be reached.

use crate::BoundedBus;

crate::conformance_cases! { bounded => conformance_data [BoundedBus] }

mod hops {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use naru_model::hops::Payload;

    use crate::bus::On;
    use crate::{BoundedBus, Of};
    use naru_engines::bus::ack;

    pub(super) async fn b6_a_full_queue_makes_send_wait(subject: Of<'_, BoundedBus>) {
        let BoundedBus { bus, hops, capacity } = subject.open().await;
        for hop in hops {
            match *hop {
                "accepted" => fill_and_drain(On::accepted(&bus), capacity).await,
                "saved" => fill_and_drain(On::saved(&bus), capacity).await,
                "offline" => fill_and_drain(On::offline(&bus), capacity).await,
                "push.fcm" => fill_and_drain(On::push_fcm(&bus), capacity).await,
                "push.apns" => fill_and_drain(On::push_apns(&bus), capacity).await,
                "push.webhook" => fill_and_drain(On::push_webhook(&bus), capacity).await,
                other => panic!("no hop is called {other}"),
            }
        }
    }

    async fn fill_and_drain<T: Payload + PartialEq>(on: On<T>, capacity: usize) {
        const MORE: usize = 10;
        let mut receiver = on.receiver().await;
        let events = on.scattered(1);
        let sent = Arc::new(AtomicUsize::new(0));
        let sender = {
            let (queue, event, sent) = (on.queue.clone(), events[0].clone(), sent.clone());
            tokio::spawn(async move {
                for _ in 0..capacity + MORE {
                    queue.send(vec![event.clone()]).await.unwrap();
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        // Waits until no event was taken for a while.
        let mut before = usize::MAX;
        while before != sent.load(Ordering::SeqCst) {
            before = sent.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(before <= capacity, "{before} were taken, the capacity is {capacity}");
        assert!(!sender.is_finished(), "send waits");

        let mut received = 0;
        while received < capacity + MORE {
            let batch = receiver.receive(64).await.unwrap();
            received += batch.len();
            ack(batch.into_iter().map(|delivery| delivery.ack_handle)).await.unwrap();
        }
        sender.await.unwrap();
    }
}
