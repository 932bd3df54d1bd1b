"""Runs after the fact: their records, their policies, and samples and scores of them.

Public, for scripts and for the verbs of plugins; see ``run.api``.
"""

from typing import TYPE_CHECKING

from genrl_core.lazy import lazy_names

if TYPE_CHECKING:
    from genrl_core.run.api import Run, generate, load_policy, open_run, registry, score

__all__ = ["Run", "generate", "load_policy", "open_run", "registry", "score"]

__getattr__ = lazy_names("genrl_core", dict.fromkeys(__all__, "run.api"))
