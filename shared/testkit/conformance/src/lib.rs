//! One suite for every engine: a case per contract rule, with the rule's name.
//!
//! A test crate implements [`Subject`] and names the sub-suites that its engine provides:
//!
//! ```text
//! fn fresh() -> Fresh { … }        // Fresh is a Subject<Store>, a Subject<Bus> and a Subject<LiveLayer>
//! naru_conformance::conformance_suite!(store, bus, live: fresh);
//! ```
//!
//! This makes one `#[tokio::test]` per case (`store::intake::i1_…`). The same cases are data, too ([`store::CASES`] and
//! so on), to be run on deliberately faulty engines.
//!
//! | sub-suite | part | for |
//! |---|---|---|
//! | [`store`] | [`Store`] | I1–I11, M1–M9, R1–R3, R5–R10, P1–P7, D1–D5, K1–K5, U1–U5, H1 |
//! | [`bus`] | [`Bus`] | B1–B5, C1, C2, S1–S3, each on every hop it applies to |
//! | [`live`] | [`LiveLayer`] | L1–L5, E1–E8, O1, O2, A1 |
//! | [`foreign`] | [`ForeignStore`] | R4, where another system can write |
//! | [`bounded`] | [`BoundedBus`] | B6, on hops whose bound is small enough to reach |
//! | [`outage`] | [`SeverableLayer`] | "unknown is not offline", where the engine can be cut off |
//!
//! Every case uses ids of its own, so cases can share one live layer, and one store but for R8, which forgets the versions of all
//! rooms. Each case has its own bus.
//! No case relies on a fixed sleep: it waits for the event itself, for at most [`Subject::patience`]. "Not before" is
//! measured at arrival.

