"""Show-o and its tokenizer MAGVIT-v2: masked text-to-image models (arXiv 2408.12528).

This entry module holds configs and hooks only and loads no torch.
"""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from genrl_core import Register, hookimpl
from genrl_masked import MaskedPolicyConfig

Count = Annotated[int, Field(ge=1)]


class ShowoConfig(MaskedPolicyConfig):
    """Show-o, 1.4 billion parameters: Phi-1.5 that unmasks the codes of MAGVIT-v2."""

    paper: ClassVar[str] = "arXiv 2408.12528"
    builds = "genrl_showo.policy:ShowoPolicy"
    loads_weights: ClassVar[bool] = True
    masks_prompts: ClassVar[bool] = True
    base: str | None = Field(
        None,
        description="folder or hub id of a published Show-o: loaded first where weights are "
        "GenRL's own (a run, a checkpoint), and asked for config.json where weights has none; "
        "silent: what that run began with",
    )
    revision: str | None = Field(None, description="branch, tag or commit of weights on the hub")
    num_image_tokens: Count | None = Field(
        None,
        description="N, codes of an image, a square: 256 for 256 x 256 pixels, 1024 for 512 x 512; "
        "silent: num_vq_tokens of config.json",
    )
    max_text_tokens: Annotated[int, Field(ge=3)] = Field(
        128, description="tokens of a prompt, t2i and start included, before it is cut off"
    )
    text_tokenizer: str | None = Field(
        None,
        description="folder or hub id of the text's tokenizer; silent: llm_model_path of "
        "config.json, or microsoft/phi-1_5",
    )
    image_tokenizer: str = Field(
        "showlab/magvitv2", description="folder or hub id of MAGVIT-v2, which makes the pixels"
    )
    images_per_decode: Count = Field(
        4,
        description="images that pass through MAGVIT-v2 at a time: 3 to 4 GB each at 512 x 512",
        json_schema_extra={"changes_results": False},
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the layers' products, by autocast; weights, norms, residual stream, head "
        "and densities are float32 in any case",
    )
    attention: Literal["auto", "sdpa", "xformers", "flash"] = Field(
        "auto",
        description="what computes the attention: torch's own choice (sdpa), xformers, torch's "
        "flash kernel alone (flash), which takes no mask and so no prompts of several lengths in "
        "one forward, or the first of xformers and sdpa that a call here finds able (auto)",
        json_schema_extra={"changes_results": False},
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="compute each layer again in the backward pass: a third more time, and a "
        "tenth or less of the activations' memory",
        json_schema_extra={"changes_results": False},
    )

    @model_validator(mode="after")
    def _square(self) -> "ShowoConfig":
        count = self.num_image_tokens
        if count is not None and math.isqrt(count) ** 2 != count:
            raise ValueError(f"num_image_tokens {count} is no square: 256 and 1024 are usual")
        return self

    def weights_problem(self) -> str:
        if self.weights or self.base:
            return ""
        return (
            "names no published Show-o: give showo a folder or a hub id, for example "
            "showlab/show-o-512x512; where the weights are GenRL's own, a run or a checkpoint, "
            "name under policy.base the model that they were trained from"
        )


@hookimpl
def register_policies(register: Register) -> None:
    """Show-o."""
    register("showo", ShowoConfig)
