//! H1.

use std::collections::BTreeSet;

use naru_engines::store::Store;

use super::{Of, reopened, together};

pub(super) async fn h1_each_restore_begins_an_epoch_of_its_own(subject: Of<'_, Store>) {
    let store = subject.open().await;
    let before = store.epochs.get().await.unwrap();
    let restored = |_| {
        let epochs = store.epochs.clone();
        async move { epochs.restored().await }
    };
    let made = together((0..4).map(restored)).await;
    let made: BTreeSet<_> = made.into_iter().map(Result::unwrap).collect();
    assert_eq!(made.len(), 4, "each its own: {made:?}");
    assert!(made.iter().all(|epoch| *epoch > before), "{made:?} after {before}");
    let last = *made.last().expect("four");
    assert!(store.epochs.get().await.unwrap() >= last);
    assert!(subject.beside(&store).await.epochs.get().await.unwrap() >= last);
    assert!(reopened(subject, store).await.epochs.get().await.unwrap() >= last, "after death");
}
