"""A sampler that returns data: scenes that show what the prompts ask for."""

from collections.abc import Sequence

import numpy as np

from genrl_core import DataSampler, Plan, Prompt
from genrl_shapes import ShapesDataConfig
from genrl_shapes.grammar import ANYTHING, CATEGORIES, request_of, requests
from genrl_shapes.world import Array, Request, render, scene_of


class ShapesDataSampler(DataSampler):
    """Scenes uniform over the places and colours that a prompt leaves open.

    The prompt ``anything`` is a random prompt of a random category. With probability
    ``caption_noise`` the scene is that of a random prompt of the same category, which may by chance
    be the prompt itself.
    """

    what = "shapes_data gives images of shapes"
    taken_by = "a policy of genrl_shapes"

    def __init__(self, config: ShapesDataConfig):
        self._noise = config.caption_noise

    def examples(self, plan: Plan) -> Array:
        """Images ``[B, 30, 30]`` uint8, palette indices."""
        drawn = plan.streams("data").uniform(11).double().cpu().tolist()
        pairs = zip(plan.sample_prompts(), drawn, strict=True)
        return np.stack([render(scene_of(self._shown(p, u[:3]), u[3:])) for p, u in pairs])

    def _shown(self, prompt: Prompt, chances: Sequence[float]) -> Request:
        noise, category, which = chances
        if prompt.text.strip().lower() == ANYTHING:
            found = requests(CATEGORIES[int(category * len(CATEGORIES))])
        elif noise < self._noise:
            found = requests(request_of(prompt).category)
        else:
            return request_of(prompt)
        return found[int(which * len(found))]
