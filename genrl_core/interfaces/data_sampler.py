"""Samplers that return data in place of drawing: what supervised training learns from."""

from abc import abstractmethod
from typing import Any

import torch

from genrl_core.errors import RecipeError
from genrl_core.interfaces.policy import Policy
from genrl_core.interfaces.records import Plan, Tensors, Terms, Trajectory
from genrl_core.interfaces.sampler import Sampler


class DataSampler(Sampler):
    """Gives examples, which a policy's own ``tokenize(examples)`` turns into finished samples.

        class Sums(DataSampler):
            what, taken_by = "sums gives texts", "causal_lm"
            def examples(self, plan): ...                # one per sample, from plan.streams("data")

    The config class says ``supervised = True``, and ``data_kind`` the medium of the examples.

    Attributes:
        what, taken_by: for the message to a policy without ``tokenize``: what is given, as half a
            sentence, and the policies that take it.
    """

    what: str
    taken_by: str

    @abstractmethod
    def examples(self, plan: Plan) -> Any:
        """One example per sample; all randomness is the stream ``data`` of the plan."""

    def rollout(
        self, policy: Policy, cond: Tensors, plan: Plan,
        grad_steps: int = 0,  # noqa: ARG002  # data have no gradient
    ) -> Trajectory:  # fmt: skip
        """The examples as finished samples, with no trace and no terms.

        Raises:
            RecipeError: the policy has no ``tokenize``.
        """
        tokenize = getattr(policy, "tokenize", None)
        if tokenize is None:
            raise RecipeError(
                f"sampler.use: {self.what}, which {type(policy).__name__} cannot take: use it with "
                f"{self.taken_by}"
            )
        device = torch.device(plan.device)
        final = {name: tensor.to(device) for name, tensor in tokenize(self.examples(plan)).items()}
        return Trajectory(cond, {}, final, Terms.empty(len(plan), device))
