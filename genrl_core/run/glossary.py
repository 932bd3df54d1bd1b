"""What every metric of ``metrics.jsonl`` means."""

GLOSSARY: dict[str, str] = {
    "iteration": "how many iterations are complete; 1 on the first line",
    "reward": "mean of the weighted sum of rewards over all samples drawn, rejected ones included; "
    "of the rewards as they are, also with `advantage.combine: normalise_then_sum`, where the sum "
    "that is learned from has the mean 0 by construction",
    "reward_std": "standard deviation of that sum over the samples",
    "reward/<label>": "mean of one reward before its weight",
    "spread": "mean over the groups of the standard deviation within a group of the combined "
    "reward, which is what filter, advantages and objectives read: the weighted sum, or with "
    "`advantage.combine: normalise_then_sum` that of the z-scores",
    "zero_spread": "share of the groups whose combined rewards are all equal: nothing can be "
    "learned there",
    "advantage_std": "standard deviation of the advantages that were learned from",
    "samples": "samples drawn, those of rejected groups included",
    "groups_kept": "groups that were learned from",
    "groups_rejected": "groups that the filter rejected",
    "attempts": "rollouts of the iteration; more than 1 when rejected groups were drawn again",
    "loss": "what the optimizer minimised, averaged over the optimizer steps; its sign and size "
    "say little in policy-gradient methods: look at the reward",
    "grad_norm": "norm of the gradient of all trained weights before clipping, averaged",
    "learning_rate": "of the first optimizer step",
    "skipped": "share of the optimizer steps that were skipped: nothing to learn, or not finite",
    "empty": "share of the optimizer steps in which no objective had a gradient: no sample with a "
    "reward, every group rejected, or all rewards of each prompt equal; they move nothing",
    "drift": "largest difference, in nats, between a log-density computed for the update and the "
    "recorded one under the same weights, or between a differentiated reward and the recorded one; "
    "rounding error at most, or the sampler does not score, or not repeat, what it drew",
    "ratio_mean": "mean of the ratio of new to old probability; 1 at the first update",
    "ratio_max": "largest such ratio",
    "clip_fraction": "share of the terms whose ratio the clip holds back; 0 at the first update",
    "ratio_bounded": "share of the terms whose log-ratio is beyond 20 nats, where ratios are "
    "bounded and have no gradient; above 0 a recipe's steps are far too large",
    "kl": "divergence from the reference policy, in nats, averaged over terms",
    "kl_bounded": "share of the terms whose log-ratio to the reference, or to the drawing weights "
    "where the estimator reads them, is beyond 20 nats, where it goes on linearly",
    "entropy": "entropy of the policy's distributions, in nats, averaged over terms",
    "margin": "mean scaled log-ratio of the better sample of a pair minus that of the worse",
    "group_weight": "mean weight of a group in objectives that compare whole groups",
    "weight_max": "largest weight of a sample in objectives that weigh samples by their reward",
    "error": "mean error of the prediction on corrupted samples, of the mixture to be strengthened",
    "error_far": "the same of the mixture to be weakened",
    "pull": "mean squared distance of the prediction on corrupted samples from the reference's; "
    "for categoricals four times their Bhattacharyya distance, which is about their KL, in nats",
    "reward_gap": "mean difference between the differentiated reward and the sample's own: pixels "
    "are not rounded there, samples may stop early, and later updates move them",
    "value_error": "mean squared error of the predicted reward",
    "log_probs": "mean log-density of the trained terms, in nats",
    "bound": "mean bound on the log-likelihood of the samples learned from, in nats",
    "<objective>/<metric>": "a metric of the objective with that label, where an earlier objective "
    "of the recipe logs the same name",
    "seconds": "wall time of the iteration",
    "seconds_rollout": "of it, drawing and decoding samples",
    "seconds_reward": "of it, rewards",
    "seconds_update": "of it, gradients and optimizer steps",
    "evaluate/<name>": "a measure on the held-out prompts, in iterations that evaluate",
    "non_finite": "names of the metrics of this line that were NaN or infinite; they stand as null",
}
"""Metric -> meaning; ``<...>`` stands for any name."""
