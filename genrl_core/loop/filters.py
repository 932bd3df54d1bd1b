"""Group filters: which groups of samples are worth learning from."""

from collections import deque
from typing import Any

import numpy as np
from torch import Tensor

from genrl_core.loop.settings import FilterConfig


class GroupFilter:
    """Rejects groups whose rewards hardly differ (Mask-GRPO's "vanishing samples").

    A group is rejected when its spread (unbiased standard deviation of its rewards) is not above
    ``min_std``, or lies below the ``std_percentile`` of the spreads seen before it
    (arXiv 2510.13418, section 3.4). The paper leaves three things open; here the history holds the
    last ``history`` spreads, percentiles act after ``warmup`` spreads, and the spreads of rejected
    groups enter the history too: without them the percentile would creep upwards and reject ever
    more. The decision uses global numbers, so every rank takes the same one.
    """

    def __init__(self, config: FilterConfig):
        self._config = config
        self._history: deque[float] = deque(maxlen=config.history)

    @property
    def threshold(self) -> float:
        """The spread that a group must reach now."""
        config = self._config
        if config.std_percentile is None or len(self._history) < config.warmup:
            return 0.0
        return float(np.percentile(list(self._history), config.std_percentile))

    def keep(self, spread: Tensor) -> list[bool]:
        """Decide on the groups with these spreads (``[P]``), then remember the spreads."""
        threshold, floor = self.threshold, self._config.min_std
        values = [float(value) for value in spread]
        kept = [v >= threshold and (floor is None or v > floor) for v in values]
        if self._config.std_percentile is not None:
            self._history.extend(values)
        return kept

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: JSON."""
        return {"history": list(self._history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self._history = deque(map(float, state["history"]), maxlen=self._config.history)
