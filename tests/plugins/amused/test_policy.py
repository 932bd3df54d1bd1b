"""aMUSEd through GenRL against diffusers' own pipeline, and through the whole loop."""

import copy
import json
import math
import warnings

import pytest
import torch
from diffusers import AmusedPipeline, AmusedScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.schedulers import scheduling_amused

from genrl_amused import AmusedConfig
from genrl_core import Media, Plan, Prompt, RecipeError, Reward, load_recipe, select_rows, train
from genrl_core.loop.settings import LoraConfig
from genrl_core.loop.weights import WeightSets
from genrl_core.testing import check_sampler
from genrl_masked import ConfidenceConfig, guided_logits, released_counts, transitions

from .conftest import CODES, MASK, SIDE

PROMPTS = [Prompt("a", "a red dog"), Prompt("b", "two cats and more words", negative="blue")]
GUIDANCE = 3.0


@pytest.fixture
def policy(published):
    return AmusedConfig(weights=str(published)).build()


@pytest.fixture
def pipeline(published):
    loaded = AmusedPipeline.from_pretrained(published)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def run(pipeline, **fields):
    """The pipeline on the prompts; with ``guidance_scale`` above 1 negatives are heard."""
    return pipeline(
        [prompt.text for prompt in PROMPTS],
        negative_prompt=[prompt.negative for prompt in PROMPTS],
        guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(0), **fields,
    )  # fmt: skip


def to_canvas(ids):
    """The transformer's ids ``[B, S, S]`` as GenRL's canvas ``[B, N]``."""
    flat = ids.flatten(1)
    return flat.masked_fill(flat == MASK, CODES)


def assert_close(found, expected, share):
    """No further apart than ``share`` of the prediction's largest number, sample by sample."""
    gap = (found - expected).abs().flatten(1).amax(1) / expected.abs().flatten(1).amax(1)
    assert gap.max() <= share, f"{gap.max():.2e} of the prediction's size, above {share:g}"


def test_logits_are_those_of_every_call_that_the_pipeline_makes(policy, pipeline):
    """As it calls, four rows at once, and row by row, where no other kernels are chosen.

    Processors round differently, so what is allowed is a share of the prediction's size.
    """
    calls = []
    pipeline.transformer.register_forward_hook(
        lambda module, args, given, output: calls.append((args[0], given, output)), with_kwargs=True
    )
    run(pipeline, num_inference_steps=3, output_type="latent")
    assert len(calls) == 3
    cond = policy.encode(PROMPTS)
    unconditional = policy.unconditional(cond)
    for ids, given, output in calls[:3]:
        without, prompted = output.flatten(2).transpose(1, 2).chunk(2)
        canvas = to_canvas(ids[:2])
        assert canvas.shape == (2, policy.num_tokens)
        with torch.no_grad():
            for side, expected in ((cond, prompted), (unconditional, without)):
                assert_close(policy.logits(canvas, side), expected, 1e-4)
            for row in range(4):
                one = slice(row, row + 1)
                alone = {k: v[one] if torch.is_tensor(v) else v for k, v in given.items()}
                expected = pipeline.transformer(ids[one], **alone).flatten(2).transpose(1, 2)
                side = select_rows(unconditional if row < 2 else cond, torch.tensor([row % 2]))
                assert_close(policy.logits(to_canvas(ids[one]), side), expected, 1e-5)
            guided = guided_logits(policy, canvas, cond, GUIDANCE)
        # Guidance adds the errors of both sides, each up to its share, times s and s - 1.
        assert_close(guided, without + GUIDANCE * (prompted - without), 5e-4)
        assert (prompted - without).abs().max() > 0.1
        assert (prompted[0] - prompted[1]).abs().max() > 0.1


def test_without_choice_a_rollout_is_the_pipelines_image(policy, pipeline, monkeypatch):
    """Likeliest codes and no noise: the same tokens come out, and the same pixels."""
    monkeypatch.setattr(
        torch, "multinomial", lambda chances, count, **_: chances.argmax(-1, keepdim=True)
    )
    expected = run(pipeline, num_inference_steps=6, temperature=(0, 0), output_type="latent")
    image = run(pipeline, num_inference_steps=6, temperature=(0, 0), output_type="np").images
    monkeypatch.setattr(transitions, "draw_codes", lambda log_probs, _: log_probs.argmax(-1))
    sampler = ConfidenceConfig(
        num_inference_steps=6, gumbel_temperature=0.0, guidance_scale=GUIDANCE
    ).build()
    plan = Plan(0, 0, 0, tuple(PROMPTS), torch.arange(2), torch.tensor([0, 0]))
    with torch.no_grad():
        final = sampler.rollout(policy, policy.encode(PROMPTS), plan).final
    assert final["tokens"].tolist() == expected.images.flatten(1).tolist()
    assert len(set(final["tokens"].flatten().tolist())) > 2
    theirs = torch.from_numpy(image).permute(0, 3, 1, 2)
    media = policy.decode(final)
    assert media.pixels.dtype == torch.uint8
    assert (media.pixels / 255 - theirs).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(("tokens", "steps"), [(16, 5), (256, 12), (1024, 12), (16, 20)])
