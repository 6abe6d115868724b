//! A suite that can't fail proves nothing: engines with one sin each fail the cases that name it, and engines with
//! none fail no case.

use std::collections::{HashMap, HashSet};
use std::env;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use naru_engines::conformance::{
    BoundedBus, Case, LiveLayer, SeverableLayer, Subject, bounded, bus, live, outage, store,
};
use naru_engines::faults::{Outage, tapped};
use naru_engines::{Engines, conformance};
use tokio::task::JoinSet;

use super::Fresh;
use super::sins::{BOUND, Sin, sinful};

struct Sinner {
    fresh: Fresh,
    sin: Sin,
}

impl Sinner {
    fn new(sin: Sin) -> Self {
        // In memory where there is a file system for it: this is about rules, not about disks.
        let memory = Path::new("/dev/shm");
        let within = if memory.is_dir() { memory.to_owned() } else { env::temp_dir() };
        Self { fresh: Fresh { within, ..super::as_it_is() }, sin }
    }
}

#[async_trait]
impl<Part: From<Engines> + Clone + Send + Sync + 'static> Subject<Part> for Sinner {
    async fn open(&mut self) -> Part {
        let engines: Whole = self.fresh.open().await;
        sinful(engines.0, self.sin).into()
    }

    async fn reopen(&mut self) -> Part {
        if self.sin == Sin::ForgetsAtDeath {
            return self.open().await;
        }
        let engines: Whole = self.fresh.reopen().await;
        sinful(engines.0, self.sin).into()
    }

    /// Whoever waits for what a broken engine lost waits in vain.
    fn patience(&self) -> Duration {
        if self.sin == Sin::None { Duration::from_secs(30) } else { Duration::from_secs(3) }
    }
}

/// All parts.
#[derive(Clone)]
struct Whole(Engines);

impl From<Engines> for Whole {
    fn from(engines: Engines) -> Self {
        Self(engines)
    }
}

