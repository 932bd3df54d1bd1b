"""Thirteen properties that make a masked policy's RL correct, and the tests that hold them.

They are the list of the specification of Mask-GRPO here (masked.md, 7.8). A property is only as
good as its tests, so each is named, and this file fails where one of them is gone.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]

PROPERTIES: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "p1 sums to 1 and is the enumerated probability, given the noise; p2 does not sum to 1",
        (
            "plugins/masked/test_transitions.py::test_p1_is_the_probability_of_the_step_given_the_noise",
            "plugins/masked/test_transitions.py::test_p1_plain_is_exact_without_noise",
            "plugins/masked/test_transitions.py::test_p2_is_not_normalised",
            "plugins/masked/test_sampler.py::test_trajectory_densities_are_the_enumerated_probabilities",
            "plugins/masked/test_sampler.py::test_given_the_noise_frequencies_are_p1",
        ),
    ),
    2: (
        "the expected score of the AR-style density, given the step, is that of p1",
        (
            "plugins/masked/test_transitions.py::test_the_expected_score_of_ar_is_that_of_p1",
            "plugins/masked/test_transitions.py::test_ar_has_the_larger_score",
        ),
    ),
    3: (
        "AR-style and Plackett-Luce together give the gradient of the exact expected reward",
        (
            "plugins/masked/test_plackett_luce.py::test_ar_with_the_order_is_the_gradient_of_the_expected_reward",
            "plugins/masked/test_sampler.py::test_noise_ranks_positions_by_plackett_luce",
        ),
    ),
    4: (
        "states of the commit map are the rollout's canvases, and the releases sum to N",
        (
            "plugins/masked/test_sampler.py::test_states_of_the_commit_map_are_the_canvases_of_the_rollout",
            "plugins/masked/test_schedule.py::test_counts_release_every_position_once",
            "plugins/masked/test_schedule.py::test_cosine_counts_are_the_golden_ones",
        ),
    ),
    5: (
        "the update's log-probabilities are the rollout's; at ratio 1 the gradient is REINFORCE's",
        (
            "plugins/masked/test_sampler.py::test_the_update_scores_what_the_rollout_recorded",
            "plugins/showo/test_policy.py::test_conformance",
            "core/test_trainer.py::test_grpo_equals_reinforce_at_one_update",
            "core/test_exact_gradients.py::test_expected_gradient_is_exact",
        ),
    ),
    6: (
        "thresholds are numbers; as truth values they fail (B1 of the released code)",
        (
            "plugins/masked/test_sampler.py::test_thresholds_are_numbers_not_truth_values",
            "plugins/masked/test_transitions.py::test_a_truth_value_as_threshold_turns_p1_into_p2",
        ),
    ),
    7: (
        "a second update has ratios other than 1, clips, and takes the minimum term by term",
        (
            "core/test_trainer.py::test_a_second_update_moves_ratios_and_clips",
            "core/test_numbers.py::test_minimum_comes_before_the_mean",
        ),
    ),
    8: (
        "KL is 0 without gradient at the reference, positive with gradient away from it (B6)",
        (
            "core/test_trainer.py::test_kl_is_zero_at_the_reference_and_pulls_away_from_it",
            "plugins/masked/test_sampler.py::test_kl_at_the_reference_is_zero_with_zero_gradient",
            "plugins/masked/test_bounds.py::test_kl_pulls_the_bound_towards_the_reference",
        ),
    ),
    9: (
        "two processes over gloo have one gradient and one model, that of one process (B11)",
        (
            "core/test_trainer.py::test_two_processes_equal_one",
            "plugins/showo/test_processes.py::test_two_processes_equal_one_and_each_other",
        ),
    ),
    10: (
        "a batch is drawn as its samples one by one",
        ("plugins/masked/test_sampler.py::test_a_batch_is_drawn_as_its_samples_one_by_one",),
    ),
    11: (
        "a tiny Show-o with its tokenizer, and a tiny aMUSEd, come to draw the code rewarded",
        (
            "plugins/showo/test_learning.py::test_a_rewarded_code_is_drawn_more_often",
            "plugins/amused/test_learning.py::test_a_rewarded_code_is_drawn_more_often",
        ),
    ),
    12: (
        "MAGVIT-v2 has the published keys, codes that spell their bits, and the right sizes",
        (
            "plugins/showo/test_magvit.py::test_keys_shapes_and_dtypes_are_the_published_ones",
            "plugins/showo/test_magvit.py::test_every_code_round_trips_and_spells_its_bits",
            "plugins/showo/test_magvit.py::test_channel_0_is_the_highest_bit_and_zero_is_negative",
            "plugins/showo/test_magvit.py::test_sizes_of_the_full_model",
        ),
    ),
    13: (
        "prompts that are short, empty or too long have the published ids and mask",
        (
            "plugins/showo/test_layout.py::test_a_short_prompt_is_padded_on_the_left",
            "plugins/showo/test_layout.py::test_the_empty_prompt",
            "plugins/showo/test_layout.py::test_a_long_prompt_is_cut_and_still_ends",
            "plugins/showo/test_layout.py::test_attention_is_that_of_brute_force",
            "plugins/showo/test_loading.py::test_prompts_end_up_as_the_layout_says",
        ),
    ),
}


def test_there_are_thirteen():
    assert sorted(PROPERTIES) == list(range(1, 14))


@pytest.mark.parametrize("number", PROPERTIES)
def test_each_is_held_by_tests_that_exist(number):
    for test in PROPERTIES[number][1]:
        path, _, name = test.partition("::")
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, test
