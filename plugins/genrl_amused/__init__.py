"""aMUSEd, a masked text-to-image model of diffusers (arXiv 2401.01808).

This entry module holds the config and the hook only and loads no torch.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from genrl_core import Register, hookimpl
from genrl_masked import MaskedPolicyConfig


class AmusedConfig(MaskedPolicyConfig):
    """aMUSEd, a masked text-to-image transformer, from a folder or the hub."""

    paper: ClassVar[str] = "arXiv 2401.01808"
    builds = "genrl_amused.policy:AmusedPolicy"
    loads_weights: ClassVar[bool] = True

    base: str | None = Field(
        None,
        description="folder or hub id that is loaded first, text encoder and decoder included, "
        "where weights are GenRL's own (a run, a checkpoint, recipe:NAME); silent: what that run "
        "began with, or weights itself is the model, for example amused/amused-256",
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="what the transformer's weights are rounded to when they are loaded, and of "
        "its products; what is trained or averaged stays float32, and so do densities, the text "
        "encoder, and the decoder, which overflows in half precision",
    )
    attention: Literal["auto", "sdpa", "xformers", "flash"] = Field(
        "auto",
        description="what computes the transformer's attention: torch's own choice (sdpa), "
        "xformers, torch's flash kernel alone (flash), or the first of xformers and sdpa that a "
        "call on this machine finds able (auto)",
        json_schema_extra={"changes_results": False},
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="compute each layer of the transformer again in the backward pass: a third "
        "more time, and a small part of the activations' memory",
        json_schema_extra={"changes_results": False},
    )
    aesthetic_score: Annotated[float, Field(ge=0, le=10)] = Field(
        6.0, description="LAION aesthetic score that the network is told to aim at, 0 to 10"
    )

    def weights_problem(self) -> str:
        if self.weights or self.base:
            return ""
        return (
            "is missing: give amused a folder or a hub id, such as amused/amused-256, and where "
            "the weights are GenRL's own, name under policy.base the model they belong to"
        )


@hookimpl
def register_policies(register: Register) -> None:
    """The policy of aMUSEd."""
    register("amused", AmusedConfig)