// The only list of cases: a case that is missing here is dead code, which the compiler reports.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    (store => $then:ident $with:tt) => {
        $crate::$then! { $with
            intake {
                i1_what_is_new_survives_death_and_is_open,
                i2_appending_again_answers_the_first_record,
                i2_an_append_repeated_is_a_resend_of_itself,
                i2_a_resend_is_recognised_after_death,
                i2_of_many_at_the_same_time_one_is_new,
                i2_a_resend_is_found_without_an_append,
                i3_other_content_is_a_conflict_and_changes_nothing,
                i3_another_room_or_sender_is_another_message,
                i4_there_is_one_answer_per_entry_in_their_order,
                i5_open_lists_what_is_not_closed_oldest_first,
                i5_a_walk_lists_every_open_entry_once,
                i6_the_first_outcome_stands,
                i7_what_comes_after_a_resend_comes_after_its_first_try,
                i6_an_outcome_survives_death,
                i8_what_was_rejected_may_be_appended_again,
                i9_a_closed_entry_loses_its_content_and_an_open_one_does_not,
                i9_without_content_a_resend_is_recognised_by_its_key,
                i10_old_contents_are_forgotten,
                i11_what_a_sender_sent_to_a_room_is_walked_in_order,
            }
            messages {
                m1_a_run_is_stored_in_its_order,
                m1_a_run_survives_death,
                m1_a_stopped_run_leaves_a_prefix,
                m1_a_run_of_several_rooms_leaves_one_prefix,
                m2_an_id_is_stored_once,
                m2_a_place_is_taken_once,
                m2_two_persisters_leave_no_gap,
                m3_heads_count_every_finished_run,
                m4_windows_are_cut_and_say_whether_there_is_more,
                m5_summaries_count_a_run_at_once,
                m5_sending_has_read_up_to_ones_own_message,
                m6_bumped_rooms_stand_where_their_newest_message_puts_them,
                m6_bumping_again_or_with_an_older_message_changes_nothing,
                m7_a_room_whose_message_was_saved_later_is_listed_before_whatever_the_clock_says,
                m8_a_deleted_message_keeps_its_place,
                m8_a_message_is_deleted_once,
                m9_old_messages_are_removed_and_leave_no_gap,
                m9_a_rooms_newest_message_stays_as_a_tombstone,
            }
            rooms {
                r1_a_room_is_made_once,
                r1_a_group_is_known_by_its_members_at_any_version,
                r1_of_many_at_the_same_time_one_is_made,
                r2_the_members_at_a_version_never_change,
                r2_changes_at_the_same_time_each_make_a_version,
                r2_a_change_that_is_refused_changes_nothing,
                r3_current_shows_a_finished_change,
                r3_a_removed_member_is_out_of_the_room,
                r5_rooms_are_listed_latest_activity_first,
                r5_a_walk_meets_every_room_that_did_not_move,
                r6_settings_are_the_members_own,
                r7_since_an_append_a_removal_before_it_is_shown,
                r8_versions_that_were_left_long_ago_are_forgotten,
                r9_a_users_rooms_are_counted,
                r10_rooms_of_now_and_before_are_walked_in_order,
            }
            positions {
                p1_positions_only_go_forward,
                p1_devices_have_positions_of_their_own,
                p1_positions_survive_death,
                p2_a_position_never_passes_the_head,
                p3_a_move_is_told_once,
                p4_only_members_move,
                p5_unread_is_summed_over_the_rooms_of_now,
                p5_muted_rooms_do_not_count,
                p6_members_of_many_rooms_are_told_apart,
                p7_a_forgotten_member_is_as_a_new_one,
            }
            devices {
                d1_a_token_belongs_to_its_last_claimant,
                d1_of_many_at_the_same_time_one_has_the_token,
                d2_claiming_again_replaces_the_token,
                d3_only_an_older_token_is_removed,
                d3_a_removed_device_is_gone,
                d4_a_device_that_was_not_seen_is_forgotten,
                d5_spellings_of_a_token_are_one_token,
            }
            users {
                k1_sessions_end_with_a_later_epoch,
                k1_tokens_end_forward_only,
                k1_of_many_at_the_same_time_each_counts,
                k2_a_block_list_is_its_users_own,
                k2_a_full_block_list_takes_no_more,
                k2_a_block_list_is_emptied,
                k3_changes_survive_death,
                k4_each_user_is_answered_in_order,
                k5_an_erasure_is_under_way_until_its_last_round_is_completed,
            }
            pushes {
                u1_what_was_recorded_is_done,
                u2_parking_again_replaces_the_entry,
                u2_what_is_parked_survives_death,
                u2_what_was_parked_again_is_another_entry,
                u3_a_walk_meets_every_parked_push_in_order,
                u3_one_is_found_by_its_event,
                u4_those_parked_for_a_reason_are_listed,
                u5_what_was_parked_long_ago_is_forgotten,
            }
            epochs {
                h1_each_restore_begins_an_epoch_of_its_own,
            }
        }
    };
    (bus => $then:ident $with:tt) => {
        $crate::$then! { $with
            every_hop {
                b1_what_was_sent_arrives,
                b1_however_much_is_sent_together_it_arrives_whole,
                b1_a_waiting_receiver_is_woken,
                b1_sent_again_it_comes_again,
                b3_what_comes_again_has_the_same_event_id,
                b5_receivers_share_the_events,
                c1_a_batch_has_at_most_as_many_as_asked,
                c1_a_cancelled_receive_loses_nothing,
                c2_what_a_dropped_receiver_held_comes_again,
                s1_what_is_acknowledged_does_not_come_again,
                s1_of_what_was_sent_together_only_the_rest_comes_again,
                s2_a_retry_comes_not_before_its_time_with_one_attempt_more,
                s2_what_was_sent_together_is_retried_each_after_its_own_delay,
                s3_what_is_dropped_comes_with_the_same_attempt,
            }
            ordered_hops {
                b4_events_of_a_room_come_in_order,
                b4_a_room_is_never_in_two_unacknowledged_batches,
                b4_what_is_dropped_comes_before_later_ones,
                b4_what_is_retried_comes_before_later_ones,
            }
            durable_hops_through_death {
                b2_what_is_not_acknowledged_survives_death,
                b2_the_rest_of_what_was_sent_together_survives_death,
                b2_a_retry_and_its_delay_survive_death,
            }
        }
    };
    (live => $then:ident $with:tt) => {
        $crate::$then! { $with
            gateways {
                l1_every_gateway_gets_what_is_published,
                l1_what_is_for_others_may_come_as_seq_only,
                l1_what_is_lost_is_announced,
                l1_a_cancelled_next_loses_nothing,
                l2_events_of_one_publisher_come_in_order,
                l3_a_subscription_that_is_not_read_delays_no_other,
                l4_confirmations_and_evictions_reach_the_named_gateway_only,
                l5_a_change_of_a_user_reaches_every_gateway,
            }
            presence {
                e1_a_session_counts_while_its_gateways_lease_does,
                e1_a_renewed_lease_runs_from_its_renewal,
                e1_a_session_without_a_lease_does_not_count,
                e1_a_gateway_that_resigns_takes_its_sessions_with_it,
                e2_attach_and_detach_show_at_once,
                e3_detaching_leaves_the_other_sessions,
                e4_a_device_that_attaches_again_replaces_its_session,
                e5_last_seen_is_now_while_connected,
                e5_last_seen_is_the_last_renewal_of_a_dead_gateway,
                e6_a_renewal_tells_whether_the_lease_has_lapsed,
                e7_attached_shows_single_sessions,
                e8_a_forgotten_user_was_never_seen,
            }
            proofs {
                o1_a_proof_is_of_one_message_and_one_user,
                o1_a_proof_is_kept_as_long_as_asked,
                o2_any_number_is_recorded_and_asked_at_once,
            }
            leases {
                a1_a_lease_has_one_holder,
                a1_a_lease_ends_after_its_time,
            }
        }
    };
    (foreign => $then:ident $with:tt) => {
        $crate::$then! { $with rooms { r4_a_room_of_another_system_reads_as_a_direct_room, } }
    };
    (bounded => $then:ident $with:tt) => {
        $crate::$then! { $with
            hops {
                b6_a_full_queue_makes_send_wait,
            }
        }
    };
    (outage => $then:ident $with:tt) => {
        $crate::$then! { $with presence { e0_unknown_is_not_offline, } }
    };
}

