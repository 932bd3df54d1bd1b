"""The policy's config and hook."""

from pydantic import Field

from genrl_core import Register, hookimpl
from genrl_masked import MaskedPolicyConfig


class StripesConfig(MaskedPolicyConfig):
    """Black and white pictures of 4 x 4 pixels, prompted by a direction."""

    width: int = Field(32, ge=1, description="hidden units of the network")

    def build(self):
        from .network import Net, StripesPolicy

        return StripesPolicy(self, Net(self.width), num_tokens=16, codebook_size=2)


@hookimpl
def register_policies(register: Register) -> None:
    register("stripes", StripesConfig)
