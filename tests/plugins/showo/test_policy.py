"""Show-o as a policy: guidance, the kept prefix, densities, adapters, and an iteration of RL."""

import copy
import gc
import json
import textwrap
import warnings
import weakref

import pytest
import torch

from genrl_core import Capability, GenRLError, Plan, Prompt, RecipeError, load_recipe, select_rows
from genrl_core.run.assembly import build_trainer
from genrl_core.testing import check_sampler
from genrl_masked import ConfidenceConfig, RandomReleaseConfig, guided_logits
from genrl_showo import ShowoConfig

from .conftest import LENGTH, NUM_TOKENS, TINY

PROMPTS = [
    Prompt("a", "a red cube"), Prompt("b", "dog"), Prompt("c", "two small cat and a blue ball"),
]  # fmt: skip


def canvas_of(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, TINY.codes + 1, (rows, NUM_TOKENS), generator=generator)


def count_reads(policy, monkeypatch, found=None):
    """A list that grows by one whenever the network reads prompts; ``found`` by what it read."""
    reads = []
    network = policy.network
    read = network._read

    def counting(prompt):
        reads.append(len(prompt))
        prefix = read(prompt)
        if found is not None:
            found.append(weakref.ref(prefix))
        return prefix

    monkeypatch.setattr(network, "_read", counting)
    return reads


@pytest.mark.parametrize("transition", ["p1", "p2"])
@pytest.mark.parametrize("fields", [{}, {"guidance_scale": 3.0, "temperature": 0.8}])
def test_conformance(build, transition, fields):
    sampler = ConfidenceConfig(num_inference_steps=4, transition=transition, **fields).build()
    found = check_sampler(build(), sampler, PROMPTS, samples=2, tolerance=1e-4)
    assert found.drift < 1e-5


def test_conformance_of_random_release_and_keep_one(build):
    check_sampler(build(), RandomReleaseConfig(num_inference_steps=4).build(), PROMPTS, samples=2)
    fields = {"final_step": "keep_one", "gumbel_decay": "cumulative", "transition": "p2"}
    sampler = ConfidenceConfig(num_inference_steps=4, **fields).build()
    check_sampler(build(), sampler, PROMPTS, samples=2)


@pytest.mark.parametrize("transition", ["p2", "p1"])
def test_an_update_asks_for_the_positions_that_its_density_needs(build, transition):
    """Under guidance, rows of several steps mixed; all positions asked, the same comes out."""
    policy = build()
    sampler = ConfidenceConfig(num_inference_steps=4, transition=transition, guidance_scale=3.0)
    sampler, plan = sampler.build(), Plan(0, 0, 0, tuple(PROMPTS), torch.arange(3), torch.arange(3))
    with torch.no_grad():
        trajectory = sampler.rollout(policy, policy.encode(PROMPTS), plan)
    k, b = torch.tensor([1, 3, 2, 1]), torch.tensor([0, 1, 2, 2])
    widths, found, gradients = [], [], []
    hook = policy.network.register_forward_hook(lambda _, __, out: widths.append(out[0].shape[1]))
    for policy.picks_positions in (True, False):
        densities, action = sampler.densities(policy, trajectory, k, b)
        found.append(densities.log_prob(action))
        found[-1].sum().backward()
        gradients.append([p.grad.clone() for p in policy.network.parameters()])
        policy.network.zero_grad()
    hook.remove()
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    for part, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-4)
    counts = sampler.counts(NUM_TOKENS)
    needed = max(counts[1:]) if transition == "p2" else NUM_TOKENS - counts[0]
    assert widths == [needed, NUM_TOKENS] and needed < NUM_TOKENS