pub mod bounded;
pub mod bus;
mod fixtures;
pub mod foreign;
pub mod live;
pub mod outage;
pub mod store;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use naru_model::{RoomId, UserId};
use tokio::task::JoinSet;

use naru_engines::Engines;
use naru_engines::bus::Bus;
use naru_engines::live::{Leases, Live, Presence, Proofs};
use naru_engines::store::Store;

/// An engine under test, or the part of it that a sub-suite is for.
#[async_trait]
pub trait Subject<Part: Clone + Send + Sync + 'static>: Send {
    /// Starts a process of a new deployment. Its bus and, if the case calls `reopen`, its store are the case's own; cases
    /// may share the rest.
    async fn open(&mut self) -> Part;

    /// The process dies and another of the same deployment starts: only state that the engine keeps for it survives.
    /// The case has dropped all it had from `open`.
    async fn reopen(&mut self) -> Part;

    /// Another process of the same deployment, beside that of `part`; an engine of one process has only that.
    async fn beside(&mut self, part: &Part) -> Part {
        part.clone()
    }

    /// How long a case may wait for an expected result before it fails.
    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }
}

/// The parts that a Redis can provide by itself.
#[derive(Clone)]
pub struct LiveLayer {
    /// See [`Live`].
    pub live: Arc<dyn Live>,
    /// See [`Presence`].
    pub presence: Arc<dyn Presence>,
    /// See [`Proofs`].
    pub proofs: Arc<dyn Proofs>,
    /// See [`Leases`].
    pub leases: Arc<dyn Leases>,
}

/// A store that another system writes to.
#[derive(Clone)]
pub struct ForeignStore {
    pub store: Store,
    /// Writes a direct room as the other system does: `_id`, `user1Id`, `user2Id`.
    pub write: Arc<dyn Fn(RoomId, UserId, UserId) -> Eventually<()> + Send + Sync>,
}

