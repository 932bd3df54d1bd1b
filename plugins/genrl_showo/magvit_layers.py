"""Encoder and decoder of MAGVIT-v2 under the published parameter names.

    pixels [B, 3, H, W] in [-1, 1]    latents [B, c, H / f, W / f], c the bits of a code

Convolutional, with one attention layer at the lowest resolution and no dropout. The submodules
stand in the order of the published state dict.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu

from genrl_showo.magvit_layout import MagvitLayout


def _norm(groups: int, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``, 3 x 3 convolutions.

    ``[B, inside, h, w]`` to ``[B, outside, h, w]``; the shortcut is the identity, or a 1 x 1
    convolution where the number of channels changes.
    """

    def __init__(self, inside: int, outside: int, groups: int):
        super().__init__()
        self.norm1 = _norm(groups, inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2 = _norm(groups, outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inside, outside, 1) if inside != outside else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(silu(self.norm1(x)))
        hidden = self.conv2(silu(self.norm2(hidden)))
        kept = x if self.nin_shortcut is None else self.nin_shortcut(x)
        found: Tensor = kept + hidden
        return found


class SpatialAttention(nn.Module):
    """One head of attention between all h w positions, scale ``channels ** -0.5``, residual."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = _norm(groups, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, h, w]`` to the same."""
        normed = self.norm(x)
        query, key, value = (
            layer(normed).flatten(2).transpose(1, 2).unsqueeze(1)
            for layer in (self.q, self.k, self.v)
        )
        mixed = scaled_dot_product_attention(query, key, value)
        hidden: Tensor = self.proj_out(mixed.squeeze(1).transpose(1, 2).reshape(x.shape))
        return x + hidden


class Downsample(nn.Module):
    """Half the resolution; zeros are added at the right and at the bottom alone."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(pad(x, (0, 1, 0, 1)))
        return found


class Upsample(nn.Module):
    """Twice the resolution: every pixel four times, then a 3 x 3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return found


class Level(nn.Module):
    """The residual blocks of one resolution and what leads to the next; None at the last."""

    def __init__(self, inside: int, outside: int, blocks: int, groups: int):
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(outside if i else inside, outside, groups) for i in range(blocks)
        )
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for resize in (self.downsample, self.upsample):
            x = x if resize is None else resize(x)
        return x


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups)
        self.attn_1 = SpatialAttention(channels, groups)
        self.block_2 = ResidualBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return found


class Encoder(nn.Module):
    """Pixels to latents, before they are quantised."""

    def __init__(self, layout: MagvitLayout):
        super().__init__()
        widths, groups = layout.encoder_widths, layout.norm_groups
        self.conv_in = nn.Conv2d(3, layout.width, 3, padding=1)
        self.down = nn.ModuleList()
        for i, blocks in enumerate(layout.encoder_blocks):
            level = Level(widths[i - 1] if i else layout.width, widths[i], blocks, groups)
            if i < layout.levels - 1:
                level.downsample = Downsample(widths[i])
            self.down.append(level)
        self.mid = Middle(widths[-1], groups)
        self.norm_out = _norm(groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], layout.bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(layout.bits, layout.bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to ``[B, c, H / f, W / f]``."""
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        found: Tensor = self.quant_conv(self.conv_out(silu(self.norm_out(self.mid(x)))))
        return found


class Decoder(nn.Module):
    """Quantised latents to pixels; nothing bounds them."""

    def __init__(self, layout: MagvitLayout):
        super().__init__()
        widths, groups = layout.decoder_widths, layout.norm_groups
        self.conv_in = nn.Conv2d(layout.bits, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        self.up = nn.ModuleList()
        for i, blocks in enumerate(layout.decoder_blocks):
            level = Level(widths[min(i + 1, layout.levels - 1)], widths[i], blocks, groups)
            if i:
                level.upsample = Upsample(widths[i])
            self.up.append(level)
        self.norm_out = _norm(groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(layout.bits, layout.bits, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """``[B, c, h, w]`` to ``[B, 3, f h, f w]``."""
        x = self.mid(self.conv_in(self.post_quant_conv(latents)))
        for level in reversed(self.up):
            x = level(x)
        found: Tensor = self.conv_out(silu(self.norm_out(x)))
        return found


@torch.no_grad()
def fill_randomly(network: nn.Module, seed: int) -> None:
    """Weights from a generator of their own: normal with deviation ``fan_in ** -0.5``.

    Normalisations begin as the identity and biases at 0. The same seed gives the same weights on
    every device, and no global random number is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(drawn * parameter[0].numel() ** -0.5)