def test_guidance_is_show_os_with_w_one_less(build):
    """``(1 + w) cond - w uncond`` with w = 5, both sides alone; uncond is the empty prompt."""
    policy = build()
    cond = policy.encode(PROMPTS)
    empty = policy.encode([Prompt("x", "")] * 3)
    canvas, w = canvas_of(3), 5.0
    expected = (1 + w) * policy.logits(canvas, cond) - w * policy.logits(canvas, empty)
    found = guided_logits(policy, canvas, cond, guidance_scale=w + 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    negative = policy.encode([Prompt("x", "a red cube", negative="dog")])
    other = policy.encode([Prompt("x", "dog")])
    assert torch.equal(policy.unconditional(negative)["prompt"], other["prompt"])


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_a_rollout_reads_each_prompt_once(build, monkeypatch, guidance_scale):
    policy = build()
    reads = count_reads(policy, monkeypatch)
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    plan = Plan(0, 0, 0, tuple(PROMPTS), group, torch.tensor([0, 1] * 3))
    cond = select_rows(policy.encode(PROMPTS), group)
    sampler = ConfidenceConfig(num_inference_steps=5, guidance_scale=guidance_scale).build()
    with torch.no_grad(), policy.prefill(cond):
        sampler.rollout(policy, cond, plan)
    assert reads == [3 if guidance_scale == 1 else 4]  # one more for the empty prompt


def test_the_kept_prefix_changes_nothing(build, monkeypatch):
    policy = build()
    reads = count_reads(policy, monkeypatch)
    cond, canvas = policy.encode(PROMPTS), canvas_of(3)
    with_gradient = policy.logits(canvas, cond)
    with torch.no_grad(), policy.prefill(cond):
        fresh, kept = policy.logits(canvas, cond), policy.logits(canvas, cond)
    assert reads == [3, 3]
    torch.testing.assert_close(kept, with_gradient, rtol=0, atol=1e-5)
    assert torch.equal(kept, fresh)


@torch.no_grad()
def logits_now(policy, canvas, cond):
    """The logits as in a rollout, from a prefix that is kept; and with nothing kept."""
    with policy.prefill(cond):
        policy.logits(canvas, cond)
        found = policy.logits(canvas, cond)
    fresh = policy.network(canvas, cond["prompt"], torch.arange(len(canvas)))[0]
    return found, fresh


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_step_makes_the_prefix_stale(build, fused):
    """A rollout after it knows nothing of the prefix of one before."""
    policy = build()
    cond, canvas = policy.encode(PROMPTS), canvas_of(3)
    before, _ = logits_now(policy, canvas, cond)
    optimizer = torch.optim.AdamW(policy.network.parameters(), lr=1e-2, fused=fused)
    for parameter in policy.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    found, fresh = logits_now(policy, canvas, cond)
    torch.testing.assert_close(found, fresh, rtol=0, atol=1e-5)
    assert (found - before).abs().max() > 1e-2


def test_a_rollout_begins_without_a_prefix_whatever_was_done_to_the_weights(build):
    """Writing through ``.data`` is counted by nobody; ``prefill`` is where every rollout begins."""
    policy = build()
    cond, canvas = policy.encode(PROMPTS), canvas_of(3)
    before, _ = logits_now(policy, canvas, cond)
    policy.network.showo.model.layers[0].self_attn.v_proj.bias.data += 1
    found, fresh = logits_now(policy, canvas, cond)
    torch.testing.assert_close(found, fresh, rtol=0, atol=1e-5)
    assert (found - before).abs().max() > 1e-2


def test_other_prompts_networks_and_adapters_make_the_prefix_stale(build):
    import peft

    policy = build()
    cond, canvas = policy.encode(PROMPTS), canvas_of(3)
    others = {name: ids.masked_fill(ids == 1, 7) for name, ids in cond.items()}  # another word
    with torch.no_grad(), policy.prefill(cond):
        policy.logits(canvas, cond)
        found = policy.logits(canvas, others)
    torch.testing.assert_close(found, logits_now(policy, canvas, others)[1], rtol=0, atol=1e-5)
    logits_now(policy, canvas, cond)
    other = copy.deepcopy(policy.network)
    with torch.no_grad():
        other.showo.model.layers[0].self_attn.v_proj.bias += 1
    own, policy.network = policy.network, other
    torch.testing.assert_close(*logits_now(policy, canvas, cond), rtol=0, atol=1e-5)
    policy.network = own
    config = peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, own, adapter_name="current")
    adapted, _ = logits_now(policy, canvas, cond)
    for module in own.modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.enable_adapters(False)
    found, fresh = logits_now(policy, canvas, cond)
    torch.testing.assert_close(found, fresh, rtol=0, atol=1e-5)
    assert (adapted - found).abs().max() > 1e-3


