//! What a newest-only hop keeps when the process dies.

use super::*;

pub(super) async fn b8_what_is_not_done_survives_death<T: Payload + PartialEq>(
    subject: Of<'_, Bus>,
    find: fn(&Bus) -> On<T>,
) {
    durable_hops_through_death::b2_what_is_not_done_survives_death(subject, find).await;
}