#[tokio::test]
async fn every_sin_of_a_store_is_noticed() {
    judge(
        store::CASES,
        Sinner::new,
        &[
            (Sin::None, &[]),
            (
                Sin::ForgetsAtDeath,
                &[
                    "i1_what_is_new_survives_death_and_is_open",
                    "i2_a_resend_is_recognised_after_death",
                    "i6_an_outcome_survives_death",
                    "m1_a_run_survives_death",
                    "p1_positions_survive_death",
                    "u2_what_is_parked_survives_death",
                ],
            ),
            (Sin::ResendIsNew, &["i2_appending_again_answers_the_first_record"]),
            (Sin::ConflictUnnoticed, &["i3_other_content_is_a_conflict_and_changes_nothing"]),
            (Sin::AnswersOutOfOrder, &["i4_there_is_one_answer_per_entry_in_their_order"]),
            (Sin::OpenForgetsOrder, &["i5_open_lists_what_is_not_settled_oldest_first"]),
            (Sin::SettleOverwrites, &["i6_the_first_outcome_stands"]),
            (
                Sin::RunGoesOnAfterConflict,
                &["m1_a_stopped_run_leaves_a_prefix", "m1_a_run_of_several_rooms_leaves_one_prefix"],
            ),
            (Sin::TakenPlaceAccepted, &["m2_a_place_is_taken_once", "m2_two_persisters_leave_no_gap"]),
            (Sin::RepeatedIdAccepted, &["m2_an_id_is_stored_once"]),
            (Sin::HeadsStale, &["m3_heads_count_every_finished_run"]),
            (Sin::WindowSaysThereIsNoMore, &["m4_windows_are_cut_and_say_whether_there_is_more"]),
            (
                Sin::UnreadNotCounted,
                &["m5_summaries_count_a_run_at_once", "p5_unread_is_summed_over_the_rooms_of_now"],
            ),
            (Sin::MadeTwice, &["r1_a_room_is_made_once", "r1_of_many_at_the_same_time_one_is_made"]),
            (Sin::MembersOfTheLatestVersion, &["r2_the_members_at_a_version_never_change"]),
            (Sin::CurrentStale, &["r3_current_shows_a_finished_change"]),
            (
                Sin::ListEndsEarly,
                &[
                    "r5_rooms_are_listed_latest_activity_first",
                    "r5_a_walk_meets_every_room_that_did_not_move",
                ],
            ),
            (Sin::SettingsShared, &["r6_settings_are_the_members_own"]),
            (Sin::PositionsGoBackward, &["p1_positions_only_go_forward"]),
            (Sin::PositionBeyondHead, &["p2_a_position_never_passes_the_head"]),
            (Sin::MoveToldAlways, &["p3_a_move_is_told_once"]),
            (Sin::StrangersMove, &["p4_only_members_move"]),
            (Sin::UnreadOfTheFirst, &["p5_unread_is_summed_over_the_rooms_of_now"]),
            (Sin::PositionsOfTheFirstRoom, &["p6_members_of_many_rooms_are_told_apart"]),
            (
                Sin::TokenWithTwoOwners,
                &["d1_a_token_belongs_to_whom_claimed_it_last", "d2_claiming_again_replaces_the_token"],
            ),
            (Sin::NewTokenRemoved, &["d3_only_an_older_token_is_removed"]),
            (Sin::ContentShown, &["d2_claiming_again_replaces_the_token"]),
            (Sin::SeenDevicesForgotten, &["d4_who_was_not_seen_is_forgotten"]),
            (Sin::RecordForgotten, &["u1_what_was_recorded_is_done"]),
            (Sin::ListingTakesAway, &["u2_parking_again_replaces_the_entry"]),
            (Sin::ListForgetsItsOrder, &["u3_a_walk_meets_every_parked_push_in_order"]),
            (Sin::ListBeginsAgain, &["u3_a_walk_meets_every_parked_push_in_order"]),
            (Sin::FindsAnother, &["u3_one_is_found_by_its_event"]),
            (Sin::ParkedAgainIsDropped, &["u2_what_was_parked_again_is_another_entry"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn every_sin_of_a_bus_is_noticed() {
    judge(
        bus::CASES,
        Sinner::new,
        &[
            (Sin::None, &[]),
            (Sin::LosesEvents, &["b1_what_was_sent_arrives"]),
            (Sin::KnowsOldEventsAndDropsThem, &["b1_sent_again_it_comes_again"]),
            (
                Sin::ForgetsAtDeath,
                &[
                    "b2_what_is_not_done_survives_death",
                    "b2_a_delay_survives_death",
                    "b2_a_retry_survives_death",
                    "b8_what_is_not_done_survives_death",
                ],
            ),
            (Sin::RoomOutOfOrder, &["b4_events_of_a_room_come_in_order"]),
            (Sin::RoomInTwoHands, &["b4_a_room_is_never_in_two_unsettled_batches"]),
            (Sin::GivenBackToTheEnd, &["b4_what_is_given_back_comes_before_later_ones"]),
            (
                Sin::DelayIgnored,
                &["b5_a_delay_is_kept_and_not_exceeded", "b5_a_long_delay_does_not_hold_up_a_short_one"],
            ),
            (Sin::DeliveredTwice, &["b6_receivers_share_the_events"]),
            (Sin::BatchTooLarge, &["c1_a_batch_has_at_most_as_many_as_asked"]),
            (
                Sin::DoneBeforeTheEffect,
                &[
                    "c2_what_a_dropped_receiver_held_comes_again",
                    "s3_what_is_given_back_comes_with_the_same_attempt",
                ],
            ),
            (Sin::DoneComesAgain, &["s1_what_is_done_never_comes_again"]),
            (Sin::RetryIsNoAttempt, &["s2_a_retry_comes_not_before_its_time_with_one_attempt_more"]),
            (
                Sin::RetryAtOnce,
                &[
                    "s2_a_retry_comes_not_before_its_time_with_one_attempt_more",
                    "b4_what_is_retried_comes_before_later_ones",
                ],
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn every_sin_of_a_live_layer_is_noticed() {
    judge(
        live::CASES,
        Sinner::new,
        &[
            (Sin::None, &[]),
            (Sin::LiveLosesInSilence, &["l1_what_is_lost_is_announced"]),
            (Sin::LiveOutOfOrder, &["l2_events_of_one_publisher_come_in_order"]),
            (Sin::LiveBlocksOnTheSlow, &["l3_who_does_not_listen_delays_nobody"]),
            (Sin::ConfirmedToEveryone, &["l4_confirmations_and_evictions_reach_the_named_gateway_only"]),
            (Sin::DeadLeasesCount, &["e1_a_session_counts_while_its_gateways_lease_does"]),
            (Sin::AttachShowsLate, &["e2_attach_and_detach_show_at_once"]),
            (Sin::DetachTakesAllSessions, &["e3_detaching_leaves_the_other_sessions"]),
            (Sin::ReplacedStillCounts, &["e4_a_device_that_attaches_again_replaces_its_session"]),
            (
                Sin::LastSeenIsAlwaysNow,
                &[
                    "e5_last_seen_is_now_while_connected",
                    "e5_last_seen_is_the_last_renewal_of_a_dead_gateway",
                ],
            ),
            (Sin::ProofForAnybody, &["o1_a_proof_is_of_one_message_and_one_user"]),
            (Sin::LeaseToEveryone, &["a1_a_lease_has_one_holder", "a1_a_lease_ends_after_its_time"]),
        ],
    )
    .await;
}

/// Cut off, and it may say of whom it can't know that they are offline.
struct CutOffSinner(Sinner);

#[async_trait]
impl Subject<SeverableLayer> for CutOffSinner {
    async fn open(&mut self) -> SeverableLayer {
        let outage = Arc::new(Outage::default());
        let engines: Whole = self.0.fresh.open().await;
        let layer = LiveLayer::from(sinful(tapped(engines.0, outage.clone()), self.0.sin));
        let sever = Arc::new(move || {
            outage.cut(true);
            Box::pin(async {}) as conformance::Eventually<()>
        });
        SeverableLayer { layer, sever }
    }

    async fn reopen(&mut self) -> SeverableLayer {
        self.open().await
    }
}

#[tokio::test]
async fn to_take_unknown_for_offline_is_noticed() {
    const SINS: &[Named] = &[(Sin::None, &[]), (Sin::UnknownIsOffline, &["e0_unknown_is_not_offline"])];
    judge(outage::CASES, |sin| CutOffSinner(Sinner::new(sin)), SINS).await;
}

/// With room for a few events only, or so it says.
struct NarrowSinner(Sinner);

#[async_trait]
impl Subject<BoundedBus> for NarrowSinner {
    async fn open(&mut self) -> BoundedBus {
        let Sinner { fresh, sin } = &mut self.0;
        let room = if *sin == Sin::GrowsWithoutBound { 100 * BOUND } else { BOUND };
        let room = u32::try_from(room).expect("not that many");
        (fresh.options.buffered_events, fresh.options.newest_events) = (room, room);
        let engines: Whole = fresh.open().await;
        let bus = sinful(engines.0, *sin).bus;
        BoundedBus { bus, hops: &["accepted", "saved"], capacity: BOUND, newest: BOUND }
    }

    async fn reopen(&mut self) -> BoundedBus {
        self.open().await
    }
}

#[tokio::test]
async fn every_sin_of_a_full_bus_is_noticed() {
    const SINS: &[Named] = &[
        (Sin::None, &[]),
        (
            Sin::GrowsWithoutBound,
            &["b7_a_full_queue_makes_send_wait", "b8_the_oldest_make_place_for_the_newest"],
        ),
        (Sin::KeepsTheOldest, &["b8_the_oldest_make_place_for_the_newest"]),
    ];
    judge(bounded::CASES, |sin| NarrowSinner(Sinner::new(sin)), SINS).await;
}

/// A sin and the cases that name it.
type Named = (Sin, &'static [&'static str]);

/// Runs every case on every sin, prints what failed, and demands that the named cases are among it.
async fn judge<Part, S>(cases: &'static [Case<Part>], subject: fn(Sin) -> S, sins: &'static [Named])
where
    Part: Clone + Send + Sync + 'static,
    S: Subject<Part> + 'static,
{
    let mut unnoticed = Vec::new();
    // Who has no sin is judged alone, since only there it matters what comes too late; of the others a few at a time: most of
    // a trial is waiting.
    let (innocent, guilty) = sins.split_at(1);
    for group in [innocent].into_iter().chain(guilty.chunks(5)) {
        let mut trials = JoinSet::new();
        let mut names = HashMap::new();
        for ((sin, _), case) in group.iter().flat_map(|sin| cases.iter().map(move |case| (sin, case))) {
            names.insert(trials.spawn(case.run(subject(*sin))).id(), (*sin, case.name));
        }
        let mut failed = HashSet::new();
        while let Some(trial) = trials.join_next().await {
            if let Err(broken) = trial {
                failed.insert(names[&broken.id()]);
            }
        }
        for (sin, named) in group {
            for case in cases.iter().filter(|case| named.contains(&case.name)) {
                // On a busy machine what comes too early may be met late: once more, alone.
                if failed.contains(&(*sin, case.name)) || tokio::spawn(case.run(subject(*sin))).await.is_err()
                {
                    failed.insert((*sin, case.name));
                } else {
                    unnoticed.push(format!("{} does not notice {sin:?}", case.name));
                }
            }
            assert!(named.iter().all(|name| cases.iter().any(|case| case.name == *name)), "cases of {sin:?}");
            let failed = cases.iter().map(|case| case.name).filter(|name| failed.contains(&(*sin, *name)));
            if *sin == Sin::None {
                unnoticed.extend(failed.clone().map(|name| format!("{name} fails without a sin")));
            }
            let bold = |name| if named.contains(&name) { format!("**{name}**") } else { name.to_owned() };
            println!("| {sin:?} | {} |", failed.map(bold).collect::<Vec<_>>().join(", "));
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}