def test_masking_is_that_of_the_scheduler_of_diffusers(monkeypatch, tokens, steps):
    """Given the codes and the noise, every step releases the same positions."""
    generator = torch.Generator().manual_seed(steps)
    scheduler = AmusedScheduler(mask_token_id=MASK)
    scheduler.set_timesteps(steps, temperature=(2, 0))
    sample = torch.full((2, tokens), MASK)
    for step, timestep in enumerate(scheduler.timesteps):
        noise = -(-torch.rand(2, tokens, generator=generator).log()).log()
        monkeypatch.setattr(scheduling_amused, "gumbel_noise", lambda t, generator, n=noise: n)
        logits = 3 * torch.randn(2, tokens, CODES, generator=generator)
        found = scheduler.step(logits, timestep, sample, generator=generator)
        masked = sample == MASK
        codes = found.pred_original_sample
        log_probs = logits.log_softmax(-1)
        keys = transitions.code_log_probs(log_probs, codes.clamp(max=CODES - 1))
        keys = keys + scheduler.temperatures[step] * noise
        count = released_counts(tokens, steps)[step]
        released = transitions.best(keys, masked, torch.full((2,), count))
        expected = torch.where(masked & ~released, MASK, codes)
        assert torch.equal(found.prev_sample, expected), (step, count)
        sample = found.prev_sample
    assert not (sample == MASK).any()


@pytest.mark.parametrize("fields", [
    {"transition": "p1"}, {"transition": "p2"},
    {"transition": "p1", "guidance_scale": GUIDANCE, "temperature": 0.9},
    {"transition": "p2", "granularity": "token", "guidance_scale": GUIDANCE},
])  # fmt: skip
def test_conformance(policy, fields):
    sampler = ConfidenceConfig(num_inference_steps=4, **fields).build()
    check_sampler(policy, sampler, PROMPTS, samples=3, tolerance=1e-4)


class Brightness(Reward):
    """The mean of the pixels, 0 to 1."""

    def __call__(self, media: Media, prompts):
        assert media.kind == "image"
        return (media.pixels.double().mean((1, 2, 3)) / 255).tolist()


@pytest.mark.parametrize(("transition", "weights"), [
    ("p1", {}), ("p2", {"lora": {"rank": 2}}),
])  # fmt: skip
def test_an_iteration_through_the_trainer(published, tmp_path, transition, weights):
    (tmp_path / "prompts.txt").write_text("a red dog\ntwo cats\n")
    recipe = load_recipe({
        "policy": {"use": "amused", "weights": str(published)},
        "sampler": {"use": "confidence", "num_inference_steps": 4, "transition": transition,
                    "guidance_scale": GUIDANCE},
        "reward": {"digit_classifier": {"weight": 1.0}},
        "objective": {"grpo": {"epsilon": 0.1}, "kl": {"weight": 0.01}},
        "weights": weights,
        "prompts": {"file": str(tmp_path / "prompts.txt")},
        "train": {"iterations": 2, "num_prompts": 2, "num_generations": 4,
                  "learning_rate": 1e-3},
        "run": {"threads": 1, "device": "cpu"},
    })  # fmt: skip
    records = list(train(recipe, rewards={"digit_classifier": Brightness()}))
    assert [record.problem for record in records] == [None, None]
    for record in records:
        assert math.isfinite(record.metrics["loss"])
        assert record.metrics["drift"] < 1e-5
        assert record.metrics["grad_norm"] > 0
        assert record.media.pixels.shape == (8, 3, 2 * SIDE, 2 * SIDE)
    assert records[0].metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert records[1].metrics["kl"] > 0


def test_what_is_trained_is_the_transformer_without_dropout(policy):
    assert not policy.network.training
    dropouts = [m.p for m in policy.network.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts
    assert set(dropouts) == {0.0}
    frozen = [*policy.vqvae.parameters(), *policy.text_encoder.parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)
    assert all(parameter.requires_grad for parameter in policy.network.parameters())


def gradients(policy, canvas):
    """The gradient of every parameter, and how many numbers the graph keeps for it."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        logits = policy.logits(canvas, policy.encode(PROMPTS))
    logits.square().sum().backward()
    return {name: p.grad for name, p in policy.network.named_parameters()}, sum(kept)


def test_recomputed_layers_have_the_same_gradient_and_keep_less(published, policy):
    canvas = torch.full((2, policy.num_tokens), policy.mask_code)
    thrifty = AmusedConfig(weights=str(published), gradient_checkpointing=True).build()
    assert thrifty.network.state_dict().keys() == policy.network.state_dict().keys()
    expected, everything = gradients(policy, canvas)
    found, kept = gradients(thrifty, canvas)
    assert kept < everything
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_copy_of_recomputed_layers_runs_its_own_weights(published, policy):
    """The reference slot is a copy: were it to run the original's layers, the KL would be dead."""
    thrifty = AmusedConfig(weights=str(published), gradient_checkpointing=True).build()
    thrifty.network = copy.deepcopy(thrifty.network)
    cond = policy.encode(PROMPTS)
    canvas = torch.full((2, policy.num_tokens), policy.mask_code)
    before = policy.logits(canvas, cond)
    for network in (policy.network, thrifty.network):
        for parameter in network.transformer_layers.parameters():
            parameter.data.mul_(0.5)
    found, expected = thrifty.logits(canvas, cond), policy.logits(canvas, cond)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - before).abs().max() > 1e-3