/// A bus whose bound can be reached.
#[derive(Clone)]
pub struct BoundedBus {
    pub bus: Bus,
    /// The hops that are bounded, by name. The others are bounded by a disk.
    pub hops: &'static [&'static str],
    /// One of those hops holds at most this many events that were sent one by one.
    pub capacity: usize,
}

/// A live layer that can be cut off.
#[derive(Clone)]
pub struct SeverableLayer {
    pub layer: LiveLayer,
    /// Cuts it off: the layer can't be reached when this returns.
    pub sever: Arc<dyn Fn() -> Eventually<()> + Send + Sync>,
}

/// A future, for function types.
pub type Eventually<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl From<Engines> for LiveLayer {
    fn from(Engines { live, presence, proofs, leases, .. }: Engines) -> Self {
        Self { live, presence, proofs, leases }
    }
}

/// The argument of a case.
type Of<'a, Part> = &'a mut (dyn Subject<Part> + 'a);

type Body<Part> = for<'a> fn(Of<'a, Part>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// One case of the suite.
pub struct Case<Part: Clone + Send + Sync + 'static> {
    pub group: &'static str,
    /// Its name, which begins with the rule's.
    pub name: &'static str,
    body: Body<Part>,
}

impl<Part: Clone + Send + Sync + 'static> Case<Part> {
    /// Runs the case.
    ///
    /// # Panics
    /// When the rule is broken.
    pub async fn run(&self, mut subject: impl Subject<Part>) {
        let patience = subject.patience();
        let body = (self.body)(&mut subject);
        if tokio::time::timeout(patience, body).await.is_err() {
            panic!("{}::{}: what must happen did not happen within {patience:?}", self.group, self.name);
        }
    }
}

/// Runs the case of this name.
///
/// # Panics
/// When the rule is broken.
#[doc(hidden)]
pub async fn run<Part: Clone + Send + Sync + 'static>(
    cases: &[Case<Part>],
    group: &str,
    name: &str,
    subject: impl Subject<Part>,
) {
    let case = cases.iter().find(|case| (case.group, case.name) == (group, name));
    case.expect("macro and data are made from one list").run(subject).await;
}

/// One `#[tokio::test]` per case of the named sub-suites ([`store`], [`bus`], [`live`], [`foreign`], [`bounded`],
/// [`outage`]), on the subject that a function makes: `conformance_suite!(store, bus, live: fresh);`
#[macro_export]
macro_rules! conformance_suite {
    ($($suite:ident),+ : $subject:ident) => {$(
        mod $suite {
            $crate::conformance_cases! { $suite => conformance_tests [$suite $subject] }
        }
    )+};
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    ([$suite:ident $subject:ident] $($group:ident { $($case:ident,)+ })+) => {$(
        mod $group {$(
            #[tokio::test]
            async fn $case() {
                use $crate::{run, $suite::CASES};
                run(CASES, stringify!($group), stringify!($case), super::super::$subject()).await;
            }
        )+}
    )+};
}

/// The cases as data.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_data {
    ([$part:ty] $($group:ident { $($case:ident,)+ })+) => {
        pub const CASES: &[$crate::Case<$part>] = &[$($($crate::Case {
            group: stringify!($group),
            name: stringify!($case),
            body: |subject| Box::pin($group::$case(subject)),
        },)+)+];
    };
}

/// Lets the process die: drops its parts of the engine, then the engine.
async fn reopened<Part: Clone + Send + Sync + 'static>(subject: Of<'_, Part>, held: Part) -> Part {
    drop(held);
    subject.reopen().await
}

/// Runs futures at the same time; returns their answers in their order.
async fn together<T: Send + 'static>(
    futures: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut tasks = JoinSet::new();
    for (place, future) in futures.into_iter().enumerate() {
        tasks.spawn(async move { (place, future.await) });
    }
    let mut answers = tasks.join_all().await;
    answers.sort_by_key(|(place, _)| *place);
    answers.into_iter().map(|(_, answer)| answer).collect()
}
