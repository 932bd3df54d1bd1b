"""MAGVIT-v2: published keys, code bits, the arithmetic of its layers against other code, chunks."""

import hashlib
import math
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import pad

from genrl_core import GenRLError
from genrl_showo.magvit import (
    SMALL,
    LookupFreeQuantizer,
    MagvitLayout,
    MagvitV2,
    derived_buffers,
    random_magvit,
)
from genrl_showo.magvit_layers import (
    Decoder,
    Downsample,
    Encoder,
    ResidualBlock,
    SpatialAttention,
    Upsample,
    fill_randomly,
)

KEYS_SHA256 = "6ce0845d5a57f8714f68fc2064a4f73d905b3994daf99b7d565f8b1401e3c2bb"
"""Of the sorted lines ``KEY SHAPE DTYPE`` of the published model's state dict."""

DEEP = MagvitLayout(
    width=8, norm_groups=4, bits=5, encoder_multipliers=(1, 2, 2), encoder_blocks=(2, 2, 2),
    decoder_multipliers=(1, 2, 4), decoder_blocks=(3, 3, 3),
)  # fmt: skip
"""Of even depth, which diffusers' autoencoder has too."""


@pytest.fixture(scope="module")
def full():
    with torch.device("meta"):
        return MagvitV2()


@pytest.fixture(scope="module")
def small():
    return random_magvit(SMALL, seed=1)


def filled(module, seed=0):
    """Random everywhere, norms and biases too, in float64."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.3, 0.5, generator=generator)
    return module


def drawn(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the published layout ---


def test_keys_shapes_and_dtypes_are_the_published_ones(full):
    state = full.state_dict()
    lines = sorted(f"{k} {tuple(v.shape)} {str(v.dtype)[6:]}" for k, v in state.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == KEYS_SHA256
    assert len(state) == 382
    assert sum(p.numel() for p in full.parameters()) == 95_387_004
    assert sum(b.numel() for b in full.buffers()) == 106_509


def test_shortcuts_resizes_and_attention_stand_where_the_specification_has_them(full):
    names = [key.removesuffix(".weight") for key in full.state_dict() if key.endswith(".weight")]
    assert {name for name in names if "nin_shortcut" in name} == {
        f"{place}.block.0.nin_shortcut"
        for place in ("encoder.down.1", "encoder.down.3", "decoder.up.3", "decoder.up.1")
    }
    assert sorted(n for n in names if n.endswith("sample.conv")) == [
        *(f"decoder.up.{i}.upsample.conv" for i in (1, 2, 3, 4)),
        *(f"encoder.down.{i}.downsample.conv" for i in (0, 1, 2, 3)),
    ]
    assert {n.split(".attn_1")[0] for n in names if "attn" in n} == {"encoder.mid", "decoder.mid"}


@pytest.mark.parametrize(("pixels", "side"), [(256, 16), (512, 32)])
def test_sizes_of_the_full_model(full, pixels, side):
    image = torch.empty(1, 3, pixels, pixels, device="meta")
    latents = full.encoder(image)
    assert latents.shape == (1, 13, side, side)
    assert full.quantize.codes(latents).shape == (1, side * side)
    assert full.decoder(latents).shape == image.shape


def test_the_small_model_has_the_same_keys(full, small):
    assert small.state_dict().keys() == full.state_dict().keys()
    assert sum(p.numel() for p in small.parameters()) < 100_000
    assert (small.layout.factor, small.layout.codes) == (16, 8192)


def test_frozen_and_in_evaluation_mode(small):
    assert not small.training
    assert not any(p.requires_grad for p in small.parameters())


# --- codes ---


def test_every_code_round_trips_and_spells_its_bits():
    quantizer = LookupFreeQuantizer(13)
    codes = torch.arange(8192).reshape(2, 4096)
    latents = quantizer.latents(codes, 32, 128)
    assert latents.shape == (2, 13, 32, 128)
    assert quantizer.codes(latents).equal(codes)
    for code in (0, 1, 2, 4095, 4096, 5000, 8191):
        row, rest = divmod(code, 4096)
        signs = latents[row, :, rest // 128, rest % 128]
        assert "".join("01"[int(s > 0)] for s in signs) == format(code, "013b")
        assert signs.abs().eq(1).all()


def test_channel_0_is_the_highest_bit_and_zero_is_negative():
    quantizer = LookupFreeQuantizer(13)
    for channel, code in ((12, 1), (0, 4096)):
        latents = torch.full((1, 13, 1, 1), -0.2)
        latents[0, channel] = 1e-6
        assert quantizer.codes(latents).tolist() == [[code]]
    assert quantizer.codes(torch.zeros(1, 13, 1, 1)).tolist() == [[0]]


def test_codes_run_row_by_row():
    latents = torch.full((1, 13, 2, 3), -1.0)
    latents[0, 12, 0, 2] = latents[0, 11, 1, 0] = 1.0
    assert LookupFreeQuantizer(13).codes(latents).tolist() == [[0, 0, 1, 2, 0, 0]]


def test_buffers_are_those_of_the_codebook():
    found = derived_buffers(3)
    assert found["quantize.power_vals"].tolist() == [4, 2, 1]
    assert found["quantize.embedding"][6].tolist() == [1, 1, -1]


# --- layers, by hand in float64 ---


def normalised(x, norm):
    """Group normalisation spelt out: mean and population variance over a group's pixels."""
    rows = []
    for image in x:
        parts = []
        for group in image.chunk(norm.num_groups):
            centred = group - group.sum() / group.numel()
            parts.append(centred / ((centred**2).sum() / group.numel() + 1e-6).sqrt())
        rows.append(torch.cat(parts) * norm.weight[:, None, None] + norm.bias[:, None, None])
    return torch.stack(rows)


