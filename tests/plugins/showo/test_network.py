"""The network against plain arithmetic, against transformers, and against itself in parts."""

from inspect import Parameter, Signature, signature

import pytest
import torch
from torch.nn import functional
from transformers.models.phi.modeling_phi import PhiDecoderLayer

from genrl_showo import ShowoConfig
from genrl_showo.layout import Vocabulary, image_ids, prompt_ids
from genrl_showo.weights import empty_network, phi_settings

from .conftest import LENGTH, NUM_TOKENS, TINY, tiny_network
from .test_layout import omni_attention

TEXTS = [[1, 2, 4], [], [3, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5]]  # short, empty, cut


def prompts_and_canvas(rows=(0, 1, 2, 0), seed=0):
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.tensor([prompt_ids(text, TINY, LENGTH) for text in TEXTS])
    canvas = torch.randint(0, TINY.codes + 1, (len(rows), NUM_TOKENS), generator=generator)
    return prompt, torch.tensor(rows), canvas


def whole_sequence(prompt, rows, canvas):
    """Ids ``[R, P + N + 2]`` with all padding, and the brute-force mask ``[R, L, L]``."""
    ids = torch.cat([prompt[rows], image_ids(canvas, TINY)], 1)
    padding = (prompt[rows] == TINY.pad).tolist()
    return ids, torch.tensor([omni_attention(row, NUM_TOKENS + 2) for row in padding])


def by_hand(network, ids, allowed):
    """Phi with normalised queries and keys, written out: all logits, ``[R, L, vocabulary]``."""
    w = network.state_dict()
    rows, length = ids.shape
    heads, size, eps = 2, 16, 1e-5
    turn = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, 8, 2) / 8.0)
    cos, sin = turn.cos().repeat(1, 2), turn.sin().repeat(1, 2)

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def rotated(x):
        front, rest = x[..., :8], x[..., 8:]
        crossed = torch.cat([-front[..., 4:], front[..., :4]], -1)
        return torch.cat([front * cos + crossed * sin, rest], -1)

    x = w["showo.model.embed_tokens.weight"][ids]
    for index in range(2):
        layer = f"showo.model.layers.{index}"
        h = norm(x, f"{layer}.input_layernorm")
        q, k, v = (
            linear(h, f"{layer}.self_attn.{n}_proj").view(rows, length, heads, size).transpose(1, 2)
            for n in "qkv"
        )
        q = rotated(norm(q, f"{layer}.self_attn.q_layernorm"))
        k = rotated(norm(k, f"{layer}.self_attn.k_layernorm"))
        scores = (q @ k.transpose(-1, -2)) / 4
        mixed = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1) @ v
        attended = linear(mixed.transpose(1, 2).flatten(2), f"{layer}.self_attn.dense")
        gate = functional.gelu(linear(h, f"{layer}.mlp.fc1"), approximate="tanh")
        x = x + attended + linear(gate, f"{layer}.mlp.fc2")
    return linear(norm(x, "showo.model.final_layernorm"), "showo.lm_head")


def image_part(logits):
    """The image's positions and codes of ``[R, L, vocabulary]``."""
    first = LENGTH + 1 + 1
    return logits[:, first : first + NUM_TOKENS, TINY.first_code : TINY.mask]


def test_equals_the_formulas_written_out():
    network = tiny_network().double()
    prompt, rows, canvas = prompts_and_canvas()
    found, _ = network(canvas, prompt, rows)
    expected = image_part(by_hand(network, *whole_sequence(prompt, rows, canvas)))
    assert found.shape == (4, NUM_TOKENS, TINY.codes) and found.dtype == torch.float64
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # angles are float32 there


