//! A suite that can't fail proves nothing: engines with one defect each fail the cases that name it, and engines with
//! none fail no case.

use std::collections::{HashMap, HashSet};
use std::env;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use naru_conformance::{
    BoundedBus, Case, LiveLayer, SeverableLayer, Subject, bounded, bus, live, outage, store,
};
use naru_engines::Engines;
use naru_faults::{Outage, intercepted};
use tokio::task::JoinSet;

use super::Fresh;
use super::faulty_engine::{Defect, faulty};

/// Engines with this defect, in a new directory.
struct Faulty {
    fresh: Fresh,
    defect: Defect,
}

impl Faulty {
    fn new(defect: Defect) -> Self {
        // In memory where there is a file system for it: this is about rules, not about disks.
        let memory = Path::new("/dev/shm");
        let within = if memory.is_dir() { memory.to_owned() } else { env::temp_dir() };
        Self { fresh: Fresh { within, ..super::as_it_is() }, defect }
    }
}

#[async_trait]
impl<Part: From<Engines> + Clone + Send + Sync + 'static> Subject<Part> for Faulty {
    async fn open(&mut self) -> Part {
        let engines: Whole = self.fresh.open().await;
        faulty(engines.0, self.defect).into()
    }

    async fn reopen(&mut self) -> Part {
        if self.defect == Defect::ForgetsAtDeath {
            return self.open().await;
        }
        let engines: Whole = self.fresh.reopen().await;
        faulty(engines.0, self.defect).into()
    }

    /// A case that waits for what a faulty engine lost waits in vain.
    fn patience(&self) -> Duration {
        if self.defect == Defect::None { Duration::from_secs(30) } else { Duration::from_secs(3) }
    }
}

#[derive(Clone)]
struct Whole(Engines);

impl From<Engines> for Whole {
    fn from(engines: Engines) -> Self {
        Self(engines)
    }
}

