//! Every store keeps the same contract: first outcomes, exact totals, complete streams.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use test_support::cosmos as cosmos_support;

mod contract {
    pub(super) use test_support::contract_budget::*;
    pub(super) use test_support::contract_records::*;
    pub(super) use test_support::contract_store::*;
    pub(super) use test_support::contract_unstorable::*;
}

/// The suite on one backend: `$open` gives a store, and what must live as long as it.
macro_rules! contract {
    ($open:expr; $($behaviour:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let (store, _alive) = $open.await;
                crate::store::contract::$behaviour(std::sync::Arc::new(store)).await;
            }
        )*
    };
}

macro_rules! contract_on {
    ($($backend:ident = $open:expr;)*) => {
        $(
            mod $backend {
                contract! { $open;
                    the_first_outcome_of_a_job_wins,
                    the_same_outcome_recorded_again_is_not_the_first,
                    a_job_that_is_there_twice_in_one_call_is_recorded_once,
                    proofs_come_in_the_order_of_the_outcomes,
                    concurrent_duplicates_are_counted_once,
                    of_many_who_create_a_batch_one_does,
                    a_batchs_senders_only_become_more_doubtful,
                    look_ups_are_answered_in_the_order_asked,
                    an_outcome_comes_back_as_it_was,
                    a_body_of_three_megabytes_is_kept,
                    five_thousand_outcomes_stream_completely,
                    outcomes_stream_by_position_when_asked,
                    briefs_say_the_same_as_the_outcomes,
                    running_sums_tell_deployments_models_tiers_and_minutes_apart,
                    batches_are_listed_newest_first,
                    a_batch_is_written_over,
                    a_batchs_state_changes_only_from_where_it_may,
                    of_state_changes_at_the_same_time_one_wins,
                    a_budget_is_claimed_and_given_back,
                    of_claims_at_the_same_time_no_more_are_granted_than_allowed,
                    a_batch_can_be_announced_after_its_first_outcomes,
                    of_an_unknown_batch_nothing_is_known,
                    a_dead_outcome_is_withdrawn_and_what_it_cost_stays,
                    payloads_of_any_size_come_back_until_they_are_deleted,
                    a_note_is_written_by_who_knew_what_it_was,
                    notes_are_listed_by_kind_until_they_are_removed,
                    words_are_heard_as_they_were_said_until_they_are_taken_back,
                    of_words_said_at_the_same_time_the_later_reader_hears_both,
                    empty_calls_do_nothing,
                    an_answer_with_a_bad_byte_is_recorded_alone_as_failed,
                    counts_beyond_belief_spoil_no_sum,
                    every_byte_may_come_in_a_body,
                    a_reply_with_texts_of_any_length_is_recorded,
                }
            }
        )*
    };
}

contract_on! {
    local = crate::store::open_local();
    cosmos = crate::store::open_cosmos();
}

async fn open_local() -> (promptmill::store::local::LocalStore, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let database = promptmill::sqlite::Database::open(directory.path()).unwrap();
    (promptmill::store::local::LocalStore::new(database), directory)
}

async fn open_cosmos() -> (promptmill::store::cosmos::CosmosStore, ()) {
    (cosmos_support::store(cosmos_support::shared_host()).await, ())
}
