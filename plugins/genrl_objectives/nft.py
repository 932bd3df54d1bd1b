"""Objectives on denoising errors: re-noised or re-masked samples, whatever the paradigm."""

from typing import TYPE_CHECKING

from torch import Tensor

from genrl_core import Batch, Objective

if TYPE_CHECKING:
    from genrl_objectives.configs import NftConfig


class Nft(Objective):
    """Negative-aware fine-tuning (DiffusionNFT, arXiv 2509.16117), for every paradigm.

    With ``o`` the prediction of the partner weights and ``v`` the current one, ``v+ = beta v +
    (1 - beta) o`` and ``v- = (1 + beta) o - beta v`` have errors ``e+`` and ``e-``, and

        ``loss = c / beta (p e+ + (1 - p) e-)`` with ``p = 1/2 + clip(A, -c, c) / (2 c)``.

    At ``v = o`` the gradient is that of ``clip(A) e``. For categorical predictions the mixtures are
    of log-probabilities. The paper draws samples with the lagging weights ``old``, which are the
    partner; with ``partner: reference`` the current weights draw, and the mixture is with weights
    that never move. With ``normalize`` every error is the paper's ``mean (x0_hat - x0)^2 / sg(mean
    |x0_hat - x0|)``, ``x0_hat`` being the clean sample that a prediction implies.

    ``pull`` adds ``pull x`` the gap to the reference ``r``, unweighted by the advantage:

        ``gap = 2 e(v) + 2 e(r) - 4 e((v + r) / 2)``.

    The target cancels. For a squared error it is the paper's ``mean (v - r)^2``. For the
    cross-entropy of logits it is ``-4 log sum sqrt(p_v p_r)``, four times the Bhattacharyya
    distance of the two distributions: never negative, and their KL to second order.
    """

    separable = True

    def __init__(self, config: "NftConfig"):
        self._config, beta, other = config, config.beta, config.partner
        self.needs = frozenset({"error_weights"} if config.normalize else ())
        self.mixtures = (
            {"current": beta, other: 1 - beta},
            {"current": -beta, other: 1 + beta},
        )
        if config.pull:
            between = {"current": 0.5, "reference": 0.5}
            self.mixtures += ({"current": 1.0}, {"reference": 1.0}, between)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, limit = self._config, self._config.advantage_clip
        near, far, *rest = batch.errors
        chance = 0.5 + batch.advantage.clamp(-limit, limit) / (2 * limit)
        metrics = {"error": near, "error_far": far}
        if config.normalize:
            near, far = near * batch.error_weights[0], far * batch.error_weights[1]
        entries = limit / config.beta * (chance * near + (1 - chance) * far)
        if rest:
            current, reference, between = rest
            gap = 2 * current + 2 * reference - 4 * between
            entries, metrics["pull"] = entries + config.pull * gap, gap
        return batch.reduce(entries, config.reduce), metrics
