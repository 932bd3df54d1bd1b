"""Mutations: bugs injected one at a time, each of which must make a named test fail.

    python tests/mutations.py [--list] [--only NAME ...] [--processes 2]

Every bug is written into a temporary copy of the tree, never into the tree itself, and its test
runs there in a process of its own. The command wants three things of every mutation: that its
source text stands exactly once (after a refactoring it must not do nothing unseen), that its test
passes without it, and that with it that test fails where it looks, by an assertion or by the error
named here, not by a broken import. It prints a table and exits with 1 if a bug survives.

This file is also the pytest plugin that the children load: it checks that they test the copy, and
writes down how every test ended.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("genrl_core", "plugins", "tests", "recipes", "pyproject.toml")
TREE, REPORT = "GENRL_MUTATION_TREE", "GENRL_MUTATION_REPORT"
"""What tells a child where its copy is, and where to write how its tests ended."""
TIMEOUT = 300.0

NUMBERS = "tests/core/test_numbers.py::"
FAR = "tests/core/test_bounded_ratios.py::"
STREAMS = "tests/core/test_streams.py::"
GRADIENTS = "tests/core/test_exact_gradients.py::"
TWO_PASS = "tests/core/test_two_pass.py::"
TRAINER = "tests/core/test_trainer.py::"
PRECISION = "tests/core/test_precision.py::"
REWARD_VIEW = "tests/core/test_reward_view.py::"
FAULTS = "tests/core/test_learner_faults.py::"
EMPTY = "tests/core/test_empty_iterations.py::"
COMBINED = "tests/core/test_combined_rewards.py::"
CHECKPOINT = "tests/core/test_checkpoint.py::"
VIEWS = "tests/core/test_learner_views.py::"
RECIPE = "tests/core/test_recipe.py::"
NEGOTIATE = "tests/core/test_check.py::"
BUILD = "tests/core/test_build.py::"
RESUME = "tests/core/test_resume.py::"
STEPS = "tests/plugins/masked/test_transitions.py::"
SAMPLER = "tests/plugins/masked/test_sampler.py::"
MASKED = "tests/plugins/masked/test_policy.py::"
SCHEDULE = "tests/plugins/masked/test_schedule.py::"
BOUNDS = "tests/plugins/masked/test_bounds.py::"
RELEASE = "tests/plugins/masked/test_release.py::"
DIFFUSION = "tests/plugins/diffusion/"
LAYOUT = "tests/plugins/showo/test_layout.py::"
NETWORK = "tests/plugins/showo/test_network.py::"
SHOWO = "tests/plugins/showo/test_policy.py::"
READING = "tests/plugins/autoregressive/test_reading.py::"
MAGVIT = "tests/plugins/showo/test_magvit.py::"
MAGVIT_WEIGHTS = "tests/plugins/showo/test_magvit_weights.py::"
AMUSED = "tests/plugins/amused/test_policy.py::"
ATTENTION = "tests/core/test_attention.py::"
REWARDS = "tests/plugins/rewards/test_networks.py::"
REWARD_IMAGES = "tests/plugins/rewards/test_images.py::"
REWARD_FILES = "tests/plugins/rewards/test_loading.py::"
GENEVAL = "tests/plugins/rewards/test_geneval.py::"
JUDGE = "tests/plugins/rewards/test_remote.py::"


@dataclass(frozen=True)
class Mutation:
    """One bug.

    Attributes:
        name: how ``--only`` calls it.
        what: the bug in one sentence, with its number where it is one of Mask-GRPO's released code.
        path, old, new: the file, the source text that stands there once, and what replaces it.
        test: the id of the test that must fail; without brackets, any of its cases.
        error: how it fails other than by an assertion: the name of the exception or of a parent.
    """

    name: str
    what: str
    path: str
    old: str
    new: str
    test: str
    error: str = ""


MUTATIONS = (
    # The densities of Mask-GRPO.
    Mutation(
        "boolean_threshold",
        "B1: p1's threshold is kept as a truth value, every code is below it, p1 becomes p2",
        "plugins/genrl_masked/sampler.py",
        "return {name: tensor.detach() for name, tensor in action.items()}",
        "return {n: t.detach().bool() if n == 'thresholds' else t.detach()"
        " for n, t in action.items()}",
        SAMPLER + "test_thresholds_are_numbers_not_truth_values",
    ),
    Mutation(
        "plain_threshold_in_p1",
        "B2: the threshold holds the released token's noise and not that of the position judged",
        "plugins/genrl_masked/transitions.py",
        "return centred(log_probs, least - noise)",
        "return centred(log_probs, least.expand(noise.shape))",
        STEPS + "test_p1_is_the_probability_of_the_step_given_the_noise",
    ),
    Mutation(
        "dropped_remask_term",
        "p1 leaves out that the other positions stayed masked",
        "plugins/genrl_masked/transitions.py",
        "    return p2(log_probs, codes, released) + _sum(",
        "    return p2(log_probs, codes, released) + 0 * _sum(",
        SAMPLER + "test_given_the_noise_frequencies_are_p1",
    ),
    Mutation(
        "not_strictly_below",
        "the code at the threshold itself counts as below it",
        "plugins/genrl_masked/transitions.py",
        "sign.mul_(2).sub_(1)",
        "sign.mul_(2).add_(1)",
        STEPS + "test_a_code_at_the_threshold_is_not_below_it",
    ),
    Mutation(
        "ar_states_hold_remasked_tokens",
        "B8: after step 0 of AR-style every state is scored with all its positions filled in",
        "plugins/genrl_masked/sampler.py",
        '"tokens": tokens.masked_fill(masked, 0), "masked": masked, "released": released,',
        '"tokens": tokens, "released": released, "masked": masked'
        ' & ((k == 0).unsqueeze(1) | (self.config.transition != "ar")),',
        SAMPLER + "test_states_of_the_commit_map_are_the_canvases_of_the_rollout",
    ),
    Mutation(
        "temperature_forgotten",
        "log_prob is that of temperature 1, whatever the codes were drawn with",
        "plugins/genrl_masked/sampler.py",
        '        codes, released = action["codes"], action["released"]\n',
        '        codes, released = action["codes"], action["released"]\n'
        "        self.log_probs = (self.log_probs * self.config.temperature).log_softmax(-1)\n",
        SAMPLER + "test_trajectory_densities_are_the_enumerated_probabilities",
    ),
    Mutation(
        "guidance_forgotten",
        "the update scores without the guidance that the rollout was drawn with",
        "plugins/genrl_masked/sampler.py",
        "guided_outputs(policy, canvas, cond, config.guidance_scale, positions)",
        "guided_outputs(policy, canvas, cond,"
        " 1.0 if torch.is_grad_enabled() else config.guidance_scale, positions)",
        SAMPLER + "test_the_update_scores_what_the_rollout_recorded",
    ),
    Mutation(
        "shifted_tokens",
        "every position is scored with its neighbour's code",
        "plugins/genrl_masked/transitions.py",
        "return log_probs.gather(-1, codes.unsqueeze(-1)).squeeze(-1)",
        "return log_probs.gather(-1, codes.roll(1, -1).unsqueeze(-1)).squeeze(-1)",
        STEPS + "test_p1_plain_is_exact_without_noise",
    ),
    Mutation(
        "last_token_never_credited",
        "B4: the last step leaves one position out of the books although it was asked to release",
        "plugins/genrl_masked/schedule.py",
        "        counts[-1] += 1\n",
        "        counts[-1] += 0\n",
        SCHEDULE + "test_counts_release_every_position_once",
    ),
    Mutation(
        "noise_decays_cumulatively",
        "B3: the linear decay of the noise multiplies up and is gone after half of the steps",
        "plugins/genrl_masked/schedule.py",
        'if decay == "cumulative":',
        'if decay in ("cumulative", "linear"):',
        SCHEDULE + "test_linear_temperatures_are_the_golden_ones",
    ),
    Mutation(
        "bound_over_every_position",
        "the masked cross-entropy counts positions that the network can see",
        "plugins/genrl_masked/policy.py",
        "-found.masked_fill(~masked, 0.0).sum(-1)",
        "-found.sum(-1)",
        MASKED + "test_matching_error_is_the_mean_cross_entropy_of_the_masked",
    ),
    Mutation(
        "global_draw_in_the_sampler",
        "codes are drawn from torch's global generator and not from the sample's stream",
        "plugins/genrl_masked/sampler.py",
        "streams.uniform(self.masked.shape[1])",
        "torch.rand(self.masked.shape)",
        SAMPLER + "test_the_global_generator_changes_nothing",
    ),
    # Masked bounds, and release by chance.
    Mutation(
        "a_first_ratio_per_update",
        "every update of an iteration draws its first mask ratio anew, and nothing rises evenly",
        "plugins/genrl_masked/corruption.py",
        "streams.across_updates if structured else streams",
        "streams",
        BOUNDS + "test_the_learner_keeps_the_first_ratio_and_changes_the_masks",
    ),
    Mutation(
        "one_set_scored_twice",
        "the second draw of a pair masks the first one's set and not its complement",
        "plugins/genrl_masked/corruption.py",
        "[torch.ones_like(chosen), chosen, ~chosen]",
        "[torch.ones_like(chosen), chosen, chosen]",
        BOUNDS + "test_a_set_and_its_complement_score_every_position_once",
    ),
    Mutation(
        "importance_forgotten",
        "positions masked with probability t are summed without the 1 / t",
        "plugins/genrl_masked/policy.py",
        'return 1 / corruption["ratio"]',
        'return torch.ones_like(corruption["ratio"])',
        BOUNDS + "test_enough_nodes_give_the_mean_over_all_orders_exactly",
    ),
    Mutation(
        "terms_that_do_not_exist",
        "positions that a draw does not mask count as terms of the bound",
        "genrl_core/loop/views/elbo.py",
        "mask = events > 0",
        "mask = events > -1",
        BOUNDS + "test_terms_are_the_masked_positions",
    ),
    Mutation(
        "draws_summed_alike",
        "draws that are combined into one term lose their weights",
        "genrl_core/loop/views/elbo.py",
        "weighted.mean(0)",
        "split_evals(draws, self.num_evals).mean(0)",
        BOUNDS + "test_combined_tokens_add_up_to_the_combined_sample",
    ),
    Mutation(
        "release_without_its_probability",
        "the density of a step that releases by chance lacks which positions it released",
        "plugins/genrl_masked/release.py",
        "return terms + self._log_pattern(",
        "return terms + 0 * self._log_pattern(",
        RELEASE + "test_densities_are_those_of_the_definition_and_sum_to_one",
    ),
    # Ratios, surrogates, KL, reductions.
    Mutation(
        "ratio_to_itself",
        "B5: the ratio is taken to the current log-density detached: always 1, the clip never acts",
        "plugins/genrl_objectives/grpo.py",
        'config, old = self.config, batch.need("old_log_probs")',
        "config, old = self.config, batch.log_probs.detach()",
        TRAINER + "test_a_second_update_moves_ratios_and_clips",
    ),
    Mutation(
        "minimum_after_the_mean",
        "B7: the smaller of two means is taken and not the mean of the smaller terms",
        "genrl_core/functional.py",
        "return -torch.minimum(ratio * advantage, clipped * advantage)",
        "gain = ratio * advantage\n"
        "    return 0 * gain - torch.minimum(gain.mean(), (clipped * advantage).mean())",
        NUMBERS + "test_minimum_comes_before_the_mean",
    ),
    Mutation(
        "clip_bounds_swapped",
        "the ratio is clipped to [1 - epsilon_high, 1 + epsilon]",
        "genrl_core/functional.py",
        "ratio.clamp(1 - epsilon, 1 + high)",
        "ratio.clamp(1 - high, 1 + epsilon)",
        NUMBERS + "test_clipped_surrogate_by_hand",
    ),
    Mutation(
        "kl_against_itself",
        "B6: the KL takes the policy's own detached log-density as the reference: value 0 for ever",
        "plugins/genrl_objectives/kl.py",
        'reference, estimator = batch.need("reference"), self.config.estimator',
        "reference, estimator = batch.log_probs.detach(), self.config.estimator",
        TRAINER + "test_kl_is_zero_at_the_reference_and_pulls_away_from_it",
    ),
    Mutation(
        "kl_detached",
        "B6: the KL has a value and no gradient",
        "plugins/genrl_objectives/kl.py",
        "kl_estimate(batch.log_probs, reference, old, estimator)",
        "kl_estimate(batch.log_probs.detach(), reference, old, estimator)",
        TRAINER + "test_kl_is_zero_at_the_reference_and_pulls_away_from_it",
    ),
    Mutation(
        "kl_ratio_detached",
        "the unbiased KL keeps its ratio out of the gradient, which is then the forward KL's",
        "genrl_core/functional.py",
        "far, ratio * _k3(x))",
        "far, ratio.detach() * _k3(x))",
        GRADIENTS + "test_unbiased_kl_has_the_gradient_of_the_closed_form",
    ),
    Mutation(
        "ratio_without_an_end",
        "the exponent of a ratio is not bounded: inf, and NaN where a clip or a 0 multiplies it",
        "genrl_core/functional.py",
        "return log_ratio.clamp(-MOST_NATS, MOST_NATS).exp()",
        "return log_ratio.exp()",
        FAR + "test_a_clipped_or_weightless_term_has_gradient_zero_at_any_log_ratio",
    ),
    Mutation(
        "divergence_cut_off",
        "beyond the bound k3 stays what it is there, and what left the reference is let go",
        "genrl_core/functional.py",
        "math.exp(MOST_NATS) * past + x",
        "0 * past + x",
        FAR + "test_a_divergence_goes_on_with_its_slope_at_twenty_nats",
    ),
    Mutation(
        "divergence_of_the_wrong_sign",
        "where r is bounded, the slope of r k3 has the sign that x had at the bound",
        "genrl_core/functional.py",
        "slope, size = (ratio * held.abs()).detach(), x.abs()",
        "slope, size = (ratio * held).detach(), x",
        FAR + "test_a_divergence_always_pulls_towards_the_reference",
    ),
    Mutation(
        "no_dual_clip_by_default",
        "without a delta in the recipe a bad sample may weigh as much as its ratio",
        "plugins/genrl_objectives/grpo.py",
        "delta: Delta = 10.0",
        "delta: Delta = None",
        "tests/plugins/objectives/test_far_ratios.py::"
        "test_by_default_no_bad_sample_is_arbitrarily_heavy",
    ),
    Mutation(
        "clipped_before_the_mean",
        "D3PO clips the sum over a step's elements and compares its mean",
        "plugins/genrl_objectives/dpo.py",
        'batch.events.clamp(min=1) if config.over == "mean" else 1',
        "1",
        "tests/plugins/objectives/test_presets.py::test_d3po_clips_the_ratio_that_it_compares",
    ),
    Mutation(
        "weight_of_another_space",
        "the adaptive weight of NFT is that of the prediction and not of the clean sample",
        "plugins/genrl_diffusion/policy.py",
        "scale = self._clean_slope(alpha, sigma)",
        "scale = torch.ones_like(sigma)",
        DIFFUSION + "test_nft.py::test_normalised_errors_are_those_of_the_clean_sample",
    ),
    Mutation(
        "lag_from_the_start",
        "the lag of the old weights begins at once, whatever weights.lagging.flat says",
        "genrl_core/loop/settings.py",
        "self.ramp * max(0, iteration - self.flat)",
        "self.ramp * iteration",
        "tests/core/test_weights.py::test_a_ramp_begins_after_a_flat_stretch",
    ),
    Mutation(
        "one_event_for_all_tokens",
        "a bound that sums over all tokens says that it is one event: over: mean does nothing",
        "plugins/genrl_masked/policy.py",
        "torch.full_like(events[:, :, :1], events.shape[2])",
        "torch.ones_like(events[:, :, :1])",
        BOUNDS + "test_the_bound_of_a_sample_counts_all_its_tokens",
    ),
    Mutation(
        "sequence_ratio_per_term",
        "level: sequence quietly keeps one ratio per term",
        "genrl_core/functional.py",
        "difference = difference.sum(0, keepdim=True).expand_as(difference)",
        "difference = difference.clone()",
        GRADIENTS + "test_log_ratio_levels",
    ),
    Mutation(
        "mask_dropped_in_reduction",
        "terms that do not exist are summed into the loss",
        "genrl_core/functional.py",
        "        kept = mask & valid\n",
        "        kept = valid.expand_as(mask)\n",
        NUMBERS + "test_reductions_match_loops",
    ),
    Mutation(
        "denominators_per_chunk",
        "a chunk divides by its own number of terms and not by the batch's",
        "genrl_core/functional.py",
        "count = (denominator_mask & valid).sum(0).to(x.dtype)",
        "count = (mask & valid).sum(0).to(x.dtype)",
        NUMBERS + "test_parts_of_a_batch_add_up",
    ),
    # How the gradient travels.
    Mutation(
        "double_division",
        "B10: the loss, a mean already, is divided by the number of chunks again",
        "genrl_core/loop/gradient.py",
        "            value.backward()",
        "            (value / len(chunks)).backward()",
        TWO_PASS + "test_two_passes_equal_one",
        error="GenRLError",
    ),
    Mutation(
        "separable_by_default",
        "an objective that says nothing is taken for a sum over terms",
        "genrl_core/interfaces/objective.py",
        "separable: bool = False",
        "separable: bool = True",
        TWO_PASS + "test_two_passes_equal_one",
        error="GenRLError",
    ),
    Mutation(
        "parts_that_do_not_add_up",
        "chunks whose losses are not the batch's go unnoticed",
        "genrl_core/loop/gradient.py",
        "        if moves:\n            _check_parts",
        "        if moves and len(every) > 10**9:\n            _check_parts",
        TWO_PASS + "test_a_coupled_loss_that_says_separable_stops_the_run",
    ),
    Mutation(
        "sums_without_gradients",
        "only the sums of the chunks are compared, which agree where nothing has moved",
        "genrl_core/loop/gradient.py",
        "gap > precision * steepest or abs(",
        "abs(",
        TWO_PASS + "test_a_coupled_loss_that_says_separable_stops_the_run",
    ),
    Mutation(
        "no_room_for_rounding",
        "losses that cancel are compared by the size of what is left of them",
        "genrl_core/loop/gradient.py",
        "size += float((gradient.abs()",
        "size += 0 * float((gradient.abs()",
        TWO_PASS + "test_rounding_is_no_coupling",
        error="GenRLError",
    ),
    Mutation(
        "two_drawing_slots",
        "an objective may name the weights that draw, which nobody reads, beside its config",
        "genrl_core/loop/objectives.py",
        '("draw_with", "draws_with")):',
        '("view", "view_wanted")):',
        BUILD + "test_an_objective_does_not_say_what_its_config_declares",
    ),
    Mutation(
        "a_step_without_a_gradient",
        "a gradient of 0 is handed to the optimizer, whose momentum and decay move the weights",
        "genrl_core/loop/update.py",
        "taken = problem is None and moves",
        "taken = problem is None",
        EMPTY + "test_an_iteration_without_a_gradient_moves_nothing",
    ),
    Mutation(
        "averages_of_nothing",
        "averages go on in an iteration that took no step",
        "genrl_core/loop/trainer.py",
        'if learned["skipped"] < 1:',
        'if learned["skipped"] <= 1:',
        EMPTY + "test_an_iteration_without_a_gradient_moves_nothing",
    ),
    Mutation(
        "run_without_its_model",
        "the weights of a run go into a policy that does not look which model they belong to",
        "genrl_core/recipe/weights.py",
        'getattr(config, "base", "") is None:',
        'getattr(config, "base", "") == "":',
        "tests/plugins/autoregressive/test_causal_lm.py::"
        "test_a_run_begins_with_what_another_ended_with",
    ),
    Mutation(
        "done_untrained",
        "a run whose every iteration was empty ends as done",
        "genrl_core/run/runner.py",
        "            trainer.check_learned()\n",
        "",
        EMPTY + "test_a_run_that_never_took_a_step_fails",
    ),
    Mutation(
        "iterations_for_steps",
        "the message of skipped steps counts iterations",
        "genrl_core/loop/trainer.py",
        'f"{skipped} optimizer steps in a row',
        'f"{SKIPPED_ITERATIONS} optimizer steps in a row',
        EMPTY + "test_the_guard_counts_the_steps_that_were_skipped",
    ),
    Mutation(
        "leaf_of_log_probs_alone",
        "the second pass carries back the log-densities' gradient and not the KL's or the value's",
        "genrl_core/loop/gradient.py",
        "if gradient is not None and fresh[name].requires_grad",
        'if name == "log_probs" and gradient is not None and fresh[name].requires_grad',
        TWO_PASS + "test_two_passes_equal_one",
    ),
    Mutation(
        "stale_leaf",
        "the recorded log-densities serve as the leaf of later updates too",
        "genrl_core/loop/update.py",
        "fresh = rollout.on_policy and not history",
        "fresh = rollout.on_policy",
        TRAINER + "test_a_second_update_moves_ratios_and_clips",
        error="GenRLError",
    ),
    Mutation(
        "drift_not_looked_at",
        "the update goes on whatever the drift is",
        "genrl_core/loop/update.py",
        "drift > tolerance:",
        "drift > math.inf:",
        TRAINER + "test_a_forgotten_temperature_fails_the_drift_check",
    ),
    Mutation(
        "tolerance_of_the_coarsest",
        "F8: every network may drift as far as one in bfloat16",
        "genrl_core/loop/update.py",
        "DRIFT_TOLERANCE.get(precision, 1e-3)",
        "DRIFT_TOLERANCE[torch.bfloat16]",
        PRECISION + "test_the_drift_that_is_allowed_depends_on_the_precision",
    ),
    Mutation(
        "trained_as_loaded",
        "F7: weights are trained in the bfloat16 that they were loaded in",
        "genrl_core/loop/weights.py",
        "        widen(policy.network, self.trainable.values())\n",
        "",
        PRECISION + "test_a_small_step_moves_nearly_every_weight",
    ),
    Mutation(
        "averages_as_loaded",
        "F7: the adapters of averages have the bfloat16 of the base, and stand still",
        "genrl_core/loop/weights.py",
        "            widen(self._network, self._parameters(name).values())\n",
        "",
        PRECISION + "test_an_average_of_decay_999_follows",
        error="RuntimeError",
    ),
    Mutation(
        "products_in_float32",
        "a network loaded in bfloat16 computes in float32 once its weights are widened",
        "genrl_core/loop/weights.py",
        "                lower(policy.network, policy.precision)\n",
        "                pass\n",
        PRECISION + "test_the_network_alone_runs_under_autocast",
    ),
    Mutation(
        "casts_are_kept",
        "autocast keeps the casts of weights that a step has moved since",
        "genrl_core/loop/precision.py",
        "cache_enabled=False",
        "cache_enabled=True",
        PRECISION + "test_no_cast_outlives_a_step",
    ),
    Mutation(
        "old_follows_the_updates",
        "a bound's old value is evaluated anew before every update, whose ratio is then 1",
        "genrl_core/loop/update.py",
        "        for update, prepared in enumerate(updates):\n",
        "        for update in range(len(updates)):\n"
        "            every = self.groups\n"
        "            prepared = [self.prepare(one, rollout, advantage, update) for one in every]\n",
        FAULTS + "test_a_bound_is_compared_with_what_it_was_before_the_first_update",
    ),
    Mutation(
        "importance_dropped",
        "train.steps.importance changes the denominators and leaves the weights at 1",
        "genrl_core/loop/views/steps.py",
        "weight=weight if terms.weight is None",
        "weight=ones if terms.weight is None",
        FAULTS + "test_importance_weights_make_up_for_the_calls_left_out",
    ),
    Mutation(
        "replay_cut_short",
        "the reward's gradient passes through the last step alone, whatever K is",
        "genrl_core/loop/views/reward.py",
        "steps = steps if torch.is_grad_enabled() else 0",
        "steps = 1 if torch.is_grad_enabled() else 0",
        REWARD_VIEW + "test_mean_update_is_the_pathwise_gradient",
    ),
    Mutation(
        "gradient_of_unweighted_rewards",
        "rewards are differentiated without their weights",
        "genrl_core/loop/combine.py",
        "counted = share.weight * ((reward",
        "counted = ((reward",
        REWARD_VIEW + "test_rewards_are_weighted_and_left_out_where_they_do_not_apply",
    ),
    Mutation(
        "trust_region_around_the_wrong_weights",
        "kl_behavior is KL(current || old) instead of KL(old || current)",
        "genrl_core/loop/views/steps.py",
        "behavior.kl(current)",
        "current.kl(behavior)",
        "tests/core/test_kl_directions.py::test_the_direction_of_categorical_steps",
    ),
    Mutation(
        "steps_weigh_alike",
        "GRPO-Guard forgets the 1 / |dt| of its loss",
        "plugins/genrl_objectives/grpo_guard.py",
        'batch.need("duration").masked_fill(~batch.mask, 1.0)',
        'batch.need("duration").masked_fill(batch.duration > 0, 1.0)',
        "tests/plugins/objectives/test_presets.py::test_guard_centres_and_scales",
    ),
    Mutation(
        "pulled_by_the_errors_alone",
        "NFT's pull is the sum of the two errors, which depends on the target",
        "plugins/genrl_objectives/nft.py",
        "2 * current + 2 * reference - 4 * between",
        "2 * current + 2 * reference",
        "tests/plugins/objectives/test_nft_pull.py::test_the_pull_is_a_distance_to_the_reference",
    ),
    Mutation(
        "a_head_that_adapters_freeze",
        "beside LoRA a fresh value head keeps the zeros that it starts with",
        "genrl_core/loop/weights.py",
        "if belongs_to(name, policy.new_modules):",
        "if belongs_to(name, ()):",
        "tests/plugins/digits/test_value_heads.py::test_beside_adapters_the_head_trains_in_full",
    ),
    Mutation(
        "half_a_head",
        "weights may lack any part of a fresh module, and the rest is taken",
        "genrl_core/run/policies.py",
        "own.keys() - tensors.keys() == young",
        "own.keys() - tensors.keys() <= young",
        "tests/plugins/digits/test_value_heads.py::"
        "test_weights_without_a_head_are_taken_and_half_a_head_is_not",
    ),
    Mutation(
        "minibatches_train_everything",
        "every minibatch trains all groups",
        "genrl_core/loop/update.py",
        "valid=ready.batch.valid & inside",
        "valid=ready.batch.valid",
        FAULTS + "test_a_minibatch_trains_its_own_groups_and_no_others",
    ),
    Mutation(
        "gradients_left_over",
        "gradients of one optimizer step are still there in the next",
        "genrl_core/loop/update.py",
        "        self.optimizer.zero_grad(set_to_none=True)\n        outcomes: ",
        "        outcomes: ",
        FAULTS + "test_no_gradient_is_left_over_for_the_next_step",
    ),
    Mutation(
        "gradients_not_clipped",
        "B15: the gradient's norm is measured and not limited",
        "genrl_core/loop/update.py",
        "limit or math.inf",
        "math.inf",
        FAULTS + "test_gradients_are_clipped_to_their_norm",
    ),
    Mutation(
        "gradients_kept_in_memory",
        "the gradients of a step are alive while the next samples are drawn",
        "genrl_core/loop/update.py",
        "        # The next rollout needs the memory of the gradients.\n"
        "        self.optimizer.zero_grad(set_to_none=True)\n",
        "\n",
        VIEWS + "test_no_gradient_is_kept_while_the_next_samples_are_drawn",
    ),
    Mutation(
        "metric_of_one_view_alone",
        "of two views with a metric of one name only the later one's is logged",
        "genrl_core/loop/metrics.py",
        "found[full if name in found else name]",
        "found[name]",
        VIEWS + "test_a_metric_of_one_view_does_not_hide_that_of_another",
    ),
    Mutation(
        "entropy_of_nothing",
        "a minibatch without valid samples makes the iteration's entropy NaN",
        "genrl_core/loop/metrics.py",
        "if batch.entropy is not None and trained.any():",
        "if batch.entropy is not None:",
        VIEWS + "test_a_minibatch_without_a_reward_has_no_entropy_to_report",
    ),
    Mutation(
        "fewer_minibatches_than_asked",
        "five groups in four minibatches make three optimizer steps",
        "genrl_core/loop/update.py",
        "order.tensor_split(min(train.num_minibatches, groups))",
        "order.split(math.ceil(groups / train.num_minibatches))",
        VIEWS + "test_there_are_as_many_optimizer_steps_as_minibatches",
    ),
    Mutation(
        "calls_of_one_rank",
        "rows are placed by this rank's number of calls, not by that of all ranks",
        "genrl_core/loop/views/steps.py",
        "            terms.num_evals, per_eval,\n",
        "            rollout.trajectory.terms.num_evals, per_eval,\n",
        VIEWS + "test_terms_of_other_ranks_change_nothing_here",
        error="RuntimeError",
    ),
    Mutation(
        "field_not_given",
        "a view that has no reference hands zeros to an objective that asks for one",
        "genrl_core/loop/objectives.py",
        "sorted(objective.needs - view.gives)",
        "sorted(objective.needs - objective.needs)",
        VIEWS + "test_a_field_that_the_view_does_not_give_is_refused",
    ),
    Mutation(
        "region_around_lagging_weights",
        "the trust region is around weights that drew nothing",
        "genrl_core/loop/objectives.py",
        "weights.lagging.decay > 0:",
        "weights.lagging.decay > 1:",
        VIEWS + "test_a_trust_region_is_around_the_weights_that_draw",
    ),
    Mutation(
        "data_that_teach_nothing",
        "data without a reward train an objective that learns from rewards: nothing, silently",
        "genrl_core/recipe/check.py",
        'if using and not recipe.reward and "reward" not in injected:',
        "data = recipe.sampler is not None and recipe.sampler.supervised\n"
        '    if using and not data and not recipe.reward and "reward" not in injected:',
        NEGOTIATE + "test_data_have_no_reward_to_learn_from",
    ),
    Mutation(
        "bound_by_its_terms",
        "the score of a pair is the mean over the terms of a bound in place of the mean of bounds",
        "plugins/genrl_objectives/dpo.py",
        "return gap / (batch.step.max() + 1)",
        "return gap / batch.events.sum(0, keepdim=True).clamp(min=1)",
        "tests/plugins/objectives/test_presets.py::"
        "test_a_bound_in_pieces_is_preferred_like_one_in_one",
    ),
    Mutation(
        "slot_left_active",
        "after the reference was asked, the reference stays in the policy's place",
        "genrl_core/loop/weights.py",
        "            self._policy.network = before\n",
        "            assert before\n",
        TRAINER + "test_a_slot_comes_back_after_an_error",
    ),
    Mutation(
        "no_all_reduce",
        "B11: gradients are not summed over ranks, every process trains its own model",
        "genrl_core/loop/distributed.py",
        "torch.distributed.all_reduce(parameter.grad)",
        "assert parameter.grad is not None",
        TRAINER + "test_two_processes_equal_one",
    ),
    Mutation(
        "drift_that_loses_nan",
        "F13: the largest of several numbers is the first where the others are no numbers",
        "genrl_core/loop/metrics.py",
        "return max(values, key=lambda value: (math.isnan(value), value))",
        "return max(values)",
        FAULTS + "test_the_largest_of_an_iteration_is_no_number_where_one_step_has_none",
    ),
    # From samples to advantages.
    Mutation(
        "failed_reward_is_zero",
        "a reward that raises counts as 0 for all its samples",
        "genrl_core/interfaces/reward_values.py",
        "    except BaseException as error:\n        raise RewardError(",
        "    except BaseException as error:\n        return [0.0] * 12\n        raise RewardError(",
        TRAINER + "test_a_broken_reward_stops_the_run",
    ),
    Mutation(
        "missing_reward_is_zero",
        "a reward of None counts as 0",
        "genrl_core/loop/generate.py",
        'values = [float("nan") if value is None',
        "values = [0.0 if value is None",
        FAULTS + "test_a_missing_reward_is_not_a_reward_of_zero",
    ),
    Mutation(
        "missing_reward_has_an_advantage",
        "a sample without a reward is pushed away from its group's mean",
        "genrl_core/loop/advantage.py",
        "return torch.where(valid, difference, zero)",
        "return difference",
        NUMBERS + "test_advantages_match_numpy",
    ),
    Mutation(
        "biased_deviation",
        "advantages are divided by the biased standard deviation",
        "genrl_core/loop/advantage.py",
        "/ (count - 1).clamp(min=1)",
        "/ count.clamp(min=1)",
        NUMBERS + "test_advantages_match_numpy",
    ),
    Mutation(
        "spread_of_equal_rewards",
        "equal rewards have the spread that rounding gives them",
        "genrl_core/loop/statistics.py",
        "equal = low == high",
        "equal = low > high",
        NUMBERS + "test_equal_rewards_have_a_spread_of_exactly_0",
    ),
    Mutation(
        "epsilon_for_a_unit",
        "where there is no spread, the difference is divided by epsilon alone",
        "genrl_core/loop/advantage.py",
        "torch.where(std == 0, zero, scaled)",
        "scaled",
        NUMBERS + "test_equal_rewards_have_advantages_of_exactly_0",
    ),
    Mutation(
        "squares_that_overflow",
        "one reward of 1e308 has an infinite deviation, and every advantage is 0",
        "genrl_core/loop/statistics.py",
        "size = _power_of_two(torch.maximum(low.abs(), high.abs()))",
        "size = torch.ones_like(low)",
        NUMBERS + "test_one_huge_reward_leaves_its_group_a_direction",
    ),
    Mutation(
        "sum_that_overflows",
        "a weighted sum of finite rewards that is infinite is not named",
        "genrl_core/loop/rollout.py",
        "bad = (part.valid & ~(",
        "bad = (~part.valid & ~(",
        COMBINED + "test_a_weighted_sum_that_overflows_is_named",
    ),
    Mutation(
        "filter_of_the_plain_sum",
        "filter and objectives read the plain sum, whatever advantage.combine says",
        "genrl_core/loop/rollout.py",
        "shares_of(self._advantage, weighted, valid, plan.group)",
        "{n: Share(w) for n, (w, _) in weighted.items()}",
        COMBINED + "test_everything_reads_the_same_combination",
    ),
    Mutation(
        "plain_differentiable_reward",
        "the differentiable reward is the plain sum, whatever advantage.combine says",
        "genrl_core/loop/views/reward.py",
        "self.shares.get(label, Share(weight))",
        "Share(weight)",
        COMBINED + "test_the_differentiable_reward_is_combined_like_the_others",
    ),
    Mutation(
        "length_without_the_policy",
        "a chain has num_steps transitions, whatever the policy",
        "genrl_core/interfaces/sampler.py",
        'plan.streams("rollout"), self.steps(policy)',
        'plan.streams("rollout"), self.num_steps',
        "tests/core/test_sampler.py::test_a_chain_is_as_long_as_the_policy_makes_it",
    ),
    Mutation(
        "steps_of_other_shapes",
        "a state that changes its shape, or a step with more terms, passes",
        "genrl_core/interfaces/sampler.py",
        "if before != after:",
        "if before.keys() != after.keys():",
        "tests/core/test_sampler.py::test_what_changes_from_step_to_step_is_refused",
    ),
    Mutation(
        "guided_impossible_tokens",
        "guidance of a token that is impossible on both sides is NaN",
        "genrl_core/functional.py",
        ".masked_fill(impossible, -torch.inf)",
        "",
        "tests/plugins/autoregressive/test_sampler.py::"
        "test_guidance_leaves_impossible_tokens_impossible",
    ),
    Mutation(
        "prompt_history_forgotten",
        "a resumed run begins its running statistics per prompt afresh",
        "genrl_core/loop/trainer.py",
        'self.advantages.load_state_dict(state["statistics"])',
        'assert state["statistics"]',
        "tests/core/test_prompt_statistics.py::test_resume_is_bit_identical",
    ),
    Mutation(
        "filter_ignored",
        "B12: spreads are measured and every group is kept",
        "genrl_core/loop/rollout.py",
        "keep = self._filter.keep(group_std) if self._config.active else [True] * len(group_std)",
        "keep = [True] * len(group_std)",
        TRAINER + "test_filter_drops_and_resamples_up_to_its_limit",
    ),
    Mutation(
        "rejected_spreads_forgotten",
        "rejected groups stay out of the filter's history, and its percentile creeps upwards",
        "genrl_core/loop/filters.py",
        "self._history.extend(values)",
        "self._history.extend(v for v, flag in zip(values, kept, strict=True) if flag)",
        NUMBERS + "test_percentile_filter_rejects_its_share_in_the_long_run",
    ),
    Mutation(
        "rewards_of_other_samples",
        "after a group was rejected the others get the rewards of the first ones",
        "genrl_core/loop/rollout.py",
        "reward=self.reward[inside]",
        "reward=self.reward[: int(inside.sum())]",
        FAULTS + "test_numbers_stay_with_their_samples",
    ),
    Mutation(
        "prompts_of_other_samples",
        "samples are drawn under the prompts of their neighbours in the forward",
        "genrl_core/loop/generate.py",
        "select_rows(encoded, index)",
        "select_rows(encoded, index.flip(0))",
        FAULTS + "test_numbers_stay_with_their_samples",
    ),
    Mutation(
        "resampling_repeats_the_draws",
        "new attempts start the same random streams and draw the rejected samples again",
        "genrl_core/loop/plan.py",
        "return plan_of(seed, iteration, attempt, picked",
        "return plan_of(seed, iteration, 0, picked",
        FAULTS + "test_numbers_stay_with_their_samples",
    ),
    Mutation(
        "global_draw_of_the_steps",
        "which steps are trained depends on torch's global generator",
        "genrl_core/loop/steps.py",
        "order = streams.uniform(num_evals).T.argsort(0)",
        "order = torch.rand(samples, num_evals).T.argsort(0)",
        TRAINER + "test_global_seeds_change_nothing",
    ),
    # What is resumed, and what is refused.
    Mutation(
        "filter_not_saved",
        "a checkpoint holds a filter without history",
        "genrl_core/loop/rollout.py",
        "return self._filter.state_dict()",
        "return GroupFilter(self._config).state_dict()",
        TRAINER + "test_resume_is_bit_identical",
    ),
    Mutation(
        "scheduler_not_restored",
        "a resumed run starts its learning-rate schedule from the beginning",
        "genrl_core/loop/trainer.py",
        'self.parts.scheduler.last_epoch = state["scheduler_step"]',
        'assert "scheduler_step" in state',
        TRAINER + "test_resume_is_bit_identical",
    ),
    # Runs that go on.
    Mutation(
        "cached_base_not_compared",
        "the hash beside a cached base is read and not compared",
        "genrl_core/run/bases.py",
        'return None if sha256(path) == wanted else "is damaged (sha256 differs)"',
        'return None if wanted else "is damaged (sha256 differs)"',
        BUILD + "test_a_damaged_base_in_the_cache_is_named_and_trained_again",
    ),
    Mutation(
        "writer_chooses_the_mode",
        "what safetensors writes is for its owner alone, whatever the umask says",
        "genrl_core/run/files.py",
        "    path.chmod(mode)\n",
        "    path.stat()\n",
        CHECKPOINT + "test_files_have_the_mode_of_the_umask",
    ),
    Mutation(
        "own_cache_alone",
        "XDG_CACHE_HOME is ignored",
        "genrl_core/run/bases.py",
        'return (shared if shared.is_absolute() else Path.home() / ".cache") / "genrl"',
        'return Path.home() / ".cache" / "genrl"',
        BUILD + "test_where_bases_are_kept",
    ),
    Mutation(
        "finished_run_is_over",
        "a finished run cannot have more iterations",
        "genrl_core/recipe/identity.py",
        "        found.pop(key, None)\n",
        '        found.pop("run.name", None)\n',
        RESUME + "test_a_finished_run_goes_on_with_more_iterations",
    ),
    Mutation(
        "cosine_extended",
        "a schedule that ends at the last iteration may be given another end",
        "genrl_core/recipe/identity.py",
        '    if same_schedule and schedule == "constant":\n',
        "    if same_schedule:\n",
        RESUME + "test_a_refused_resume_leaves_the_folder_as_it_was",
    ),
    Mutation(
        "refused_resume_failed",
        "a refused resume counts as a run that failed",
        "genrl_core/run/runner.py",
        'raise RecipeError(f"{folder} cannot be resumed: {found}")',
        'raise CheckpointError(f"{folder} cannot be resumed: {found}")',
        RESUME + "test_a_run_without_a_checkpoint_is_refused_and_left_alone",
    ),
    Mutation(
        "memory_decides_the_result",
        "a resume with another size of chunks is refused",
        "genrl_core/recipe/recipe.py",
        "            del tree[name]\n",
        "            tree[name] = value\n",
        RESUME + "test_after_an_out_of_memory_error_a_run_goes_on_with_half_the_chunk",
    ),
    Mutation(
        "adapters_left_out",
        "a new run begins with the base of a run of adapters, without them",
        "genrl_core/loop/weights.py",
        "base + layer.get_delta_weight(name).float()",
        "base",
        BUILD + "test_a_run_of_adapters_gives_its_weights_to_a_new_run",
    ),
    Mutation(
        "base_under_adapters_unseen",
        "adapters are folded into whatever policy.weights gives now",
        "genrl_core/run/policies.py",
        'if snapshot.state.get("base") != fingerprint(policy.network):',
        'if not snapshot.state.get("base"):',
        BUILD + "test_adapters_whose_base_is_another_now_are_refused",
    ),
    Mutation(
        "saved_when_asked_alone",
        "a run that says nothing on saving saves at its end alone",
        "genrl_core/run/runner.py",
        "collect((self._signals.seen > 0, late))",
        "collect((self._signals.seen > 0, False))",
        RESUME + "test_a_run_saves_by_time_without_being_asked",
    ),
    Mutation(
        "hangup_kills",
        "SIGHUP ends a run without a checkpoint",
        "genrl_core/run/signals.py",
        "kinds.append(signal.SIGHUP)",
        "kinds.append(signal.SIGTERM)",
        RESUME + "test_a_hangup_stops_like_a_termination_unless_it_is_ignored",
    ),
    Mutation(
        "second_signal_breaks_the_save",
        "a second signal breaks off the checkpoint that the first one asked for",
        "genrl_core/run/signals.py",
        "        if self.seen > 1 and not self._spared:\n",
        "        if self.seen > 1:\n",
        RESUME + "test_a_save_that_has_begun_survives_the_second_signal",
    ),
    Mutation(
        "dry_run_for_people",
        "a dry run prints its table where JSON was asked for",
        "genrl_core/run/dry_run.py",
        "    if runtime.main and json:\n",
        "    if runtime.main and json and quiet:\n",
        RESUME + "test_a_dry_run_for_programs_is_json_and_nothing_else",
    ),
    Mutation(
        "labels_merge",
        "a reward given as a mapping is added to those that the recipe has",
        "genrl_core/recipe/overrides.py",
        "{label: old[label] for label in old if label in new}",
        "old",
        RECIPE + "test_a_mapping_given_for_labels_replaces_them_and_says_what_went",
    ),
    Mutation(
        "unbuildable_let_through",
        "check does not ask a policy whether it can begin from its weights",
        "genrl_core/recipe/weights.py",
        "if built is not None and (reason := built.weights_problem()):",
        "if reason := policy.draws_problem(1):",
        NEGOTIATE + "test_weights_that_the_policy_cannot_begin_from_are_refused",
    ),
    Mutation(
        "moments_by_rank",
        "a moment of another size is handed to AdamW if it has as many axes",
        "genrl_core/run/optimizer.py",
        "if found == parameter else",
        'if found.count(",") == parameter.count(",") else',
        CHECKPOINT + "test_moments_that_do_not_fit_their_parameters_are_refused",
    ),
    Mutation(
        "equal_lines_squared",
        "every equal prompt line tries all numbers from the first",
        "genrl_core/recipe/prompts.py",
        "    numbers[digest] = number\n",
        "    numbers[digest] = 0\n",
        "tests/core/test_prompts.py::test_equal_lines_are_numbered_in_linear_time",
    ),
    Mutation(
        "hashes_not_compared",
        "a checkpoint's files are measured and not hashed",
        "genrl_core/run/checkpoint.py",
        'sha256(file) == entry["sha256"]',
        'sha256(file) != ""',
        CHECKPOINT + "test_damage_is_named_and_the_older_one_taken",
    ),
    Mutation(
        "unknown_keys_ignored",
        "a misspelt key of a recipe falls back to the default",
        "genrl_core/interfaces/configs.py",
        'extra="forbid"',
        'extra="ignore"',
        RECIPE + "test_mistakes_are_one_line_with_the_place_and_the_way_out",
    ),
    Mutation(
        "deterministic_sampler_accepted",
        "an objective on steps trains with a sampler that has no step densities",
        "genrl_core/recipe/check.py",
        "config.needs() | {capability_of(view)}",
        "config.needs() - {capability_of(view)}",
        NEGOTIATE + "test_what_cannot_work_is_refused_with_the_way_out",
    ),
    Mutation(
        "window_restarts_on_resume",
        "a progressive window stands still, whatever the iteration",
        "plugins/genrl_diffusion/configs.py",
        "max(iteration, 0) // window.shift_every % places",
        "0 // window.shift_every % places",
        DIFFUSION + "test_windows.py::test_a_resumed_run_has_the_window_of_its_iteration",
    ),
    Mutation(
        "window_drawn_per_sample",
        "the samples of a group have windows of their own",
        "plugins/genrl_diffusion/sampler.py",
        'plan.streams("window").shared.uniform()',
        'plan.streams("window").uniform()',
        DIFFUSION + "test_sampler.py::"
        "test_the_window_is_shared_by_the_group_and_moves_in_its_range",
    ),
    Mutation(
        "elbo_without_reconstruction",
        "the least time of flow matching has the weight of its neighbours",
        "plugins/genrl_diffusion/policy.py",
        "torch.where(time > LEAST_TIME, inside, 0.5 / LEAST_TIME)",
        "torch.where(time > LEAST_TIME, inside, 1.0 / LEAST_TIME)",
        DIFFUSION + "test_elbo.py::"
        "test_the_bound_of_flow_matching_is_the_log_likelihood_of_gaussian_data",
    ),
    Mutation(
        "elbo_of_another_step",
        "the change of the signal-to-noise ratio upside down",
        "plugins/genrl_diffusion/variance_preserving.py",
        "ratio[:-1] / ratio[1:] - 1",
        "1 - ratio[1:] / ratio[:-1]",
        DIFFUSION + "test_elbo.py::test_the_bound_is_that_of_ddpm",
    ),
    Mutation(
        "preview_of_the_next_step",
        "one network call more than asked for keeps its graph",
        "plugins/genrl_diffusion/sampler.py",
        "with torch.set_grad_enabled(index > step - grad_steps):",
        "with torch.set_grad_enabled(index >= step - grad_steps):",
        DIFFUSION + "test_differentiable.py::test_a_preview_is_the_denoised_sample_of_its_step",
    ),
    Mutation(
        "graph_of_one_step_more",
        "one step more than asked for keeps its graph",
        "genrl_core/interfaces/sampler.py",
        "step >= num_evals - grad_steps",
        "step >= num_evals - grad_steps - 1",
        DIFFUSION + "test_differentiable.py::test_the_last_steps_keep_the_graph_and_they_alone",
    ),
    Mutation(
        "divergence_of_cps_unscaled",
        "the divergence between steps of CPS loses its scale with the density",
        "plugins/genrl_diffusion/sampler.py",
        "return self._where_noisy(0.5 * self._square(self.mean - other.mean))",
        "scale = along(self._safe, self.mean) if self._unscaled else 1.0\n"
        "        return self._where_noisy(0.5 * self._square(scale * (self.mean - other.mean)))",
        DIFFUSION + "test_windows.py::"
        "test_the_unscaled_density_keeps_the_divergence_and_is_scored_as_drawn",
    ),
    Mutation(
        "duration_of_time",
        "the duration of a step is a constant",
        "plugins/genrl_diffusion/sampler.py",
        "pair[0] - pair[1]",
        "1 / self.num_steps",
        DIFFUSION + "test_sampler.py::test_durations_are_of_the_noise_level_and_cover_the_whole",
    ),
    # Show-o's sequence and network.
    Mutation(
        "image_sees_padding",
        "the image attends to the padding of its prompt",
        "plugins/genrl_showo/layout.py",
        "return torch.cat([~padding, image], 1)",
        "return torch.cat([torch.ones_like(padding), image], 1)",
        LAYOUT + "test_attention_is_that_of_brute_force",
    ),
    Mutation(
        "text_sees_padding",
        "the text attends to the padding before it",
        "plugins/genrl_showo/layout.py",
        "(real.unsqueeze(1) | padding.unsqueeze(2))",
        "(real | padding).unsqueeze(1)",
        LAYOUT + "test_attention_is_that_of_brute_force",
    ),
    Mutation(
        "text_looks_ahead",
        "the text attends to what follows it, as the image may",
        "plugins/genrl_showo/layout.py",
        "device=padding.device).tril()",
        "device=padding.device)",
        LAYOUT + "test_attention_is_that_of_brute_force",
    ),
    Mutation(
        "padded_on_the_right",
        "the padding of a prompt stands between its text and the image",
        "plugins/genrl_showo/layout.py",
        "return [vocabulary.pad] * (length + 1 - len(ids)) + ids",
        "return ids + [vocabulary.pad] * (length + 1 - len(ids))",
        LAYOUT + "test_a_short_prompt_is_padded_on_the_left",
    ),
    Mutation(
        "prompt_without_an_end",
        "a prompt that is cut off lacks its end-of-text",
        "plugins/genrl_showo/layout.py",
        "ids = [*ids[:length], vocabulary.boundary]",
        "ids = ids[: length + 1]",
        LAYOUT + "test_a_long_prompt_is_cut_and_still_ends",
    ),
    Mutation(
        "task_of_understanding",
        "prompts begin with mmu and not with t2i",
        "plugins/genrl_showo/layout.py",
        "return self.text + 5",
        "return self.text + 6",
        LAYOUT + "test_the_published_ids",
    ),
    Mutation(
        "padding_without_positions",
        "the positions of a prompt count from its first word and not from the first padding",
        "plugins/genrl_showo/network.py",
        "self._rotary(hidden, shared)",
        "self._rotary(hidden, 0)",
        NETWORK + "test_prompts_of_one_length_need_no_mask_and_stay_causal",
    ),
    Mutation(
        "image_follows_what_was_run",
        "the positions of the image do not count the padding that was left out",
        "plugins/genrl_showo/network.py",
        "self._rotary(hidden, prefix.length)",
        "self._rotary(hidden, prefix.padding.shape[1])",
        NETWORK + "test_prompts_of_one_length_need_no_mask_and_stay_causal",
    ),
    Mutation(
        "shifted_logits",
        "a position predicts the code after it, as a causal model does",
        "plugins/genrl_showo/network.py",
        "hidden[:, 1:-1]",
        "hidden[:, :-2]",
        NETWORK + "test_equals_the_formulas_written_out",
    ),
    Mutation(
        "cache_by_its_old_name",
        "a layer is handed its cache under the name of one version alone",
        "plugins/genrl_showo/network.py",
        'return forward_arguments(forward, ("cache",))["cache"]',
        'return forward and "past_key_values"',
        NETWORK + "test_layers_of_every_version_are_handed_the_prompt",
    ),
    Mutation(
        "mask_among_the_codes",
        "the mask is one of the codes that can be drawn",
        "plugins/genrl_showo/network.py",
        "slice(self.vocabulary.first_code, self.vocabulary.mask)",
        "slice(self.vocabulary.first_code, self.vocabulary.size)",
        NETWORK + "test_equals_the_formulas_written_out",
    ),
    Mutation(
        "head_off_by_one",
        "the rows of the head begin at the last special id",
        "plugins/genrl_showo/network.py",
        "slice(self.vocabulary.first_code, self.vocabulary.mask)",
        "slice(self.vocabulary.first_code - 1, self.vocabulary.mask - 1)",
        NETWORK + "test_equals_the_formulas_written_out",
    ),
    Mutation(
        "chosen_off_by_one",
        "the positions that are chosen do not count the id that begins the image",
        "plugins/genrl_showo/network.py",
        "rows, positions + 1)",
        "rows, positions)",
        NETWORK + "test_chosen_positions_are_those_of_all_in_logits_and_gradients",
    ),
    Mutation(
        "remasked_positions_spared",
        "an update computes the released positions alone, whatever the density needs",
        "plugins/genrl_masked/sampler.py",
        'needed = state["released"] if self.config.transition == "p2" else state["masked"]',
        'needed = state["released"]',
        SAMPLER + "test_positions_that_the_density_does_not_need_are_spared",
    ),
    Mutation(
        "guidance_off_by_one",
        "guidance_scale is taken for Show-o's w, which is one less",
        "genrl_core/interfaces/policy.py",
        "guided(given, without, scale)",
        "guided(given, without, 1 + scale)",
        SHOWO + "test_guidance_is_show_os_with_w_one_less",
    ),
    Mutation(
        "prefix_of_other_prompts",
        "the kept prefix serves any prompts of the same shape",
        "plugins/genrl_showo/policy.py",
        "return prefix if known.shape == prompt.shape and torch.equal(known, prompt) else None",
        "return prefix if known.shape == prompt.shape else None",
        SHOWO + "test_other_prompts_networks_and_adapters_make_the_prefix_stale",
    ),
    Mutation(
        "prefix_of_the_last_update",
        "a prefix is also kept outside of a rollout, where it outlives any optimizer step",
        "plugins/genrl_showo/policy.py",
        "if self._keeps and not torch.is_grad_enabled():",
        "if not torch.is_grad_enabled():",
        SHOWO + "test_a_call_with_gradient_reads_anew_and_the_prefix_is_dropped_with_the_rollout",
    ),
    Mutation(
        "prefix_of_the_last_rollout",
        "the kept prefix of one rollout serves the next",
        "plugins/genrl_showo/policy.py",
        "self._keeps, self._kept = False, None",
        "self._keeps = False",
        SHOWO + "test_a_rollout_begins_without_a_prefix_whatever_was_done_to_the_weights",
    ),
    Mutation(
        "left_over_stays_empty",
        "the position that keep_one leaves over does not get its code",
        "plugins/genrl_masked/sampler.py",
        'torch.where(state["masked"], action["codes"]',
        'torch.where(action["released"], action["codes"]',
        SAMPLER + "test_keep_one_credits_one_token_less_for_the_same_samples",
    ),
    # Networks of transformers that are read token by token.
    Mutation(
        "any_reading_is_believed",
        "F1: a network that does not use the cache it is handed is taken",
        "plugins/genrl_autoregressive/transformers_policy.py",
        "if not gap <= (2e-2 if half else 1e-3):",
        "if not gap <= float('inf'):",
        READING + "test_a_network_that_ignores_its_cache_is_refused",
    ),
    Mutation(
        "longrope_at_any_length",
        "F12: rows longer than the original length are read, whose frequencies others then follow",
        "plugins/genrl_autoregressive/transformers_policy.py",
        'if kind in ("longrope", "dynamic") and original',
        'if kind in ("dynamic",) and original',
        READING + "test_frequencies_of_the_longest_row_are_refused_beyond_it",
    ),
    Mutation(
        "other_caches_end_in_the_rollout",
        "F13: a network that keeps no keys and values is taken, and fails where it is first read",
        "plugins/genrl_autoregressive/transformers_policy.py",
        "except Exception as error:  # each architecture has its own",
        "except GenRLError as error:",
        READING + "test_a_network_that_keeps_something_else_is_exact_or_refused",
    ),
    Mutation(
        "prompts_that_are_over",
        "B1: a prompt keeps the end token that the tokenizer appends",
        "plugins/genrl_autoregressive/causal_lm.py",
        "ids = framed[int(twice) : last]",
        "ids = framed[int(twice) :]",
        "tests/plugins/autoregressive/test_causal_lm.py::"
        "test_a_prompt_is_given_one_beginning_at_most_and_no_end",
    ),
    Mutation(
        "ids_without_a_token",
        "B3: an id between the tokens that is none of them is drawn",
        "plugins/genrl_autoregressive/causal_lm.py",
        "self.missing = tuple(sorted({*range(self.num_symbols)} - known))",
        "self.missing = ()",
        "tests/plugins/autoregressive/test_causal_lm.py::"
        "test_an_id_that_is_no_token_is_never_drawn",
    ),
    Mutation(
        "mixtures_of_the_impossible",
        "B3: predictions of -inf are subtracted",
        "plugins/genrl_autoregressive/policy.py",
        "teacher_forced(self, tokens, cond).clamp(min=-1e9)",
        "teacher_forced(self, tokens, cond)",
        "tests/plugins/autoregressive/test_causal_lm.py::"
        "test_predictions_of_several_weights_mix_over_the_tokens",
    ),
    Mutation(
        "raw_texts_of_other_samples",
        "B4: texts with special tokens stay those of all samples where some are chosen",
        "genrl_core/interfaces/media.py",
        "None if self.raw_texts is None else tuple(self.raw_texts[row] for row in rows)",
        "self.raw_texts",
        "tests/plugins/autoregressive/test_causal_lm.py::"
        "test_a_reward_can_see_special_tokens_of_an_answer",
    ),
    Mutation(
        "arguments_by_signature",
        "F1: a policy asks a forward itself what it takes",
        "plugins/genrl_autoregressive/transformers_policy.py",
        "self.lora_targets = linear_modules(network)",
        "import inspect\n\n        inspect.signature(network.forward)\n"
        "        self.lora_targets = linear_modules(network)",
        "tests/core/test_forwards.py::test_no_arguments_are_filtered_by_signature_elsewhere",
    ),
    # MAGVIT-v2.
    Mutation(
        "lowest_bit_first",
        "channel 0 of the quantiser is the lowest bit",
        "plugins/genrl_showo/magvit.py",
        "torch.arange(bits - 1, -1, -1)",
        "torch.arange(bits)",
        MAGVIT + "test_channel_0_is_the_highest_bit_and_zero_is_negative",
    ),
    Mutation(
        "zero_is_positive",
        "a latent of exactly 0 sets its bit",
        "plugins/genrl_showo/magvit.py",
        "(latents > 0)",
        "(latents >= 0)",
        MAGVIT + "test_channel_0_is_the_highest_bit_and_zero_is_negative",
    ),
    Mutation(
        "column_by_column",
        "codes run down the columns of an image",
        "plugins/genrl_showo/magvit.py",
        ".movedim(1, -1).flatten(1, 2)",
        ".movedim(1, -1).transpose(1, 2).flatten(1, 2)",
        MAGVIT + "test_codes_run_row_by_row",
    ),
    Mutation(
        "padded_left_and_top",
        "the zeros of a downsampling stand at the left and at the top",
        "plugins/genrl_showo/magvit_layers.py",
        "pad(x, (0, 1, 0, 1))",
        "pad(x, (1, 0, 1, 0))",
        MAGVIT + "test_downsample_pads_right_and_bottom",
    ),
    Mutation(
        "pixels_not_rescaled",
        "the decoder's -1 to 1 is clamped to 0 to 1",
        "plugins/genrl_showo/magvit.py",
        "((precise + 1) / 2)",
        "precise",
        MAGVIT + "test_decode_scales_the_decoder_to_0_and_1",
    ),
    Mutation(
        "any_codebook",
        "a tokenizer whose codes mean something else is taken",
        "plugins/genrl_showo/magvit.py",
        "if name in state and not torch.equal(",
        "if name not in state and not torch.equal(",
        MAGVIT_WEIGHTS + "test_another_codebook_is_refused",
    ),
    Mutation(
        "pickles_run_code",
        "B14: a checkpoint is unpickled, whatever is in it",
        "plugins/genrl_models/tensor_files.py",
        "weights_only=True)",
        "weights_only=False)",
        MAGVIT_WEIGHTS + "test_a_pickle_that_runs_code_is_not_opened",
    ),
    # aMUSEd.
    Mutation(
        "last_layer_of_the_text",
        "the transformer reads the text encoder's last layer and not the last but one",
        "plugins/genrl_amused/policy.py",
        "found.hidden_states[-2]",
        "found.hidden_states[-1]",
        AMUSED + "test_logits_are_those_of_every_call_that_the_pipeline_makes",
    ),
    Mutation(
        "micro_conditions_in_another_order",
        "the aesthetic score stands first among the micro-conditions",
        "plugins/genrl_amused/policy.py",
        "(pixels, pixels, 0, 0, config.aesthetic_score)",
        "(config.aesthetic_score, pixels, pixels, 0, 0)",
        AMUSED + "test_logits_are_those_of_every_call_that_the_pipeline_makes",
    ),
    Mutation(
        "guided_by_the_prompt_pooled",
        "guidance steers away from the negative words with the prompt's own pooled text",
        "plugins/genrl_amused/policy.py",
        'cond["negative_hidden"], cond["negative_pooled"]\n',
        'cond["negative_hidden"], cond["pooled"]\n',
        AMUSED + "test_logits_are_those_of_every_call_that_the_pipeline_makes",
    ),
    Mutation(
        "mask_of_another_vocabulary",
        "a masked position is the codebook's size and not the transformer's mask id",
        "plugins/genrl_amused/policy.py",
        "canvas.masked_fill(canvas == self.mask_code, self.mask_id)",
        "canvas.masked_fill(canvas == self.mask_code, self.mask_code)",
        AMUSED + "test_logits_are_those_of_every_call_that_the_pipeline_makes",
    ),
    Mutation(
        "dropout_left_in",
        "the transformer keeps its dropout",
        "plugins/genrl_amused/loading.py",
        "            module.p = 0.0\n",
        "            module.p *= 1.0\n",
        AMUSED + "test_what_is_trained_is_the_transformer_without_dropout",
    ),
    # Attention.
    Mutation(
        "wish_not_tried",
        "an attention that the machine cannot do is promised all the same",
        "plugins/genrl_models/attention.py",
        "if problem := _problem(requested, device, dtype, head_dim, pattern):",
        'if problem := requested and "":',
        ATTENTION + "test_what_fails_the_trial_is_refused_and_auto_goes_on",
    ),
    Mutation(
        "numbers_not_compared",
        "a kernel passes its trial that runs and computes something else",
        "plugins/genrl_models/attention.py",
        "if not error <= max(",
        "if error < -max(",
        ATTENTION + "test_what_fails_the_trial_is_refused_and_auto_goes_on",
    ),
    Mutation(
        "mixture_under_autocast",
        "normalised queries and keys meet values of another dtype in the kernel",
        "plugins/genrl_models/attention.py",
        "if casts else part",
        "if casts < 0 else part",
        ATTENTION + "test_under_autocast_the_kernel_and_its_trial_see_one_dtype",
    ),
    # What is left of Mask-GRPO's released code.
    Mutation(
        "noise_in_half_precision",
        "B19: the Gumbel noise is of uniform numbers in half precision, some of which are 0 or 1",
        "genrl_core/interfaces/streams.py",
        "g.gumbel(size=len(row))",
        "-np.log(-np.log(g.random(len(row)).astype(np.float16).astype(np.float32)))",
        NUMBERS + "test_draws_continue_and_have_their_distribution",
    ),
    # Random streams.
    Mutation(
        "generators_for_nothing",
        "F32: random streams make their generators whether or not anything draws from them",
        "genrl_core/interfaces/streams.py",
        "_across_updates = across_updates\n\n",
        "_across_updates = across_updates\n        vars(self)[''] = self._generators\n\n",
        STREAMS + "test_no_generator_is_made_where_nothing_draws",
    ),
    Mutation(
        "generators_made_anew",
        "F32: every draw makes the generators of its streams again, and so begins them again",
        "genrl_core/interfaces/streams.py",
        "    @cached_property\n    def _generators",
        "    @property\n    def _generators",
        STREAMS + "test_an_iteration_makes_each_stream_once_and_those_it_draws_from_alone",
    ),
    Mutation(
        "another_key",
        "the words of a stream's key are read the other way round: every seed draws other samples",
        "genrl_core/interfaces/streams.py",
        'np.frombuffer(self._digest, "<u8")',
        'np.frombuffer(self._digest, ">u8")',
        STREAMS + "test_numbers_are_those_that_were_recorded",
    ),
    Mutation(
        "epochs_ordered_anew",
        "F32: the order of an epoch's prompts is drawn again in every iteration",
        "genrl_core/loop/plan.py",
        "@lru_cache(maxsize=2)\n",
        "",
        STREAMS + "test_the_order_of_an_epoch_is_made_once",
    ),
    Mutation(
        "loss_of_half_the_chunks",
        "the numbers of the first of several chunks stand for those of the whole batch",
        "genrl_core/loop/gradient.py",
        "if len(chunks) != 1 or",
        "if len(chunks) < 1 or",
        STREAMS + "test_a_chunk_that_holds_all_rows_evaluates_the_loss_once",
    ),
    # Rewards and the files of their networks.
    Mutation(
        "clip_scaled_to_one",
        "images reach CLIP between -1 and 1 and not by the mean and deviation of its own",
        "plugins/genrl_rewards/images.py",
        "    return (pixels - mean) / std\n",
        "    return (pixels - 0.5) / 0.5\n",
        REWARD_IMAGES + "test_cropped_is_clips_own_processor",
    ),
    Mutation(
        "hps_cropped",
        "HPS v2 judges the middle of an image where it should judge all of it",
        "plugins/genrl_rewards/hps.py",
        "batch_size=config.batch_size, fit=letterboxed",
        "batch_size=config.batch_size",
        REWARDS + "test_hps_frames_its_images_and_the_others_crop_them",
    ),
    Mutation(
        "hps_quick_gelu",
        "HPS v2 computes OpenAI's approximation of GELU where open_clip has the exact one",
        "plugins/genrl_rewards/hps.py",
        '"hidden_act": "gelu"}',
        '"hidden_act": "quick_gelu"}',
        REWARDS + "test_hps_is_open_clips_cosine",
    ),
    Mutation(
        "similarity_of_all_pairs",
        "an image is held against every text of its chunk and not against its own",
        "plugins/genrl_rewards/clip.py",
        '(image * encoded["text"]).sum(-1)',
        '(image @ encoded["text"].T).mean(-1)',
        REWARDS + "test_clip_score_is_the_cosine_of_a_direct_computation",
    ),
    Mutation(
        "text_of_another_prompt",
        "once each text is encoded once, samples take them in turn and not by their prompts",
        "plugins/genrl_rewards/base.py",
        "torch.tensor([places[prompt.text] for _, prompt in pairs])",
        "torch.tensor([row % len(places) for row, _ in enumerate(pairs)])",
        REWARDS + "test_chunks_change_nothing_and_values_follow_their_samples",
    ),
    Mutation(
        "image_reward_not_standardised",
        "ImageReward gives the network's raw number, without its mean and deviation",
        "plugins/genrl_rewards/image_reward.py",
        "return (raw - MEAN) / STD",
        "return raw",
        REWARDS + "test_image_reward_is_blips_number",
    ),
    Mutation(
        "image_reward_epsilon",
        "the image tower's norms have transformers' epsilon, ten times the published one",
        "plugins/genrl_rewards/image_reward.py",
        '"layer_norm_eps": 1e-6,',
        '"layer_norm_eps": 1e-5,',
        REWARDS + "test_image_reward_is_blips_number",
    ),
    Mutation(
        "geneval_counts_unsure_objects",
        "counting takes objects above the confidence of the other categories",
        "plugins/genrl_rewards/geneval_rules.py",
        'least = COUNTING_CONFIDENCE if tag == "counting" else CONFIDENCE',
        'least = CONFIDENCE if tag == "counting" else CONFIDENCE',
        GENEVAL + "test_verdicts_by_hand",
    ),
    Mutation(
        "geneval_relation_turned",
        "left is right and above is below",
        "plugins/genrl_rewards/geneval_rules.py",
        "return {after if d > 0 else before for",
        "return {before if d > 0 else after for",
        GENEVAL + "test_relations_equal_exact_arithmetic",
    ),
    Mutation(
        "geneval_colour_not_judged",
        "every object has the colour that is asked for",
        "plugins/genrl_rewards/geneval_rules.py",
        "return list(colours(objects)).count(clause.colour)",
        "return len(colours(objects))",
        GENEVAL + "test_verdicts_by_hand",
    ),
    Mutation(
        "unanswered_is_zero",
        "a request that the judge never answered is a reward of 0",
        "plugins/genrl_rewards/judge.py",
        "[None if reply is None else self._value(reply) for reply in replies]",
        "[0.0 if reply is None else self._value(reply) for reply in replies]",
        JUDGE + "test_a_request_that_always_fails_is_missing",
    ),
    Mutation(
        "unread_prompts_unsaid",
        "a reward cuts prompts off and says so to nobody",
        "plugins/genrl_rewards/base.py",
        "        self._tell([text for",
        "        id([text for",
        REWARDS + "test_what_a_reward_cuts_off_is_said_once",
    ),
    Mutation(
        "unread_prompts_unsaid_by_the_policy",
        "a policy's text encoder cuts prompts off and a run begins without a word",
        "genrl_core/run/assembly.py",
        "        warn(text)",
        "        str(text)",
        AMUSED + "test_a_prompt_that_clip_reads_in_part_is_named",
    ),
    Mutation(
        "long_prompt_met_when_drawn",
        "the room for a sample is forgotten, so that a prompt which leaves none ends the run late",
        "plugins/genrl_autoregressive/sampler.py",
        "limit=max(each.limit - room, 0),",
        "limit=each.limit,",
        "tests/plugins/autoregressive/test_long_prompts.py::"
        "test_all_prompts_that_are_too_long_are_named_before_the_first_iteration",
    ),
    Mutation(
        "policy_never_asked_about_prompts",
        "a prompt that the policy's config refuses is found when it is first drawn",
        "genrl_core/recipe/check.py",
        "yield from refused(prompts, recipe.policy.check_prompt, file.place)",
        "yield from ()",
        "tests/plugins/test_prompts_taken.py::"
        "test_prompts_that_the_policy_cannot_take_are_found_before_anything_is_built",
    ),
    Mutation(
        "clock_per_read",
        "an attempt may take its time between any two bytes, so that a slow service never ends",
        "plugins/genrl_rewards/chat.py",
        "                asyncio.timeout(self._timeout),\n"
        "                httpx2.AsyncClient(**self._client) as client,",
        "                httpx2.AsyncClient(**self._client | {'timeout': 1.0}) as client,",
        JUDGE + "test_an_attempt_ends_in_time_wherever_the_bytes_are_slow",
    ),
    Mutation(
        "cut_reply_is_an_answer",
        "a reply that the connection cut short is read as if it were whole",
        "plugins/genrl_rewards/chat.py",
        'raise UnavailableError("a reply that ended before its JSON did") from None',
        "return {}",
        JUDGE + "test_a_reply_that_is_cut_short_is_asked_for_again",
    ),
    Mutation(
        "half_a_sum_of_rewards",
        "a sample that lacks one of two rewards stands beside its siblings as if that were 0",
        "genrl_core/loop/rollout.py",
        "return given.any(0) & (given | ~applies[:, plan.group]).all(0)",
        "return given.any(0)",
        TRAINER + "test_a_sample_that_lacks_one_of_two_rewards_is_left_out",
    ),
    Mutation(
        "pickle_that_runs_code",
        "a downloaded pickle is opened with all that it may call",
        "plugins/genrl_models/tensor_files.py",
        "weights_only=True)\n    except",
        "weights_only=False)\n    except",
        REWARD_FILES + "test_a_pickle_that_runs_code_is_not_opened",
    ),
    Mutation(
        "index_that_leads_elsewhere",
        "an index may name shards outside of its folder",
        "plugins/genrl_models/hub.py",
        "isinstance(name, str) and Path(name).name == name for",
        "isinstance(name, str) for",
        MAGVIT_WEIGHTS + "test_indexes_that_lead_elsewhere",
    ),
    Mutation(
        "revision_ignored",
        "the hub gives the newest files whatever revision the recipe names",
        "plugins/genrl_models/hub.py",
        "self.source, name, revision=self.revision,",
        "self.source, name,",
        MAGVIT_WEIGHTS + "test_the_hub_is_asked_for_one_weight_file_of_the_revision",
    ),
    Mutation(
        "prompts_never_asked",
        "a reward that cannot judge a prompt says so in the middle of a run",
        "genrl_core/recipe/check.py",
        "if unfit := _unjudged(prompts, config):",
        "if unfit := _unjudged([], config):",
        NEGOTIATE + "test_prompts_that_a_reward_cannot_judge_are_counted_and_the_first_is_shown",
    ),
    Mutation(
        "reward_leaves_as_done",
        "a reward that calls sys.exit(0) ends the run as a success",
        "genrl_core/interfaces/reward_values.py",
        "except (GenRLError, KeyboardInterrupt):",
        "except (GenRLError, KeyboardInterrupt, SystemExit):",
        "tests/core/test_odd_rewards.py::test_what_is_no_list_of_numbers_is_refused",
    ),
    Mutation(
        "keys_are_rewards",
        "whatever can be iterated over is taken for numbers: the keys of a mapping, bytes, sets",
        "genrl_core/interfaces/reward_values.py",
        "    if raw or not (array or isinstance(given, Sequence)):\n",
        "    given = given if array else [*given]\n    if False:\n",
        "tests/core/test_odd_rewards.py::test_what_is_no_list_of_numbers_is_refused",
    ),
    Mutation(
        "prompts_without_their_ends",
        "white space at the ends of a prompt of JSON or CSV is left out",
        "genrl_core/recipe/prompts.py",
        '"text": text, "negative"',
        '"text": text.strip(), "negative"',
        "tests/core/test_prompts.py::test_white_space_at_the_ends_of_a_value_is_part_of_it",
    ),
)


# What is checked before anything runs.


def mutated(mutation: Mutation, root: Path) -> str:
    """The source of the mutation's file with the bug in it.

    Raises:
        ValueError: its text does not stand there exactly once, or the result is no Python.
    """
    source = (root / mutation.path).read_text(encoding="utf-8")
    if (count := source.count(mutation.old)) != 1:
        raise ValueError(
            f"{mutation.name}: {mutation.old!r} stands {count} times in {mutation.path}, not once: "
            "write the mutation anew for the code as it is now"
        )
    broken = source.replace(mutation.old, mutation.new)
    try:
        ast.parse(broken)
    except SyntaxError as error:
        raise ValueError(f"{mutation.name}: the mutated {mutation.path} is no Python") from error
    return broken


@cache
def functions_of(path: Path) -> frozenset[str]:
    """The names of a file's functions; none where there is no such file."""
    tree = ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "")
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def problems(mutations: Sequence[Mutation], root: Path) -> Iterator[str]:
    """What is wrong with the list itself, a sentence each."""
    names = [mutation.name for mutation in mutations]
    yield from (f"two mutations are called {n}" for n in sorted(set(names)) if names.count(n) > 1)
    for mutation in mutations:
        try:
            mutated(mutation, root)
        except (ValueError, OSError) as error:
            yield str(error)
        path, _, test = mutation.test.partition("::")
        if test.partition("[")[0] not in functions_of(root / path):
            yield f"{mutation.name}: there is no test {mutation.test}"