def test_a_call_with_gradient_reads_anew_and_the_prefix_is_dropped_with_the_rollout(
    build, monkeypatch
):
    """The memory is there for the activations of the update."""
    policy, prefixes = build(), []
    reads = count_reads(policy, monkeypatch, prefixes)
    cond, canvas = policy.encode(PROMPTS), canvas_of(3)
    with policy.prefill(cond):
        with torch.no_grad():
            policy.logits(canvas, cond)
        assert prefixes[0]() is not None
        policy.logits(canvas, cond).sum().backward()
        assert reads == [3, 3]
        embedding = policy.network.showo.model.embed_tokens.weight
        words = cond["prompt"].unique()
        assert (embedding.grad[words[words != TINY.pad]] != 0).any(1).all()
    gc.collect()
    assert [one() for one in prefixes] == [None, None]
    with torch.no_grad():
        for _ in range(2):
            policy.logits(canvas, cond)
    assert reads == [3, 3, 3, 3]  # outside of a rollout nothing is kept


def test_decoding(build):
    policy = build(images_per_decode=2)
    tokens = canvas_of(5).clamp(max=TINY.codes - 1)
    media = policy.decode({"tokens": tokens})
    assert media.kind == "image"
    assert media.pixels.shape == (5, 3, 64, 64) and media.pixels.dtype == torch.uint8
    expected = policy.image_tokenizer.decode(tokens)
    assert ((media.pixels / 255 - expected).abs() <= 0.5 / 255 + 1e-6).all()
    with pytest.raises(GenRLError, match="a mask is left on the canvas"):
        policy.decode({"tokens": torch.full((1, NUM_TOKENS), TINY.codes)})


def test_hidden_prompt_tokens_are_masks_and_the_frame_stays(build):
    policy = build()
    cond = policy.encode(PROMPTS[:1])
    everywhere = torch.ones(1, LENGTH + 1, dtype=torch.bool)
    assert policy.num_prompt_tokens == LENGTH + 1
    found = policy.mask_prompt(cond, everywhere)["prompt"]
    m = TINY.mask
    assert found[0].tolist() == [TINY.pad] * (LENGTH + 1 - 6) + [TINY.t2i, 0, m, m, m, 0]
    one = everywhere.logical_not()
    one[0, -2] = True
    assert policy.mask_prompt(cond, one)["prompt"][0, -4:].tolist() == [1, 2, m, 0]


def test_capabilities():
    config = ShowoConfig()
    assert config.provides() == {Capability.ELBO, Capability.DENOISING, Capability.IMAGE}
    assert "no gradient passes" in config.why_missing(Capability.DIFFERENTIABLE)


BRIGHT = """
from collections.abc import Callable
from genrl_core import Reward, RewardConfig, hookimpl

class Bright(Reward):
    def __call__(self, media, prompts):
        return media.pixels.float().mean((1, 2, 3)).tolist()

class BrightConfig(RewardConfig):
    def build(self):
        return Bright()

@hookimpl
def register_rewards(register: Callable[[str, type[RewardConfig]], None]) -> None:
    register("bright", BrightConfig)
"""


def recipe_for(published, folder, weights="{}", policy="", objective="{grpo: {epsilon: 0.2}}"):
    (folder / "genrl_bright.py").write_text(BRIGHT)
    (folder / "prompts.txt").write_text("a red cube\ndog\n")
    text = f"""
        policy:
          use: showo
          weights: {json.dumps(str(published["showo"]))}
          image_tokenizer: {json.dumps(str(published["image"]))}
          max_text_tokens: {LENGTH}
          {policy}
        sampler: {{use: confidence, num_inference_steps: 4, transition: p1}}
        reward: {{bright: {{}}}}
        objective: {objective}
        weights: {weights}
        prompts: {{file: prompts.txt, evaluate: prompts.txt}}
        train:
          {{iterations: 1, num_prompts: 2, num_generations: 4, learning_rate: 1e-3,
            num_updates: 2, micro_batch_size: 5}}
        run: {{threads: 1, device: cpu}}
    """
    from genrl_core.registry import Registry

    (folder / "recipe.yaml").write_text(textwrap.dedent(text))
    registry = Registry.discover([folder / "genrl_bright.py"])
    return load_recipe(str(folder / "recipe.yaml"), registry=registry)