#[tokio::test]
async fn every_defect_of_a_store_is_noticed() {
    check(
        store::CASES,
        Faulty::new,
        &[
            (Defect::None, &[]),
            (
                Defect::ForgetsAtDeath,
                &[
                    "i1_what_is_new_survives_death_and_is_open",
                    "i2_a_resend_is_recognised_after_death",
                    "i6_an_outcome_survives_death",
                    "m1_a_run_survives_death",
                    "p1_positions_survive_death",
                    "k3_changes_survive_death",
                    "u2_what_is_parked_survives_death",
                ],
            ),
            (Defect::ResendIsNew, &["i2_appending_again_answers_the_first_record"]),
            (Defect::ConflictUnnoticed, &["i3_other_content_is_a_conflict_and_changes_nothing"]),
            (Defect::AnswersOutOfOrder, &["i4_there_is_one_answer_per_entry_in_their_order"]),
            (Defect::OpenForgetsOrder, &["i5_open_lists_what_is_not_closed_oldest_first"]),
            (Defect::OpenEndsEarly, &["i5_a_walk_lists_every_open_entry_once"]),
            (Defect::NewestIsNot, &["i5_a_walk_lists_every_open_entry_once"]),
            (Defect::CloseOverwrites, &["i6_the_first_outcome_stands"]),
            (Defect::AfterAResend, &["i7_what_comes_after_a_resend_comes_after_its_first_try"]),
            (Defect::FindsNoResend, &["i2_a_resend_is_found_without_an_append"]),
            (Defect::RejectedStays, &["i8_what_was_rejected_may_be_appended_again"]),
            (Defect::OpenContentsDropped, &["i9_a_closed_entry_loses_its_content_and_an_open_one_does_not"]),
            (Defect::ContentStays, &["i9_a_closed_entry_loses_its_content_and_an_open_one_does_not"]),
            (Defect::ConflictOfNothing, &["i9_without_content_a_resend_is_recognised_by_its_key"]),
            (Defect::SendersWalkBeginsAgain, &["i11_what_a_sender_sent_to_a_room_is_walked_in_order"]),
            (
                Defect::RunGoesOnAfterConflict,
                &["m1_a_stopped_run_leaves_a_prefix", "m1_a_run_of_several_rooms_leaves_one_prefix"],
            ),
            (Defect::TakenPlaceAccepted, &["m2_a_place_is_taken_once", "m2_two_persisters_leave_no_gap"]),
            (Defect::RepeatedIdAccepted, &["m2_an_id_is_stored_once"]),
            (Defect::HeadsStale, &["m3_heads_count_every_finished_run"]),
            (Defect::WindowSaysThereIsNoMore, &["m4_windows_are_cut_and_say_whether_there_is_more"]),
            (
                Defect::UnreadNotCounted,
                &["m5_summaries_count_a_run_at_once", "p5_unread_is_summed_over_the_rooms_of_now"],
            ),
            (Defect::SendingIsNotReading, &["m5_sending_has_read_up_to_ones_own_message"]),
            (
                Defect::BumpIgnored,
                &[
                    "m6_bumped_rooms_stand_where_their_newest_message_puts_them",
                    "m6_bumping_again_or_with_an_older_message_changes_nothing",
                    "r5_rooms_are_listed_latest_activity_first",
                ],
            ),
            (Defect::BumpGoesBack, &["m6_bumping_again_or_with_an_older_message_changes_nothing"]),
            (
                Defect::ListByTheClock,
                &["m7_a_room_whose_message_was_saved_later_is_listed_before_whatever_the_clock_says"],
            ),
            (Defect::DeletedIsRemoved, &["m8_a_deleted_message_keeps_its_place"]),
            (Defect::DeletedAgain, &["m8_a_message_is_deleted_once"]),
            (Defect::MadeTwice, &["r1_a_room_is_made_once", "r1_of_many_at_the_same_time_one_is_made"]),
            (Defect::MembersOfTheLatestVersion, &["r2_the_members_at_a_version_never_change"]),
            (Defect::CurrentStale, &["r3_current_shows_a_finished_change"]),
            (Defect::SinceStale, &["r7_since_an_append_a_removal_before_it_is_shown"]),
            (
                Defect::ListEndsEarly,
                &[
                    "r5_rooms_are_listed_latest_activity_first",
                    "r5_a_walk_meets_every_room_that_did_not_move",
                ],
            ),
            (Defect::SettingsShared, &["r6_settings_are_the_members_own"]),
            (Defect::ContentsStay, &["i10_old_contents_are_forgotten"]),
            (Defect::ContentsGoTooSoon, &["i10_old_contents_are_forgotten"]),
            (Defect::ContentsWalkEndsEarly, &["i10_old_contents_are_forgotten"]),
            (Defect::ExpiredStay, &["m9_old_messages_are_removed_and_leave_no_gap"]),
            (Defect::ExpiresTooSoon, &["m9_old_messages_are_removed_and_leave_no_gap"]),
            (Defect::ExpiryEndsEarly, &["m9_old_messages_are_removed_and_leave_no_gap"]),
            (
                Defect::ExpiredIsUnread,
                &[
                    "m9_old_messages_are_removed_and_leave_no_gap",
                    "m9_a_rooms_newest_message_stays_as_a_tombstone",
                ],
            ),
            (Defect::VersionsStay, &["r8_versions_that_were_left_long_ago_are_forgotten"]),
            (Defect::VersionsGoTooSoon, &["r8_versions_that_were_left_long_ago_are_forgotten"]),
            (Defect::ForgottenIsTheLatest, &["r8_versions_that_were_left_long_ago_are_forgotten"]),
            (Defect::RoomsMiscounted, &["r9_a_users_rooms_are_counted"]),
            (Defect::LeftRoomsForgotten, &["r10_rooms_of_now_and_before_are_walked_in_order"]),
            (Defect::PositionsGoBackward, &["p1_positions_only_go_forward"]),
            (Defect::PositionBeyondHead, &["p2_a_position_never_passes_the_head"]),
            (
                Defect::MoveToldAlways,
                &["m5_sending_has_read_up_to_ones_own_message", "p3_a_move_is_told_once"],
            ),
            (Defect::StrangersMove, &["p4_only_members_move"]),
            (Defect::UnreadOfTheFirst, &["p5_unread_is_summed_over_the_rooms_of_now"]),
            (Defect::MutedCounts, &["p5_muted_rooms_do_not_count"]),
            (Defect::PositionsOfTheFirstRoom, &["p6_members_of_many_rooms_are_told_apart"]),
            (Defect::ForgetsAllMembers, &["p7_a_forgotten_member_is_as_a_new_one"]),
            (
                Defect::TokenWithTwoOwners,
                &["d1_a_token_belongs_to_its_last_claimant", "d2_claiming_again_replaces_the_token"],
            ),
            (Defect::NewTokenRemoved, &["d3_only_an_older_token_is_removed"]),
            (Defect::ContentShown, &["d2_claiming_again_replaces_the_token"]),
            (Defect::SeenDevicesForgotten, &["d4_a_device_that_was_not_seen_is_forgotten"]),
            (Defect::SpellingsAreTwoTokens, &["d5_spellings_of_a_token_are_one_token"]),
            (
                Defect::SessionsEndOnce,
                &["k1_sessions_end_with_a_later_epoch", "k1_of_many_at_the_same_time_each_counts"],
            ),
            (Defect::TokensComeBack, &["k1_tokens_end_forward_only"]),
            (Defect::BlocksBothWays, &["k2_a_block_list_is_its_users_own"]),
            (Defect::BlockListGrows, &["k2_a_full_block_list_takes_no_more"]),
            (Defect::RecordOfTheFirst, &["k4_each_user_is_answered_in_order"]),
            (Defect::AnyRoundCompletes, &["k5_an_erasure_is_under_way_until_its_last_round_is_completed"]),
            (Defect::OneBlockStays, &["k2_a_block_list_is_emptied"]),
            (Defect::RecordForgotten, &["u1_what_was_recorded_is_done"]),
            (Defect::ParksTheFirst, &["u2_what_is_parked_survives_death"]),
            (Defect::ReasonIgnored, &["u4_those_parked_for_a_reason_are_listed"]),
            (Defect::ListingTakesAway, &["u2_parking_again_replaces_the_entry"]),
            (Defect::ListForgetsItsOrder, &["u3_a_walk_meets_every_parked_push_in_order"]),
            (Defect::ListBeginsAgain, &["u3_a_walk_meets_every_parked_push_in_order"]),
            (Defect::FindsAnother, &["u3_one_is_found_by_its_event"]),
            (Defect::ParkedAgainIsDropped, &["u2_what_was_parked_again_is_another_entry"]),
            (Defect::ParkedGoesTooSoon, &["u5_what_was_parked_long_ago_is_forgotten"]),
            (Defect::ForgetsMoreThanAsked, &["u5_what_was_parked_long_ago_is_forgotten"]),
            (Defect::ParkedIsNotCounted, &["u5_what_was_parked_long_ago_is_forgotten"]),
            (Defect::RestoreForgotten, &["h1_each_restore_begins_an_epoch_of_its_own"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn every_defect_of_a_bus_is_noticed() {
    check(
        bus::CASES,
        Faulty::new,
        &[
            (Defect::None, &[]),
            (Defect::LosesEvents, &["b1_what_was_sent_arrives"]),
            (Defect::SendsTheBeginningOfABatch, &["b1_however_much_is_sent_together_it_arrives_whole"]),
            (Defect::KnowsOldEventsAndDropsThem, &["b1_sent_again_it_comes_again"]),
            (
                Defect::ForgetsAtDeath,
                &[
                    "b2_what_is_not_acknowledged_survives_death",
                    "b2_the_rest_of_what_was_sent_together_survives_death",
                    "b2_a_retry_and_its_delay_survive_death",
                ],
            ),
            (Defect::RoomOutOfOrder, &["b4_events_of_a_room_come_in_order"]),
            (Defect::RoomInTwoHands, &["b4_a_room_is_never_in_two_unacknowledged_batches"]),
            (Defect::DroppedToTheEnd, &["b4_what_is_dropped_comes_before_later_ones"]),
            (Defect::DeliveredTwice, &["b5_receivers_share_the_events"]),
            (Defect::BatchTooLarge, &["c1_a_batch_has_at_most_as_many_as_asked"]),
            (
                Defect::AckedAtReceive,
                &[
                    "b2_the_rest_of_what_was_sent_together_survives_death",
                    "b3_what_comes_again_has_the_same_event_id",
                    "c2_what_a_dropped_receiver_held_comes_again",
                    "s3_what_is_dropped_comes_with_the_same_attempt",
                ],
            ),
            (
                Defect::AckedComesAgain,
                &[
                    "s1_what_is_acknowledged_does_not_come_again",
                    "s1_of_what_was_sent_together_only_the_rest_comes_again",
                ],
            ),
            (
                Defect::PartAcksTheBatch,
                &[
                    "b2_the_rest_of_what_was_sent_together_survives_death",
                    "s1_of_what_was_sent_together_only_the_rest_comes_again",
                ],
            ),
            (Defect::RetryIsNoAttempt, &["s2_a_retry_comes_not_before_its_time_with_one_attempt_more"]),
            (
                Defect::RetryAtOnce,
                &[
                    "b2_a_retry_and_its_delay_survive_death",
                    "b4_what_is_retried_comes_before_later_ones",
                    "s2_a_retry_comes_not_before_its_time_with_one_attempt_more",
                    "s2_what_was_sent_together_is_retried_each_after_its_own_delay",
                ],
            ),
            (Defect::LongestDelayForAll, &["s2_what_was_sent_together_is_retried_each_after_its_own_delay"]),
        ],
    )
    .await;
}

#[tokio::test]
async fn every_defect_of_a_live_layer_is_noticed() {
    check(
        live::CASES,
        Faulty::new,
        &[
            (Defect::None, &[]),
            (Defect::LiveLosesInSilence, &["l1_what_is_lost_is_announced"]),
            (Defect::LiveOutOfOrder, &["l2_events_of_one_publisher_come_in_order"]),
            (Defect::LiveBlocksOnTheSlow, &["l3_a_subscription_that_is_not_read_delays_no_other"]),
            (Defect::SeqOnlyForEveryone, &["l1_what_is_for_others_may_come_as_seq_only"]),
            (Defect::SeqOnlyIsLost, &["l1_what_is_for_others_may_come_as_seq_only"]),
            (Defect::HasSessionIsAskedOnce, &["l1_what_is_for_others_may_come_as_seq_only"]),
            (
                Defect::ConfirmedToAllGateways,
                &["l4_confirmations_and_evictions_reach_the_named_gateway_only"],
            ),
            (Defect::ChangesOfUsersWhoAreHereOnly, &["l5_a_change_of_a_user_reaches_every_gateway"]),
            (Defect::DeadLeasesCount, &["e1_a_session_counts_while_its_gateways_lease_does"]),
            (Defect::AttachShowsLate, &["e2_attach_and_detach_show_at_once"]),
            (Defect::DetachTakesAllSessions, &["e3_detaching_leaves_the_other_sessions"]),
            (Defect::ReplacedStillCounts, &["e4_a_device_that_attaches_again_replaces_its_session"]),
            (
                Defect::LastSeenIsAlwaysNow,
                &[
                    "e5_last_seen_is_now_while_connected",
                    "e5_last_seen_is_the_last_renewal_of_a_dead_gateway",
                ],
            ),
            (Defect::ForgetsTheConnected, &["e8_a_forgotten_user_was_never_seen"]),
            (Defect::LapseIsNotTold, &["e6_a_renewal_tells_whether_the_lease_has_lapsed"]),
            (Defect::AttachedByUser, &["e7_attached_shows_single_sessions"]),
            (Defect::ProofForAnyone, &["o1_a_proof_is_of_one_message_and_one_user"]),
            (Defect::ProofsAreCutOff, &["o2_any_number_is_recorded_and_asked_at_once"]),
            (Defect::LeaseToEveryone, &["a1_a_lease_has_one_holder", "a1_a_lease_ends_after_its_time"]),
        ],
    )
    .await;
}

/// Cut off, and it may say of whom it can't know that they are offline.
struct FaultyCutOff(Faulty);

#[async_trait]
impl Subject<SeverableLayer> for FaultyCutOff {
    async fn open(&mut self) -> SeverableLayer {
        let outage = Arc::new(Outage::default());
        let engines: Whole = self.0.fresh.open().await;
        let layer = LiveLayer::from(faulty(intercepted(engines.0, outage.clone()), self.0.defect));
        let sever = Arc::new(move || {
            outage.cut(true);
            Box::pin(async {}) as naru_conformance::Eventually<()>
        });
        SeverableLayer { layer, sever }
    }

    async fn reopen(&mut self) -> SeverableLayer {
        self.open().await
    }
}

#[tokio::test]
async fn to_take_unknown_for_offline_is_noticed() {
    const DEFECTS: &[Named] =
        &[(Defect::None, &[]), (Defect::UnknownIsOffline, &["e0_unknown_is_not_offline"])];
    check(outage::CASES, |defect| FaultyCutOff(Faulty::new(defect)), DEFECTS).await;
}

/// With room for a few events only, or so it says.
struct FaultyNarrow(Faulty);

#[async_trait]
impl Subject<BoundedBus> for FaultyNarrow {
    async fn open(&mut self) -> BoundedBus {
        const CAPACITY: u32 = 100;
        let Faulty { fresh, defect } = &mut self.0;
        let factor = if *defect == Defect::GrowsWithoutBound { 100 } else { 1 };
        fresh.options.buffered_events = factor * CAPACITY;
        let engines: Whole = fresh.open().await;
        let bus = faulty(engines.0, *defect).bus;
        BoundedBus { bus, hops: &["accepted", "saved"], capacity: CAPACITY as usize }
    }

    async fn reopen(&mut self) -> BoundedBus {
        self.open().await
    }
}

#[tokio::test]
async fn every_defect_of_a_full_bus_is_noticed() {
    const DEFECTS: &[Named] =
        &[(Defect::None, &[]), (Defect::GrowsWithoutBound, &["b6_a_full_queue_makes_send_wait"])];
    check(bounded::CASES, |defect| FaultyNarrow(Faulty::new(defect)), DEFECTS).await;
}

/// A defect and the cases that name it.
type Named = (Defect, &'static [&'static str]);

/// Runs every case on every defect, prints what failed, and demands that the named cases are among it.
async fn check<Part, S>(cases: &'static [Case<Part>], subject: fn(Defect) -> S, defects: &'static [Named])
where
    Part: Clone + Send + Sync + 'static,
    S: Subject<Part> + 'static,
{
    let mut wrong = Vec::new();
    // The engine without a defect runs alone, since only there it matters what comes too late; of the others a few at a time:
    // most of a run is waiting.
    let (sound, faulty) = defects.split_at(1);
    for group in [sound].into_iter().chain(faulty.chunks(5)) {
        let mut runs = JoinSet::new();
        let mut names = HashMap::new();
        for ((defect, _), case) in group.iter().flat_map(|named| cases.iter().map(move |case| (named, case)))
        {
            names.insert(runs.spawn(case.run(subject(*defect))).id(), (*defect, case.name));
        }
        let mut failed = HashSet::new();
        while let Some(run) = runs.join_next().await {
            if let Err(failure) = run {
                failed.insert(names[&failure.id()]);
            }
        }
        for (defect, named) in group {
            for case in cases.iter().filter(|case| named.contains(&case.name)) {
                // On a busy machine what comes too early may be met late: once more, alone.
                if failed.contains(&(*defect, case.name))
                    || tokio::spawn(case.run(subject(*defect))).await.is_err()
                {
                    failed.insert((*defect, case.name));
                } else {
                    wrong.push(format!("{} does not notice {defect:?}", case.name));
                }
            }
            let is_a_case = |name: &&str| cases.iter().any(|case| case.name == *name);
            assert!(named.iter().all(is_a_case), "cases of {defect:?}");
            let failed = cases.iter().map(|case| case.name).filter(|name| failed.contains(&(*defect, *name)));
            if *defect == Defect::None {
                wrong.extend(failed.clone().map(|name| format!("{name} fails without a defect")));
            }
            let bold = |name| if named.contains(&name) { format!("**{name}**") } else { name.to_owned() };
            println!("| {defect:?} | {} |", failed.map(bold).collect::<Vec<_>>().join(", "));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
