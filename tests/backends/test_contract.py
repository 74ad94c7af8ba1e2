"""Our backends keep the contract, each on its database."""

import pytest

from queuetopia.backends.contract import BackendContract


@pytest.mark.capability("E23", "H1", "J6")
class TestBackendContract(BackendContract):
    # The capabilities that a test of the contract accepts stand here: other projects run it without these marks.
    CAPABILITIES = {
        "test_a_queue_is_claimed_by_one_of_two_nodes_at_once": ("E16", "E33", "Q6"),
        "test_each_claim_of_a_queue_has_a_higher_fence": ("E33",),
        "test_jobs_of_a_queue_are_claimed_by_time_and_then_in_order_of_creation": ("E33", "W9"),
        "test_an_attempted_job_holds_back_all_others_whatever_their_time": ("Q2", "E16", "E33"),
        "test_the_queue_that_has_been_due_longest_comes_first": ("H24", "H14"),
        "test_only_the_scopes_asked_for_are_claimed_each_with_its_own_queue_of_a_name": ("J9", "E31", "E14", "H16"),
        "test_creators_with_the_same_keys_do_not_deadlock_while_their_jobs_end": ("X3",),
        "test_params_that_come_between_a_claim_and_its_start_are_not_lost": ("X3",),
        "test_a_rollback_takes_a_job_and_params_back": ("X3",),
        "test_a_paused_queue_is_not_claimed_until_it_is_resumed": ("H29",),
        "test_a_paused_scope_is_not_claimed_until_it_is_resumed": ("H29",),
        "test_a_count_of_attempts_at_its_end_breaks_no_other_queue": ("J10",),
        "test_a_verb_between_lock_and_mark_is_obeyed": ("E5", "E27"),
        "test_the_rows_after_each_verdict": ("Q1", "H18", "E3", "E8"),
        "test_the_next_attempt_comes_after_exactly_the_delay": ("E3",),
        "test_each_failure_leaves_an_entry": ("J15", "Q1"),
        "test_an_interrupted_attempt_leaves_an_entry_that_does_not_count": ("J15",),
        "test_only_the_newest_errors_are_kept": ("J15",),
        "test_a_kept_queue_goes_on_with_its_next_job_under_a_higher_fence": ("Q2", "E33"),
        "test_a_stale_result_changes_nothing": ("E33", "H18"),
        "test_a_result_recorded_twice_is_stale_the_second_time": ("E33",),
        "test_a_running_job_is_left_alone_by_every_verb_but_cancel": ("E5", "E27", "H18"),
        "test_a_request_to_stop_turns_what_has_not_ended_into_cancelled": ("H34", "H18"),
        "test_a_queue_paused_while_its_job_runs_finishes_it_and_starts_nothing": ("H29",),
        "test_creating_a_job_touches_no_queue_before_the_commit": ("Q19", "H13", "E19"),
        "test_transactions_that_create_in_opposite_order_do_not_wait_for_each_other": ("E18",),
        "test_a_transaction_that_creates_jobs_delays_no_scheduler": ("E18",),
        "test_a_transaction_with_one_snapshot_creates_jobs_while_their_queue_is_served": ("E15",),
        "test_a_persons_open_transaction_keeps_only_its_own_queue_from_being_claimed": ("E18",),
        "test_a_persons_open_transaction_keeps_only_its_own_queue_from_being_recorded": ("E18",),
        "test_a_result_that_is_no_longer_ours_is_stale_though_somebody_has_its_row_locked": ("E18",),
        "test_a_job_created_while_a_persons_transaction_is_open_waits_for_it_no_longer_than_that": ("E18",),
        "test_a_due_queue_that_is_locked_does_not_stand_before_the_others": ("E18",),
        "test_a_wake_of_many_queues_wakes_those_that_are_not_locked": ("E18",),
        "test_a_job_cancelled_between_its_claim_and_its_start_has_no_attempt": ("H5",),
        "test_the_second_look_comes_back_to_a_queue_that_was_locked": ("E18",),
        "test_wakes_of_the_same_queues_do_not_deadlock": ("E18",),
        "test_wakes_and_the_second_look_at_the_same_queues_do_not_deadlock": ("E18",),
        "test_claims_and_wakes_of_the_same_queues_do_not_deadlock": ("E18",),
        "test_verbs_of_many_people_on_a_new_queue_do_not_deadlock": ("E18",),
        "test_a_verb_that_a_deadlock_rolls_back_is_done_again": ("E18",),
        "test_creators_in_commit_order_do_not_deadlock": ("E18",),
        "test_no_wake_up_is_lost_and_no_queue_runs_twice_under_fire": ("E18", "E33", "Q6", "H22"),
        "test_nothing_is_lost_or_run_twice_where_transactions_are_serializable_by_default": ("E18",),
        "test_the_sweep_goes_through_all_names_in_chunks": ("Q3",),
        "test_names_that_look_alike_are_different_queues": ("Q3", "H16"),
        "test_scopes_that_look_alike_are_different": ("H16",),
        "test_a_hundred_new_names_need_nothing_but_their_first_job": ("Q3",),
        "test_a_node_is_registered_beats_and_goes": ("H26", "E7"),
        "test_a_fenced_node_is_refused_and_stays_fenced": ("E33",),
        "test_the_claims_of_a_dead_node_are_told_and_counted": ("E9", "E20"),
        "test_a_problem_stays_on_its_queue_until_the_next_claim": ("E30", "J10"),
        "test_a_new_node_tries_queues_with_a_problem_at_once": ("E30",),
        "test_corrupt_params_are_claimed_as_they_are_and_break_no_other_queue": ("J10",),
        "test_a_corrupt_history_of_errors_is_begun_anew_and_breaks_no_other_queue": ("J10",),
        "test_a_queue_whose_lock_somebody_else_has_is_passed_over_and_claimed_later": ("E14",),
        "test_a_session_hears_of_a_new_job": ("J3",),
    }
    SLOW = (
        "test_no_wake_up_is_lost_and_no_queue_runs_twice_under_fire",
        "test_nothing_is_lost_or_run_twice_where_transactions_are_serializable_by_default",
    )


for _name, _capabilities in TestBackendContract.CAPABILITIES.items():
    pytest.mark.capability(*_capabilities)(getattr(TestBackendContract, _name))
for _name in TestBackendContract.SLOW:
    pytest.mark.slow(getattr(TestBackendContract, _name))
    pytest.mark.timeout(300)(getattr(TestBackendContract, _name))