@pytest.mark.parametrize(
    ("weights", "policy"),
    [
        ("{}", "gradient_checkpointing: true"),
        ("{lora: {rank: 2, target_modules: [q_proj, fc1]}}", ""),
    ],
)
def test_an_iteration_through_the_trainer(published, tmp_path, weights, policy):
    """Finite, without drift; the second update has moved, and the KL from the reference is seen."""
    objective = "{grpo: {epsilon: 0.2}, kl: {weight: 0.05, estimator: k3}}"
    recipe = recipe_for(published, tmp_path, weights, policy, objective)
    trainer = build_trainer(recipe)
    lora = "lora" in weights
    trained = set(trainer.weight_sets.trainable)
    before = {
        name: p.detach().clone() for name, p in trainer.parts.policy.network.named_parameters()
    }
    record = trainer.step()
    assert record.problem is None
    assert record.metrics["drift"] < 1e-5
    assert all(abs(record.metrics[key]) < 1e6 for key in ("loss", "grad_norm", "reward"))
    assert record.metrics["grad_norm"] > 0
    moved = {
        name for name, p in trainer.parts.policy.network.named_parameters()
        if not torch.equal(p, before[name])
    }  # fmt: skip
    assert moved and moved <= trained
    assert all(("lora_" in name) == lora for name in trained)
    if lora:
        parents = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained}
        assert parents == {"q_proj", "fc1"}


def test_a_prompt_that_showo_reads_in_part_is_named(published, tmp_path):
    """Its text ends where there is no room beside the task, the beginning and the end."""
    recipe = recipe_for(published, tmp_path, "{}", "", "{grpo: {epsilon: 0.2}}")
    fits = LENGTH + 1 - 3
    rows = [fits * "a ", (fits + 1) * "dog ", ""]
    rows = [{"text": text or "a", "negative": "" if text else (fits + 5) * "cat "} for text in rows]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = f"prompts.file={tmp_path / 'prompts.jsonl'}"
    recipe = recipe.with_overrides(path, "prompts.evaluate=null", "train.num_prompts=3")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build_trainer(recipe).step()
    told = [str(w.message) for w in caught if "cut off" in str(w.message)]
    assert len(told) == 2, told
    for part, line, length in (("text", 2, fits + 4), ("negative", 3, fits + 8)):
        [one] = [text for text in told if f"of the {part} the first {LENGTH + 1} tokens" in text]
        assert "1 of 3 prompts" in one and f"has {length}, {tmp_path}" in one
        assert f"prompts.jsonl:{line}: " in one


def test_lora_where_the_recipe_is_silent_adapts_every_layer(build):
    from genrl_core.loop.settings import LoraConfig
    from genrl_core.loop.weights import WeightSets

    weight_sets = WeightSets(build(), LoraConfig(rank=2))
    kinds = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in weight_sets.trainable}
    assert kinds == {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}
    assert len(weight_sets.trainable) == 2 * 6 * 2


def test_an_adapter_on_the_head_is_refused(build):
    """The head's rows are read from its weight, where an adapter would be passed by."""
    from genrl_core.loop.settings import LoraConfig
    from genrl_core.loop.weights import WeightSets

    policy = build()
    WeightSets(policy, LoraConfig(rank=2, target_modules=["lm_head"]))
    with pytest.raises(RecipeError, match=r"weights.lora.target_modules names lm_head"):
        policy.logits(canvas_of(1), policy.encode(PROMPTS[:1]))