def test_prefix_and_head_slice_equal_one_pass_of_transformers_with_the_whole_head():
    network = tiny_network()
    prompt, rows, canvas = prompts_and_canvas()
    ids, allowed = whole_sequence(prompt, rows, canvas)
    positions = torch.arange(ids.shape[1]).unsqueeze(0)
    found, prefix = network(canvas, prompt, rows)
    again, _ = network(canvas, prompt, rows, prefix)
    network.showo.set_attn_implementation("sdpa")  # theirs
    plain = network.showo(ids, attention_mask=allowed[:, None], position_ids=positions).logits
    torch.testing.assert_close(found, image_part(plain), rtol=0, atol=1e-5)
    assert torch.equal(found, again)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_layers_of_every_version_are_handed_the_prompt(monkeypatch, name):
    """transformers renamed what a layer takes, and hands its cache more than it did."""
    plain = PhiDecoderLayer.forward
    installed = "cache" if "cache" in signature(plain).parameters else "past_key_values"

    class Watched:
        def __init__(self, seen):
            self.seen = seen

        def update(self, keys, values, layer, **_):
            return self.seen.update(keys, values, layer, kwargs={"position_ids": None})

    def forward(self, hidden_states, **given):
        assert given.get(name) is not None, f"the layer takes {name} and is handed {list(given)}"
        seen = Watched(given.pop(name))
        return plain(self, hidden_states, **given, **{installed: seen})

    forward.__signature__ = Signature(
        [Parameter(one, Parameter.POSITIONAL_OR_KEYWORD) for one in ("self", "hidden_states", name)]
    )
    monkeypatch.setattr(PhiDecoderLayer, "forward", forward)
    network = tiny_network().double()
    prompt, rows, canvas = prompts_and_canvas()
    found, _ = network(canvas, prompt, rows)
    expected = image_part(by_hand(network, *whole_sequence(prompt, rows, canvas)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_prompts_of_one_length_need_no_mask_and_stay_causal(monkeypatch):
    """The attention without a mask, for text and image, is that of the formulas too."""
    from genrl_showo import network as module

    masks = []
    attend = module.attend

    def watched(query, key, value, mask, **given):
        masks.append(mask)
        return attend(query, key, value, mask, **given)

    monkeypatch.setattr(module, "attend", watched)
    network = tiny_network().double()
    _, _, canvas = prompts_and_canvas()
    prompt = torch.tensor([prompt_ids(text, TINY, LENGTH) for text in ([1, 2], [3, 4])])
    rows = torch.tensor([0, 1, 1, 0])
    found, _ = network(canvas, prompt, rows)
    expected = image_part(by_hand(network, *whole_sequence(prompt, rows, canvas)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert masks == [None] * 4


def test_one_prefix_serves_every_canvas_of_its_prompts():
    network = tiny_network()
    prompt, rows, canvas = prompts_and_canvas()
    _, prefix = network(canvas, prompt, rows)
    other = prompts_and_canvas(rows=(2, 2, 1, 0, 1), seed=1)
    torch.testing.assert_close(
        network(other[2], prompt, other[1], prefix)[0], network(other[2], prompt, other[1])[0],
        rtol=0, atol=1e-6,
    )  # fmt: skip


def test_rows_of_other_prompts_do_not_matter():
    network = tiny_network()
    prompt, rows, canvas = prompts_and_canvas()
    together, _ = network(canvas, prompt, rows)
    for row, which in enumerate(rows.tolist()):
        alone, _ = network(canvas[row : row + 1], prompt[which : which + 1], torch.tensor([0]))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


def test_every_token_of_the_prompt_and_the_image_is_seen_and_no_padding():
    network = tiny_network()
    prompt, rows, canvas = prompts_and_canvas(rows=(0, 1))
    before, _ = network(canvas, prompt, rows)
    moved = prompt.clone()
    moved[0, -2] = 9
    after, _ = network(canvas, moved, rows)
    change = (after - before).abs()
    assert (change[0].amax(-1) > 1e-4).all() and change[1].max() == 0
    last = canvas.clone()
    last[1, -1] = (last[1, -1] + 1) % TINY.codes
    assert ((network(last, prompt, rows)[0] - before)[1].abs().amax(-1) > 1e-4).all()
    with torch.no_grad():
        network.showo.model.embed_tokens.weight[TINY.pad] += 5
    assert torch.equal(network(canvas, prompt, rows)[0], before)


def gradients(network):
    prompt, rows, canvas = prompts_and_canvas()
    logits, _ = network(canvas, prompt, rows)
    logits.log_softmax(-1)[..., 3].sum().backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputing_layers_gives_the_same_gradients(autocast):
    plain = gradients(tiny_network(autocast=autocast))
    again = gradients(tiny_network(autocast=autocast, recompute=True))
    assert all(gradient is not None for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_gradients_are_those_of_one_pass_over_the_whole_sequence():
    network = tiny_network().double()
    found = gradients(network)
    copy = tiny_network().double()
    copy.showo.set_attn_implementation("sdpa")
    prompt, rows, canvas = prompts_and_canvas()
    ids, allowed = whole_sequence(prompt, rows, canvas)
    positions = torch.arange(ids.shape[1]).unsqueeze(0)
    plain = copy.showo(ids, attention_mask=allowed[:, None], position_ids=positions).logits
    image_part(plain).log_softmax(-1)[..., 3].sum().backward()
    for name, parameter in copy.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("recompute", [False, True])
def test_chosen_positions_are_those_of_all_in_logits_and_gradients(recompute):
    """In any order and number, twice too, behind prompts of several lengths."""
    whole, part = tiny_network().double(), tiny_network(recompute=recompute).double()
    prompt, rows, canvas = prompts_and_canvas()
    chosen = torch.tensor([[15, 0, 3], [7, 7, 1], [2, 4, 6], [0, 15, 8]])
    logits, _ = whole(canvas, prompt, rows)
    expected = torch.stack([row[places] for row, places in zip(logits, chosen, strict=True)])
    found, prefix = part(canvas, prompt, rows, None, chosen)
    assert found.shape == (4, 3, TINY.codes)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        part(canvas, prompt, rows, prefix, chosen)[0], expected, rtol=0, atol=1e-12
    )
    weights = torch.arange(found.numel(), dtype=torch.float64).reshape(found.shape).cos()
    for scored in (expected, found):
        (scored.log_softmax(-1) * weights).sum().backward()
    for (name, own), other in zip(part.named_parameters(), whole.parameters(), strict=True):
        assert other.grad.abs().max() > 0
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-11, msg=name)


def test_the_last_layer_runs_at_the_chosen_positions_alone():
    network = tiny_network()
    widths = []
    for layer in network.showo.model.layers:
        layer.mlp.register_forward_hook(lambda _, given, __: widths.append(given[0].shape[1]))
    prompt, rows, canvas = prompts_and_canvas()
    _, prefix = network(canvas, prompt, rows)
    widths.clear()
    network(canvas, prompt, rows, prefix, torch.tensor([[3, 5]]).expand(4, 2))
    assert widths == [NUM_TOKENS + 2, 2]


def test_bfloat16_keeps_weights_and_logits_in_float32():
    prompt, rows, canvas = prompts_and_canvas()
    exact, _ = tiny_network()(canvas, prompt, rows)
    network = tiny_network(autocast=True)
    rough, _ = network(canvas, prompt, rows)
    assert rough.dtype == torch.float32
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    difference = (rough - exact).abs().max()
    assert 1e-5 < difference < 0.15 * exact.abs().max()
    assert not torch.equal(rough, rough.bfloat16().float()), "the head rounds no logit"


def test_the_full_model_has_the_published_size():
    network = empty_network(phi_settings(), Vocabulary(), ShowoConfig())
    state = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == 1_448_176_770
    assert len(state) == 437 and all(key.startswith("showo.") for key in state)
    layer = "showo.model.layers.23."
    expected = {
        "showo.model.embed_tokens.weight": (58498, 2048),
        f"{layer}self_attn.q_proj.weight": (2048, 2048),
        f"{layer}self_attn.dense.bias": (2048,),
        f"{layer}self_attn.k_layernorm.weight": (64,),
        f"{layer}mlp.fc1.weight": (8192, 2048),
        f"{layer}mlp.fc2.weight": (2048, 8192),
        f"{layer}input_layernorm.bias": (2048,),
        "showo.model.final_layernorm.weight": (2048,),
        "showo.lm_head.weight": (58498, 2048),
        "showo.lm_head.bias": (58498,),
    }
    assert {key: tuple(state[key].shape) for key in expected} == expected
    assert {tensor.device.type for tensor in state.values()} == {"meta"}
