"""NFT: an objective on denoising errors, of re-noised or re-masked samples."""

from typing import Annotated, Literal

from pydantic import Field

from genrl_core import Batch, Capability, ObjectiveConfig
from genrl_objectives.common import (
    ConfiguredObjective,
    Metrics,
    Positive,
    Reduction,
    Tensor,
    register,
)


class Nft(ConfiguredObjective["NftConfig"]):
    """Negative-aware fine-tuning (DiffusionNFT, arXiv 2509.16117), for every paradigm.

    With ``o`` the prediction of the partner weights and ``v`` the current one, ``v+ = beta v +
    (1 - beta) o`` and ``v- = (1 + beta) o - beta v`` have errors ``e+`` and ``e-``, and

        ``loss = c / beta (p e+ + (1 - p) e-)`` with ``p = 1/2 + clip(A, -c, c) / (2 c)``.

    At ``v = o`` the gradient is that of ``clip(A) e``. For categorical predictions the mixtures are
    of log-probabilities. The paper draws samples with the lagging weights, which are the partner;
    with ``partner: reference`` the current weights draw, and the mixture is with weights that never
    move. With ``normalize`` every error is the paper's ``mean (x0_hat - x0)^2 / sg(mean
    |x0_hat - x0|)``, ``x0_hat`` being the clean sample that a prediction implies.

    ``pull`` adds ``pull x`` the gap to the reference ``r``, unweighted by the advantage:

        ``gap = 2 e(v) + 2 e(r) - 4 e((v + r) / 2)``.

    The target cancels. For a squared error it is the paper's ``mean (v - r)^2``. For the
    cross-entropy of logits it is ``-4 log sum sqrt(p_v p_r)``, four times the Bhattacharyya
    distance of the two distributions: never negative, and their KL to second order.
    """

    separable = True

    def __init__(self, config: "NftConfig"):
        super().__init__(config)
        beta, other = config.beta, config.partner
        self.needs = frozenset({"error_weights"} if config.normalize else ())
        self.mixtures = (
            {"current": beta, other: 1 - beta},
            {"current": -beta, other: 1 + beta},
        )
        if config.pull:
            between = {"current": 0.5, "reference": 0.5}
            self.mixtures += ({"current": 1.0}, {"reference": 1.0}, between)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        config, limit = self.config, self.config.advantage_clip
        near, far, *rest = batch.errors
        chance = 0.5 + batch.advantage.clamp(-limit, limit) / (2 * limit)
        metrics: Metrics = {"error": near, "error_far": far}
        if config.normalize:
            near, far = near * batch.error_weights[0], far * batch.error_weights[1]
        entries = limit / config.beta * (chance * near + (1 - chance) * far)
        if rest:
            current, reference, between = rest
            gap = 2 * current + 2 * reference - 4 * between
            entries, metrics["pull"] = entries + config.pull * gap, gap
        return batch.reduce(entries, config.reduce), metrics


@register("nft")
class NftConfig(ObjectiveConfig):
    """NFT: fit good samples, and unfit bad ones, by predictions on either side of the old one."""

    paper = "arXiv 2509.16117"
    builds = Nft
    beta: Positive = Field(
        1.0, description="how far the current prediction stands in for either side"
    )
    advantage_clip: Positive = Field(
        5.0, description="advantage at which a sample counts as wholly good, or wholly bad"
    )
    partner: Literal["lagging", "reference"] = Field(
        "lagging",
        description="the weights that are mixed in: the lagging ones, which then also draw "
        "(weights.lagging), or the fixed reference, with samples of the current ones",
    )
    pull: Annotated[float, Field(ge=0)] = Field(
        1e-4,
        description="factor of the mean squared distance to the reference's prediction (of about "
        "their KL in nats for logits); 0 leaves it and the reference out",
    )
    normalize: bool = Field(
        False,
        description="the paper's adaptive weight: squared errors of the clean sample over the mean "
        "absolute one (for diffusion)",
    )
    reduce: Reduction = "sample_mean"

    def view_wanted(self) -> Literal["denoising"]:
        return "denoising"

    def draws_with(self) -> Literal["current", "lagging"]:
        return "lagging" if self.partner == "lagging" else "current"

    def needs(self) -> frozenset[Capability]:
        return super().needs() | ({Capability.CLEAN_SAMPLE} if self.normalize else frozenset())