# In the child: the pytest plugin.

_ended: dict[str, list[str]] = {}
"""How every test ended: empty where it passed, else the exception and its parents."""


def pytest_sessionstart() -> None:
    """Refuse to test anything but the copy."""
    if TREE not in os.environ:
        return
    import genrl_amused
    import genrl_core
    import genrl_masked
    import genrl_objectives
    import genrl_showo

    modules: tuple[ModuleType, ...] = (genrl_core, genrl_masked, genrl_objectives)
    for module in (*modules, genrl_showo, genrl_amused):
        place = Path(str(module.__file__))
        if not place.is_relative_to(os.environ[TREE]):
            raise pytest.UsageError(f"{module.__name__} was imported from {place}, not the copy")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.excinfo is not None:
        errors = [parent.__name__ for parent in call.excinfo.type.__mro__]
        _ended[item.nodeid] = errors if call.when == "call" else [f"error in {call.when}"]
    elif call.when == "call":
        _ended[item.nodeid] = []
    return report


def pytest_sessionfinish() -> None:
    if REPORT in os.environ:
        Path(os.environ[REPORT]).write_text(json.dumps(_ended), encoding="utf-8")


# In the parent.


@dataclass(frozen=True)
class Run:
    """One pytest process: its exit code (None: it hung), how its tests ended, and its seconds."""

    code: int | None
    ended: Mapping[str, list[str]]
    seconds: float
    output: str

    def of(self, test: str) -> dict[str, list[str]]:
        """How the cases of a test ended."""
        return {n: e for n, e in self.ended.items() if n == test or n.startswith(f"{test}[")}