def convolved(x, layer, stride=1):
    """A convolution without padding as a sum over its taps."""
    taps = layer.weight.shape[-1]
    height, width = ((side - taps) // stride + 1 for side in x.shape[2:])
    total = layer.bias[None, :, None, None].expand(len(x), -1, height, width).clone()
    for i in range(taps):
        for j in range(taps):
            seen = x[:, :, i : i + stride * height : stride, j : j + stride * width : stride]
            total += torch.einsum("bchw,oc->bohw", seen, layer.weight[:, :, i, j])
    return total


def swish(x):
    return x / (1 + (-x).exp())


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("outside", [4, 6])
def test_residual_block(outside):
    block, x = filled(ResidualBlock(4, outside, 2)), drawn(2, 4, 5, 3)
    hidden = convolved(pad(swish(normalised(x, block.norm1)), (1, 1, 1, 1)), block.conv1)
    hidden = convolved(pad(swish(normalised(hidden, block.norm2)), (1, 1, 1, 1)), block.conv2)
    kept = x if outside == 4 else convolved(x, block.nin_shortcut)
    close(block(x), kept + hidden)


def test_attention():
    layer, x = filled(SpatialAttention(4, 2)), drawn(2, 4, 3, 2)
    normed = normalised(x, layer.norm)
    query, key, value = (convolved(normed, f).flatten(2) for f in (layer.q, layer.k, layer.v))
    weights = (torch.einsum("bci,bcj->bij", query, key) * 4**-0.5).exp()
    weights = weights / weights.sum(2, keepdim=True)
    mixed = torch.einsum("bij,bcj->bci", weights, value).reshape(x.shape)
    close(layer(x), x + convolved(mixed, layer.proj_out))


def test_downsample_pads_right_and_bottom():
    layer, x = filled(Downsample(2)), drawn(1, 2, 6, 4)
    wide = torch.zeros(1, 2, 7, 5, dtype=torch.float64)
    wide[:, :, :6, :4] = x
    close(layer(x), convolved(wide, layer.conv, stride=2))


def test_upsample_repeats_every_pixel():
    layer, x = filled(Upsample(2)), drawn(1, 2, 3, 2)
    wide = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    close(layer(x), convolved(pad(wide, (1, 1, 1, 1)), layer.conv))


# --- the whole, against diffusers' autoencoder, which has the same layers under other names ---

NAMES = {
    "norm_out": "conv_norm_out", "nin_shortcut": "conv_shortcut",
    "mid.block_1": "mid_block.resnets.0", "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1.norm": "mid_block.attentions.0.group_norm",
    "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
    "mid.attn_1.": "mid_block.attentions.0.to_",
    "downsample.": "downsamplers.0.", "upsample.": "upsamplers.0.", ".block.": ".resnets.",
}  # fmt: skip


def theirs(network):
    """A state dict under diffusers' names, whose decoder counts its levels the other way."""
    found = {}
    for name, tensor in network.state_dict().items():
        if not name.startswith(("quant_conv", "post_quant_conv")):
            other = renamed(name)
            found[other] = tensor.squeeze() if ".attentions." in other else tensor
    return found


def renamed(name):
    for ours, other in NAMES.items():
        name = name.replace(ours, other)
    side, _, rest = name.partition(".")
    if side not in {"down", "up"}:
        return name
    level, rest = rest.split(".", 1)
    level = int(level) if side == "down" else DEEP.levels - 1 - int(level)
    return f"{side}_blocks.{level}.{rest}"


def test_encoder_against_diffusers():
    from diffusers.models.autoencoders.vae import Encoder as Other

    network, x = filled(Encoder(DEEP)), drawn(2, 3, 16, 24)
    other = Other(
        3, DEEP.bits, ("DownEncoderBlock2D",) * 3, DEEP.encoder_widths, layers_per_block=2,
        norm_num_groups=4, double_z=False,
    ).double()  # fmt: skip
    other.load_state_dict(theirs(network))
    close(network(x), convolved(other(x), network.quant_conv))


def test_decoder_against_diffusers():
    from diffusers.models.autoencoders.vae import Decoder as Other

    network, z = filled(Decoder(DEEP)), drawn(2, DEEP.bits, 4, 6)
    other = Other(
        DEEP.bits, 3, ("UpDecoderBlock2D",) * 3, DEEP.decoder_widths, layers_per_block=2,
        norm_num_groups=4,
    ).double()  # fmt: skip
    other.load_state_dict(theirs(network))
    close(network(z), other(convolved(z, network.post_quant_conv)))


# --- encode and decode ---


def test_encode_is_the_signs_of_the_encoder(small):
    pixels = drawn(3, 3, 32, 48).clamp(-1, 1).float()
    codes = small.encode(pixels)
    assert codes.shape == (3, 6) and codes.dtype == torch.int64
    signs = (small.encoder(pixels) > 0).long().flatten(2)
    assert codes[2, 4] == sum(int(bit) << (12 - c) for c, bit in enumerate(signs[2, :, 4]))
    assert small.encode(pixels.double(), chunk=2).equal(codes)
    assert len(codes.unique()) > 6  # or equality would say little


def test_decode_scales_the_decoder_to_0_and_1(small):
    codes = torch.randint(8192, (2, 4), generator=torch.Generator().manual_seed(0))
    raw = small.decoder(small.quantize.latents(codes, 2, 2))
    found = small.decode(codes)
    assert found.shape == (2, 3, 32, 32) and found.dtype == torch.float32
    torch.testing.assert_close(found, (raw * 0.5 + 0.5).clip(0, 1), rtol=0, atol=1e-6)
    assert 0.05 < found.std() < 0.5


@pytest.mark.parametrize("chunk", [1, 2, 9])
def test_chunks_change_nothing(small, chunk):
    codes = torch.randint(8192, (5, 9), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(small.decode(codes, chunk), small.decode(codes), rtol=0, atol=1e-5)
    precise = random_magvit(SMALL, seed=1).double()
    close(precise.decode(codes, chunk), precise.decode(codes))
    batches = []
    handle = small.decoder.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
    small.decode(codes, chunk)
    handle.remove()
    assert max(batches) == min(chunk, 5) and sum(batches) == 5 and len(batches) == -(-5 // chunk)


def test_no_images_stay_none(small):
    assert small.decode(torch.zeros(0, 4, dtype=torch.int64)).shape == (0, 3, 32, 32)


def test_size_says_what_is_no_square(small):
    codes = torch.randint(8192, (1, 6), generator=torch.Generator().manual_seed(5))
    tall, wide = small.decode(codes, size=(3, 2)), small.decode(codes, size=(2, 3))
    assert (tall.shape[2:], wide.shape[2:]) == ((48, 32), (32, 48))


def test_bfloat16_is_near(small):
    codes = torch.randint(8192, (1, 4), generator=torch.Generator().manual_seed(0))
    half = random_magvit(SMALL, seed=1).to(torch.bfloat16)
    found = half.decode(codes)
    assert found.dtype == torch.float32
    assert 0 < (found - small.decode(codes)).abs().mean() < 0.02
    assert half.quantize.codes(half.quantize.latents(codes, 2, 2)).equal(codes)


def test_random_weights_follow_the_seed_alone():
    before = torch.random.get_rng_state()
    first, again, other = (random_magvit(SMALL, seed) for seed in (4, 4, 5))
    assert torch.random.get_rng_state().equal(before)
    key = "decoder.conv_in.weight"
    assert first.state_dict()[key].equal(again.state_dict()[key])
    assert not first.state_dict()[key].equal(other.state_dict()[key])


def test_random_weights_keep_their_scale():
    block = ResidualBlock(32, 32, 4)
    fill_randomly(block, 0)
    assert math.isclose(block.conv1.weight.std().item(), (9 * 32) ** -0.5, rel_tol=0.05)
    assert block.norm1.weight.eq(1).all() and block.conv1.bias.eq(0).all()


# --- what does not fit ---


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 3, 40, 32), r"multiples of 16 pixels, not \[1, 3, 40, 32\]"),
        (torch.zeros(3, 32, 32), "multiples of 16"),
        (torch.zeros(1, 1, 32, 32), "multiples of 16"),
        (torch.full((1, 3, 32, 32), 255.0), "from -1 to 1; .* pixels / 127.5 - 1"),
        (torch.full((1, 3, 32, 32), float("nan")), "from -1 to 1"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "these are torch.uint8"),
    ],
)
def test_pixels_that_do_not_fit(small, pixels, message):
    with pytest.raises(GenRLError, match=message):
        small.encode(pixels)


