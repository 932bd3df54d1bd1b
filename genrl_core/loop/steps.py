"""Which network calls of a sample are trained, and with what weight (computational reduction)."""

import torch
from torch import Tensor

from genrl_core.errors import RecipeError
from genrl_core.interfaces.streams import Streams
from genrl_core.loop.settings import StepsConfig


def choose_calls(config: StepsConfig, calls: int, streams: Streams) -> tuple[Tensor, Tensor]:
    """The calls of every sample that are trained, and their importance.

    ``first`` and ``last`` are the contiguous halves of Mask-GRPO's computational reduction
    (arXiv 2510.13418, section 3.4). ``random`` draws ``count`` of K calls without replacement,
    ``stratified`` one call from each of ``count`` contiguous strata; both draw anew per sample.

    Args:
        config: the section ``train.steps``.
        calls: K.
        streams: the B samples' random streams.

    Returns:
        chosen ``[K, B]`` bool, and weight ``[K, B]`` float32: 1, or with ``importance`` the
        inverse of the probability of being chosen, so that the expected weight of a call is 1.

    Raises:
        RecipeError: ``count`` exceeds K.
    """
    samples = len(streams)
    ones = torch.ones(calls, samples, device=streams.device)
    if config.choose == "all" or config.count is None:
        return ones.bool(), ones
    count = config.count
    if count > calls:
        raise RecipeError(
            f"train.steps.count is {count}, but a sample has {calls} network calls: "
            f"choose at most {calls}, or `steps: {{choose: all}}`"
        )
    index = torch.arange(calls, device=streams.device).unsqueeze(1).expand(calls, samples)
    if config.choose == "first":
        return index < count, ones
    if config.choose == "last":
        return index >= calls - count, ones
    if config.choose == "random":
        order = streams.uniform(calls).T.argsort(0)
        chosen = torch.zeros_like(ones, dtype=torch.bool).scatter(0, order[:count], True)
        share = torch.full_like(ones, count / calls)
    else:
        edges = torch.tensor([i * calls // count for i in range(count + 1)], device=ones.device)
        size = (edges[1:] - edges[:-1]).unsqueeze(1)
        picked = edges[:-1, None] + (streams.uniform(count).T * size).long().clamp(max=size - 1)
        chosen = torch.zeros_like(ones, dtype=torch.bool).scatter(0, picked, True)
        share = (1 / size).repeat_interleave(size.flatten(), 0).expand(calls, samples)
    return chosen, 1 / share if config.importance else ones