def copy_tree(source: Path, target: Path) -> None:
    """Copy what the tests need, without compiled files: those could outlive a mutation."""
    for name in COPIED:
        if (source / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(source / name, target / name, ignore=ignored)
        elif (source / name).is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)


def run_tests(tree: Path, tests: Sequence[str], *options: str) -> Run:
    """Run tests in a tree, importing nothing of ours from elsewhere."""
    report = tree / "mutation_report.json"
    paths = [str(tree / "plugins"), str(tree), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1",
        TREE: str(tree), REPORT: str(report),
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "tests.mutations", *options, *tests]
    start = time.perf_counter()
    code: int | None = None
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        output = f"no end after {TIMEOUT:g} s"
    ended = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    return Run(code, ended, time.perf_counter() - start, output)


def unharmed(snapshot: Path, tests: Sequence[str]) -> list[str]:
    """The named tests that do not pass without any bug, each with the reason."""
    run = run_tests(snapshot, tests)
    wrong = []
    for test in tests:
        cases = run.of(test)
        failed = {name: errors for name, errors in cases.items() if errors}
        if failed or not cases:
            wrong.append(f"{test}: {failed or 'did not run'}")
    return [*wrong, run.output[-3000:]] if wrong or run.code != 0 else []


def survived(mutation: Mutation, run: Run) -> str:
    """Why a mutation does not count as caught; empty where it does."""
    wanted = {mutation.error} if mutation.error else {"AssertionError", "Failed"}
    failures = [errors for errors in run.of(mutation.test).values() if errors]
    if run.code == 1 and any(wanted & set(errors) for errors in failures):
        return ""
    if run.code == 0:
        return "SURVIVED: the test passes"
    found = "; ".join(errors[0] for errors in failures) or "no failure of the test itself"
    last = "\n".join(run.output.splitlines()[-15:])
    return f"UNCLEAR: pytest ended with {run.code}, {found}; wanted {' or '.join(wanted)}\n{last}"