@pytest.mark.parametrize(
    ("codes", "fields", "message"),
    [
        (torch.tensor([[0, 1, 8192, 3]]), {}, "code 8192 is outside 0 to 8191: a mask is left"),
        (torch.tensor([[0, -1, 2, 3]]), {}, "code -1 is outside"),
        (torch.zeros(1, 5, dtype=torch.int64), {}, "5 codes do not make a square"),
        (torch.zeros(1, 4, dtype=torch.int64), {"size": (3, 2)}, "4 codes do not make 3 x 2"),
        (torch.zeros(4, dtype=torch.int64), {}, r"codes \[B, n\] int64, not \[4\]"),
        (torch.zeros(1, 4), {}, "not .* torch.float32"),
        (torch.zeros(1, 4, dtype=torch.int64), {"chunk": 0}, "chunk is 0"),
    ],
)
def test_codes_that_do_not_fit(small, codes, fields, message):
    with pytest.raises(GenRLError, match=message):
        small.decode(codes, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 48}, "width 48 is not a multiple of norm_groups 32"),
        ({"decoder_blocks": (1, 1)}, "one number per level"),
        ({"bits": 0}, "greater than or equal to 1"),
        ({"depth": 3}, "Extra inputs"),
    ],
)
def test_layouts_that_do_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        MagvitLayout(**fields)


def test_the_layout_loads_no_torch():
    code = "import sys, genrl_showo.magvit_layout; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