def test_the_aesthetic_score_is_heard(policy, published):
    cond = policy.encode(PROMPTS)
    canvas = torch.full((2, policy.num_tokens), policy.mask_code)
    other = AmusedConfig(weights=str(published), aesthetic_score=9.0).build()
    with torch.no_grad():
        gap = policy.logits(canvas, cond) - other.logits(canvas, cond)
    assert gap.abs().max() > 1e-3


def test_bfloat16_is_the_networks_alone(published, policy):
    half = AmusedConfig(weights=str(published), dtype="bfloat16").build()
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.vqvae.parameters()} == {torch.float32}
    cond = half.encode(PROMPTS)
    canvas = torch.full((2, half.num_tokens), half.mask_code)
    with torch.no_grad():
        found, exact = half.logits(canvas, cond), policy.logits(canvas, cond)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["full", "lora"])
def test_trained_in_bfloat16_it_starts_at_its_reference(published, lora):
    """What is trained is float32, and says exactly what the weights as loaded say."""
    policy = AmusedConfig(weights=str(published), dtype="bfloat16").build()
    weight_sets = WeightSets(policy, lora)
    weight_sets.snapshot("reference")
    assert {p.dtype for p in weight_sets.trainable.values()} == {torch.float32}
    cond = policy.encode(PROMPTS)
    canvas = torch.full((2, policy.num_tokens), policy.mask_code)
    with torch.no_grad():
        found = policy.logits(canvas, cond)
        with weight_sets.using("reference"):
            assert torch.equal(found, policy.logits(canvas, cond))
        for parameter in weight_sets.trainable.values():
            parameter.add_(0.1)
        assert not torch.equal(found, policy.logits(canvas, cond))


def test_attention_is_chosen_for_this_model_alone(published, policy, pipeline):
    flash = AmusedConfig(weights=str(published), attention="flash").build()
    plain = AmusedConfig(weights=str(published), attention="sdpa").build()
    kinds = {type(p) for p in pipeline.transformer.attn_processors.values()}
    assert kinds == {AttnProcessor2_0}
    assert {p.requested for p in flash.network.attn_processors.values()} == {"flash"}
    assert {p.requested for p in plain.network.attn_processors.values()} == {"sdpa"}
    cond = policy.encode(PROMPTS)
    canvas = torch.full((2, policy.num_tokens), policy.mask_code)
    with torch.no_grad():
        expected = policy.logits(canvas, cond)
        for other in (flash, plain):
            found = other.logits(canvas, cond)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_wish_that_cannot_be_met_ends_the_run_before_weights_are_read(published, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xformers", None)
    with pytest.raises(RecipeError, match=r"xformers does not run here.*Choose attention: auto"):
        AmusedConfig(weights="nowhere/at-all", attention="xformers").build()


LONG = "a red dog and much else"  # 18 letters and the two ends; CLIP reads twelve


@pytest.mark.parametrize("prompt", [Prompt("a", LONG), Prompt("a", "a dog", negative=LONG)])
def test_a_prompt_that_clip_reads_in_part_is_named(published, tmp_path, prompt):
    """Once, when training begins, with what counts; a prompt of twelve tokens is silent."""
    rows = [{"text": "a red dogs of"}, {"text": prompt.text, "negative": prompt.negative}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe({
        "policy": {"use": "amused", "weights": str(published)},
        "sampler": {"use": "confidence", "num_inference_steps": 2},
        "reward": {"digit_classifier": {}}, "objective": {"grpo": {"epsilon": 0.1}},
        "prompts": {"file": str(tmp_path / "prompts.jsonl")},
        "train": {
            "iterations": 2, "num_prompts": 2, "num_generations": 2, "learning_rate": 1e-4,
        },
    })  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(train(recipe, rewards={"digit_classifier": Brightness()}))
    told = [str(w.message) for w in caught if "cut off" in str(w.message)]
    part = "negative" if prompt.negative else "text"
    assert len(told) == 1, told
    assert "1 of 2 prompts are longer than the policy reads" in told[0]
    assert f"of the {part} the first 12 tokens count" in told[0] and "has 20" in told[0]
    assert f"prompts.jsonl:2: {LONG!r}" in told[0]
