"""The views of a rollout: what an objective can look at, as numbers with a gradient."""

from genrl_core.errors import PluginError
from genrl_core.loop.views.common import Context, Prepared, View, Wanted
from genrl_core.loop.views.denoising import DenoisingView
from genrl_core.loop.views.elbo import ElboView
from genrl_core.loop.views.reward import RewardView
from genrl_core.loop.views.steps import StepsView

__all__ = [
    "VIEWS", "Context", "DenoisingView", "ElboView", "Prepared", "RewardView", "StepsView", "View",
    "Wanted", "view_class",
]  # fmt: skip

VIEWS: dict[str, type[View]] = {
    view.name: view for view in (StepsView, ElboView, DenoisingView, RewardView)
}


def view_class(view: str | type[View]) -> type[View]:
    """The class of a view: one of GenRL's by its name, or a plugin's own.

    Raises:
        PluginError: there is no such view.
    """
    if isinstance(view, type) and issubclass(view, View):
        return view
    if view not in VIEWS:
        raise PluginError(f"there is no view {view!r}: name one of {', '.join(VIEWS)}")
    return VIEWS[str(view)]
