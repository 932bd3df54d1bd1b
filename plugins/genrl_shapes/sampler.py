"""A sampler that returns data: scenes that show what the prompts ask for."""

from collections.abc import Sequence

import numpy as np

from genrl_core import DataSampler, Plan, Prompt
from genrl_shapes.grammar import ANYTHING, CATEGORIES, request_of, requests
from genrl_shapes.world import Array, Request, render, scene_of


class ShapesDataSampler(DataSampler):
    """Scenes uniform over the places and colours that a prompt leaves open.

    The prompt ``anything`` is a random prompt of a random category.
    """

    what = "shapes_data gives images of shapes"
    taken_by = "a policy of genrl_shapes"

    def examples(self, plan: Plan) -> Array:
        """Images ``[B, 30, 30]`` uint8, palette indices."""
        drawn = plan.streams("data").uniform(10).double().cpu().tolist()
        pairs = zip(plan.sample_prompts(), drawn, strict=True)
        return np.stack([render(scene_of(_wanted(p, u[:2]), u[2:])) for p, u in pairs])


def _wanted(prompt: Prompt, chances: Sequence[float]) -> Request:
    if prompt.text.strip().lower() != ANYTHING:
        return request_of(prompt)
    found = requests(CATEGORIES[int(chances[0] * len(CATEGORIES))])
    return found[int(chances[1] * len(found))]
