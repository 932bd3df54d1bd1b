"""The objectives of a recipe, grouped by the view that they share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from genrl_core.errors import GenRLError, PluginError
from genrl_core.interfaces.batch import Batch, Metric
from genrl_core.interfaces.configs import ObjectiveConfig
from genrl_core.interfaces.objective import Objective, SamplerBackprop
from genrl_core.loop.settings import EmaConfig, WeightsConfig
from genrl_core.loop.views import View, view_class
from genrl_core.loop.weights import LAGGING, REFERENCE

Members = tuple[tuple[str, float, Objective], ...]
"""(label, weight, objective), in the recipe's order."""


@dataclass(frozen=True)
class ObjectiveGroup:
    """The objectives that share a view: one batch, one summed loss, one gradient."""

    view: type[View]
    members: Members

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(objective.needs for _, _, objective in self.members))

    @property
    def separable(self) -> bool:
        return all(objective.separable for _, _, objective in self.members)

    @property
    def mixtures(self) -> tuple[Mapping[str, float], ...]:
        return tuple(mix for _, _, objective in self.members for mix in objective.mixtures)

    @property
    def backprop(self) -> SamplerBackprop:
        """How the samples of the view ``reward`` are drawn again: alike for all members.

        Raises:
            GenRLError: an objective of that view does not say how.
        """
        label, _, objective = self.members[0]
        if objective.backprop is None:
            raise GenRLError(
                f"objective {label} reads the view reward and has no backprop: give the class an "
                "attribute backprop = SamplerBackprop(...), which says what is drawn again with "
                "gradient"
            )
        return objective.backprop

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Metric]]:
        """The weighted sum of the members' losses, and their metrics as ``label/name``."""
        total: Tensor | None = None
        metrics: dict[str, Metric] = {}
        seen = 0
        for label, weight, objective in self.members:
            own = batch
            if objective.mixtures:
                mine = slice(seen, seen + len(objective.mixtures))
                weights = batch.error_weights[mine]
                own = replace(batch, errors=batch.errors[mine], error_weights=weights)
                seen = mine.stop
            value, found = objective.loss(own)
            total = weight * value if total is None else total + weight * value
            for name, metric in found.items():
                known = metric if isinstance(metric, Metric) else Metric(metric)
                metrics[f"{label}/{name}"] = replace(known, values=known.values.detach())
        assert total is not None
        return total, metrics


def group_objectives(
    members: Iterable[tuple[str | type[View], str, float, Objective]],
) -> list[ObjectiveGroup]:
    """(view, label, weight, objective) by view, in order; those that draw again differently apart.

    Raises:
        GenRLError: an objective needs a field that its view does not give.
    """
    found: dict[tuple[type[View], SamplerBackprop | None], list[tuple[str, float, Objective]]] = {}
    for name, label, weight, objective in members:
        view = view_class(name)
        if missing := sorted(objective.needs - view.gives):
            raise GenRLError(
                f"objective {label} needs {', '.join(missing)}, and the view {view.name} gives "
                f"{', '.join(sorted(view.gives)) or 'no optional field'}: correct its attribute "
                "needs"
            )
        found.setdefault((view, objective.backprop), []).append((label, weight, objective))
    return [ObjectiveGroup(view, tuple(together)) for (view, _), together in found.items()]


def build_objectives(
    configs: Mapping[str, ObjectiveConfig], views: Mapping[str, Any]
) -> list[ObjectiveGroup]:
    """The groups of a recipe's objectives; ``views`` is label -> view.

    Raises:
        PluginError: an objective declares what its config declares.
    """
    return group_objectives(
        (views[label], label, config.weight, build_objective(label, config))
        for label, config in configs.items()
    )


def build_objective(label: str, config: ObjectiveConfig) -> Objective:
    """The objective of a config; raises like ``build_objectives``."""
    objective = config.build()
    for attribute, method in (("view", "view_wanted"), ("draw_with", "draws_with")):
        if hasattr(objective, attribute):
            raise PluginError(
                f"objective {label}: {type(objective).__name__} has an attribute {attribute}, "
                f"which nobody reads: {type(config).__name__}.{method}() declares it, and "
                "batch.view says it. Leave the attribute out"
            )
    return objective


@dataclass(frozen=True)
class RequiredWeights:
    """The weight sets beside the current one that objectives and recipe ask for.

    Attributes:
        reference: whether the weights before training are kept.
        averages: name -> how that set follows the current weights.
        drawing: the set that draws the samples.
    """

    reference: bool
    averages: Mapping[str, EmaConfig]
    drawing: str


def required_weights(
    groups: Iterable[ObjectiveGroup], draws_with: Iterable[str], weights: WeightsConfig
) -> RequiredWeights:
    """Which weight sets a run needs.

    Args:
        groups: its objectives.
        draws_with: the set that each objective wants its samples drawn by.
        weights: the section ``weights``.

    Raises:
        GenRLError: the lagging weights lag, and the trust region is around the current ones.
    """
    every, drawing = list(groups), set(draws_with)
    needs = frozenset().union(*(group.needs for group in every))
    mixed = {name for group in every for mix in group.mixtures for name in mix}
    averages: dict[str, EmaConfig] = {}
    if LAGGING in drawing | mixed or "kl_behavior" in needs:
        averages[LAGGING] = weights.lagging
    if "kl_behavior" in needs and LAGGING not in drawing and weights.lagging.decay > 0:
        raise GenRLError(
            f"weights.lagging: decay is {weights.lagging.decay:g}, but the trust region "
            "is around the weights that drew the samples, the current ones here: leave "
            "weights.lagging out"
        )
    if weights.ema is not None:
        averages["ema"] = weights.ema
    reference = bool(needs & {"reference", "kl_reference"}) or REFERENCE in mixed
    return RequiredWeights(reference, averages, LAGGING if LAGGING in drawing else "current")
