"""Which network evaluations of a sample are trained, and with what weight."""

import torch
from torch import Tensor

from genrl_core.errors import RecipeError
from genrl_core.interfaces.streams import Streams
from genrl_core.loop.settings import StepsConfig


def choose_evals(config: StepsConfig, num_evals: int, streams: Streams) -> tuple[Tensor, Tensor]:
    """The evaluations of every sample that are trained, and their importance.

    ``first`` and ``last`` are the contiguous halves of Mask-GRPO's computational reduction (arXiv
    2510.13418, section 3.4). ``random`` draws ``count`` of K evaluations without replacement,
    ``stratified`` one from each of ``count`` contiguous strata; both draw anew per sample.

    Args:
        config: the section ``train.steps``.
        num_evals: K.
        streams: the B samples' random streams.

    Returns:
        chosen ``[K, B]`` bool, and weight ``[K, B]`` float32: 1, or with ``importance`` the
        inverse of the probability of being chosen, so that the expected weight of one is 1.

    Raises:
        RecipeError: ``count`` exceeds K.
    """
    samples = len(streams)
    ones = torch.ones(num_evals, samples, device=streams.device)
    if config.choose == "all" or config.count is None:
        return ones.bool(), ones
    count = config.count
    if count > num_evals:
        raise RecipeError(
            f"train.steps.count is {count}, but a sample has {num_evals} network evaluations: "
            f"choose at most {num_evals}, or `steps: {{choose: all}}`"
        )
    index = torch.arange(num_evals, device=streams.device).unsqueeze(1).expand(num_evals, samples)
    if config.choose == "first":
        return index < count, ones
    if config.choose == "last":
        return index >= num_evals - count, ones
    if config.choose == "random":
        order = streams.uniform(num_evals).T.argsort(0)
        chosen = torch.zeros_like(ones, dtype=torch.bool).scatter(0, order[:count], True)
        share = torch.full_like(ones, count / num_evals)
    else:
        edges = torch.tensor([i * num_evals // count for i in range(count + 1)], device=ones.device)
        size = (edges[1:] - edges[:-1]).unsqueeze(1)
        picked = edges[:-1, None] + (streams.uniform(count).T * size).long().clamp(max=size - 1)
        chosen = torch.zeros_like(ones, dtype=torch.bool).scatter(0, picked, True)
        share = (1 / size).repeat_interleave(size.flatten(), 0).expand(num_evals, samples)
    return chosen, 1 / share if config.importance else ones