def attempt(mutation: Mutation, snapshot: Path) -> tuple[str, float]:
    """Run one mutation in a copy of its own: why it survived, and the seconds it took."""
    with tempfile.TemporaryDirectory(prefix="genrl-mutation-") as folder:
        tree = Path(folder).resolve() / "tree"
        copy_tree(snapshot, tree)
        (tree / mutation.path).write_text(mutated(mutation, snapshot), encoding="utf-8")
        run = run_tests(tree, [mutation.test], "-x")
    return survived(mutation, run), run.seconds


def row(mutation: Mutation, verdict: str, seconds: float | None = None) -> str:
    """A mutation in the table."""
    time_taken = "" if seconds is None else f"{seconds:.1f} s"
    first = f"{verdict:8} {mutation.name:33} {time_taken:>6}"
    return f"{first}\n         {mutation.what}\n         {mutation.test}"


def run_all(mutations: Sequence[Mutation], processes: int) -> int:
    """Run the mutations and their tests without them; print the table; the number of failures."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="genrl-snapshot-") as folder:
        snapshot = Path(folder).resolve() / "tree"
        copy_tree(ROOT, snapshot)
        if wrong := list(problems(mutations, snapshot)):
            print("\n".join(wrong))
            return len(wrong)
        # The slow test first, so that it does not end alone.
        ordered = sorted(mutations, key=lambda m: m.name != "no_all_reduce")
        work: dict[Future[tuple[str, float]], Mutation] = {}
        failures = 0
        with ThreadPoolExecutor(processes) as pool:
            tests = list(dict.fromkeys(mutation.test for mutation in mutations))
            sound = pool.submit(unharmed, snapshot, tests)
            one: Callable[[Mutation], tuple[str, float]] = partial(attempt, snapshot=snapshot)
            for mutation in ordered:
                work[pool.submit(one, mutation)] = mutation
            for done in as_completed(work):
                why, seconds = done.result()
                failures += bool(why)
                print(row(work[done], "MISSED" if why else "caught", seconds), flush=True)
                if why:
                    print(why, flush=True)
        for line in (broken := sound.result()):
            print(line)
        failures += bool(broken)
    caught = len(mutations) - (failures - bool(broken))
    state = "do NOT all pass" if broken else "pass"
    print(
        f"{caught} of {len(mutations)} mutations caught; their {len(tests)} tests {state} without "
        f"them; {time.perf_counter() - start:.0f} s"
    )
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the mutations and run nothing")
    parser.add_argument("--only", metavar="NAME", nargs="+", default=[], help="these alone")
    parser.add_argument("--processes", type=int, default=2, help="how many run at once")
    arguments = parser.parse_args()
    names = [mutation.name for mutation in MUTATIONS]
    if unknown := [name for name in arguments.only if name not in names]:
        parser.error(f"no mutation is called {', '.join(unknown)}; --list names them")
    chosen = [m for m in MUTATIONS if not arguments.only or m.name in arguments.only]
    if arguments.list:
        for mutation in chosen:
            print(row(mutation, "bug"))
        return 0
    return int(run_all(chosen, max(1, arguments.processes)) > 0)


if __name__ == "__main__":
    sys.exit(main())
