"""The reward's own gradient in the place of a policy gradient."""

from typing import TYPE_CHECKING

from torch import Tensor

from genrl_core import Batch, Objective, SamplerBackprop

if TYPE_CHECKING:
    from genrl_objectives.differentiable import RewardGradientConfig


class RewardGradient(Objective):
    """``-r`` or ``max(0, margin - r)``, r the differentiable reward of the sample drawn again.

    One objective for three papers, which differ in what carries the gradient:

    - DRaFT-K (arXiv 2309.17400): the last ``steps`` network calls of the finished sample. Its LV
      variant, which averages several noised copies of the last step, is left out.
    - AlignProp (arXiv 2310.03739): the same with a random K. The paper draws one K per batch; here
      every sample has its own, which has the same mean and less noise.
    - ReFL (arXiv 2304.05977): a random step of the last ones, whose prediction of the finished
      sample is judged, with ``margin`` 2. Its pre-training term is the objective ``sft``, and its
      factor 1e-3 is the ``weight``.

    Neither advantage nor group enters. The gradient sees the reward as a function: it climbs
    whatever the reward is blind to, so compare a held-out measure.
    """

    separable = True

    def __init__(self, config: "RewardGradientConfig"):
        self._margin = config.margin
        stop = None if config.stop_range is None else (config.stop_range[0], config.stop_range[1])
        self.backprop = SamplerBackprop(config.steps, config.random_steps, stop)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        reward = batch.need("differentiable_reward")
        entries = -reward if self._margin is None else (self._margin - reward).clamp(min=0)
        gap = (reward.detach() - batch.reward).abs()
        return batch.reduce(entries), {"reward_gap": gap}
