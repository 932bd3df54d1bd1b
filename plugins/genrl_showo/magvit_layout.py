"""Width and depth of a MAGVIT-v2; loads no torch, so that a config may hold one."""

from typing import Annotated

from pydantic import Field, model_validator

from genrl_core import Schema

Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]


class MagvitLayout(Schema):
    """Width and depth; the defaults are those of ``showlab/magvitv2`` (95,387,004 parameters).

    Level 0 has the resolution of the image, each further level half of the one before. The encoder
    climbs from level 0, the decoder descends to it.
    """

    width: Count = Field(128, description="channels that a multiplier of 1 stands for")
    encoder_multipliers: Counts = Field(
        (1, 2, 2, 4, 4), description="channels of each level of the encoder, in units of width"
    )
    encoder_blocks: Counts = Field(
        (4, 3, 4, 3, 4), description="residual blocks of each level of the encoder"
    )
    decoder_multipliers: Counts = Field(
        (1, 1, 2, 2, 4), description="channels of each level of the decoder, in units of width"
    )
    decoder_blocks: Counts = Field(
        (4, 4, 3, 4, 3), description="residual blocks of each level of the decoder"
    )
    norm_groups: Count = Field(32, description="groups of every group normalisation")
    bits: Annotated[int, Field(ge=1, le=20)] = Field(
        13, description="bits of a code: the codebook has 2 ** bits entries"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "MagvitLayout":
        per_level = {
            name: len(getattr(self, name))
            for name in (
                "encoder_multipliers", "encoder_blocks", "decoder_multipliers", "decoder_blocks",
            )
        }  # fmt: skip
        if len(set(per_level.values())) > 1:
            raise ValueError(f"one number per level is needed in each of {per_level}")
        if self.width % self.norm_groups:
            raise ValueError(
                f"width {self.width} is not a multiple of norm_groups {self.norm_groups}"
            )
        return self

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of each level of the encoder."""
        return tuple(self.width * factor for factor in self.encoder_multipliers)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of each level of the decoder."""
        return tuple(self.width * factor for factor in self.decoder_multipliers)

    @property
    def levels(self) -> int:
        """How many resolutions there are."""
        return len(self.encoder_blocks)

    @property
    def factor(self) -> int:
        """f, pixels per code along one side: 16 for five levels."""
        return int(2 ** (self.levels - 1))

    @property
    def codes(self) -> int:
        """How many codes there are: 8,192 for 13 bits."""
        return int(2**self.bits)


SMALL = MagvitLayout(width=4, norm_groups=2)
"""The published keys, all 382, at a thousandth of the size: for tests and dry runs."""
