"""The objective ``reward_gradient`` on numbers, and on digits through sampler, pixels and MLP."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from genrl_core import (
    Batch,
    Media,
    Policy,
    Prompt,
    RecipeError,
    Reward,
    RewardError,
    SamplerBackprop,
    load_recipe,
    select_rows,
)
from genrl_core.loop.objectives import build_objectives, required_weights
from genrl_core.loop.plan import plan_of
from genrl_core.loop.settings import WeightsConfig
from genrl_core.loop.views.reward import RewardView, backprop_steps
from genrl_core.recipe.check import check_recipe
from genrl_core.registry import Registry
from genrl_core.run.assembly import build_trainer
from genrl_diffusion import CpsConfig, DiffusersSolverConfig, FlowOdeConfig, FlowSdeConfig
from genrl_digits import DigitClassifierConfig, DigitsDiffusionConfig, data, rewards
from genrl_digits.words import NUMBER_WORDS
from genrl_objectives import OBJECTIVES, RewardGradientConfig

RECIPES = Path(__file__).parents[3] / "recipes" / "digits"


def prompt(digit: int, name: str = "") -> Prompt:
    return Prompt(name or f"p{digit}", f"a handwritten {NUMBER_WORDS[digit]}")


def batch_of(reward: Tensor, judged: Tensor, valid: Tensor) -> Batch:
    ones = torch.ones_like(judged)
    given: dict[str, Any] = {f.name: ones for f in fields(Batch) if f.default is not None}
    given |= {"mask": ones.bool(), "denominator_mask": ones.bool(), "events": ones.long()}
    group = torch.zeros(len(valid), dtype=torch.int64)
    given |= {"reward": reward, "valid": valid, "group": group, "errors": ()}
    return Batch(**given | {"differentiable_reward": judged})


@pytest.mark.parametrize("margin", [None, 0.5])
def test_loss_is_minus_the_reward_or_what_is_missing_to_the_margin(margin: float | None) -> None:
    reward = torch.tensor([[0.2, 0.9, -0.4, 0.45]], requires_grad=True)
    valid = torch.tensor([True, True, True, False])
    objective = RewardGradientConfig(margin=margin).build()
    loss, metrics = objective.loss(batch_of(torch.tensor([0.1, 0.9, 0.0, 0.0]), reward, valid))
    (slope,) = torch.autograd.grad(loss, reward)
    if margin is None:
        assert loss.item() == pytest.approx(-(0.2 + 0.9 - 0.4) / 3)
        assert slope.tolist() == [pytest.approx([-1 / 3, -1 / 3, -1 / 3, 0])]
    else:
        assert loss.item() == pytest.approx((0.3 + 0.9) / 3)
        assert slope.tolist() == [pytest.approx([-1 / 3, 0, -1 / 3, 0])]
    assert metrics["reward_gap"][0, :3].tolist() == pytest.approx([0.1, 0.0, 0.4])


def test_fields_become_a_replay() -> None:
    assert RewardGradientConfig().build().backprop == SamplerBackprop(1)
    alignprop = RewardGradientConfig(steps=50, random_steps=True)
    assert alignprop.build().backprop == SamplerBackprop(50, random_steps=True)
    refl = RewardGradientConfig(stop="random", stop_range=[30, 40], margin=2.0)
    assert refl.build().backprop == SamplerBackprop(1, stop=(30, 40))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stop": "random"}, "stop_range belongs to stop: random, which needs it"),
        ({"stop_range": [1, 2]}, "and stop is end"),
        ({"stop": "random", "stop_range": [2, 2]}, "0 <= first < end"),
        ({"stop": "random", "stop_range": [-1, 2]}, "0 <= first < end"),
        ({"steps": 0}, "greater than or equal to 1"),
    ],
)
def test_odd_fields_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RewardGradientConfig.model_validate(given)


def test_configs_say_who_draws() -> None:
    """``draws_with`` of a config, which ``check`` reads, is what draws in a run; no objective says
    another thing.
    """
    proposals = {"epsilon": 0.1, "cap": 2.0}
    for name, schema in OBJECTIVES.items():
        required = [n for n, field in schema.model_fields.items() if field.is_required()]
        extras = {n: schema.model_fields[n].json_schema_extra for n in required}
        given = {n: (e or proposals)["propose"] for n, e in extras.items() if isinstance(e, dict)}
        config = schema.model_validate(given)
        view = config.view_wanted() or config.compatible_views()[0]
        groups = build_objectives({name: config}, {name: view})
        required = required_weights(groups, [config.draws_with()], WeightsConfig())
        assert required.drawing == config.draws_with(), name
        assert (required.drawing == "lagging") == (name == "nft"), name


# The classifier's gradient


def test_the_classifier_s_gradient_has_the_classifier_s_value() -> None:
    """On all real images of the judge split, and on uint8 noise: predict_proba to 1e-6."""
    found = data.split("judge")
    noise = np.random.default_rng(0).integers(0, 256, (200, 3, 8, 8))
    pixels = torch.cat([data.to_pixels(found.images), torch.from_numpy(noise.astype(np.uint8))])
    prompts = [prompt(int(d)) for d in (*found.labels, *(np.arange(200) % 10))]
    for shuffle in (False, True):
        reward = DigitClassifierConfig(shuffle=shuffle).build()
        value = reward.gradient(pixels.float() / 255, prompts)
        expected = reward(Media("image", pixels), prompts)
        np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-6)
    grey = torch.from_numpy(rewards.features(found.images))
    known = rewards.reward_classifier().predict_proba(rewards.features(found.images))
    np.testing.assert_allclose(rewards.class_probabilities(grey).numpy(), known, rtol=0, atol=1e-12)


def test_the_classifier_s_gradient_is_its_difference_quotient() -> None:
    """Against scikit-learn's own forward pass, on grey images between real ones and noise."""
    generator = np.random.default_rng(1)
    real = data.split("judge").images[:12] / data.INK
    images = 0.6 * real + 0.4 * generator.random(real.shape)
    digits = [int(d) for d in data.split("judge").labels[:12]]
    pixels = torch.from_numpy(images).unsqueeze(1).expand(-1, 3, -1, -1).clone().requires_grad_()
    value = DigitClassifierConfig().build().gradient(pixels, [prompt(d) for d in digits])
    (slope,) = torch.autograd.grad(value.sum(), pixels)
    step = generator.normal(size=images.shape)

    def moved(size: float) -> Any:
        seen = (images + size * step).reshape(12, 64)
        return rewards.reward_classifier().predict_proba(seen)[np.arange(12), digits]

    quotient = (moved(1e-6) - moved(-1e-6)) / 2e-6
    found = (slope.sum(1).numpy() * step).sum((1, 2))
    assert np.abs(found).max() > 1e-2
    np.testing.assert_allclose(found, quotient, rtol=1e-5, atol=1e-8)


# Through a digit policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    """In float64, with an output that is not zero, as after training."""
    policy = DigitsDiffusionConfig(width=32, layers=1).build()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        policy.network.leave.weight.normal_(0, 0.3, generator=generator)
        policy.network.skip.weight.normal_(0, 0.3, generator=generator)
    policy.network.double()
    return policy


SAMPLERS: dict[str, Any] = {
    "ode": FlowOdeConfig(num_inference_steps=4),
    "sde": FlowSdeConfig(num_inference_steps=4, noise=0.7, guidance_scale=1.5),
    "cps": CpsConfig(num_inference_steps=4, same_noise=True),
    "solver": DiffusersSolverConfig(num_inference_steps=4),
}


def view_of(policy: Policy, config: Any, backprop: SamplerBackprop) -> RewardView:
    plan = plan_of(0, 0, 0, [prompt(3), prompt(7)], 3)
    prompts = policy.encode(plan.prompts)
    sampler = config.build()
    with torch.no_grad():
        trajectory = sampler.rollout(policy, select_rows(prompts, plan.group), plan)
    reward: dict[str, tuple[float, Reward]] = {"digits": (2.0, DigitClassifierConfig().build())}
    given = {"digits": torch.ones(6, dtype=torch.bool)}
    steps, stop = backprop_steps(backprop, plan.streams("replay/0"))
    return RewardView(policy, sampler, trajectory, (plan,), reward, given, steps, stop)


def judged(view: RewardView) -> Tensor:
    rows = torch.arange(6)
    return view.evaluate(torch.zeros_like(rows), rows)["differentiable_reward"]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("stop", [None, (1, 4)])
def test_gradient_through_the_whole_sampler(
    policy: Policy, name: str, stop: tuple[int, int] | None
) -> None:
    """With a graph in every step: the difference quotient along a random direction of weights."""
    view = view_of(policy, SAMPLERS[name], SamplerBackprop(steps=4, stop=stop))
    parameters = list(policy.network.parameters())
    slopes = torch.autograd.grad(judged(view).sum(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(2)
    steps = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    pairs = zip(slopes, steps, strict=True)
    found = sum(float((s * d).sum()) for s, d in pairs if s is not None)

    def moved(size: float) -> float:
        with torch.no_grad():
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.add_(size * step)
            return float(judged(view).sum())

    size = 1e-5 if name == "solver" else 1e-6  # diffusers rounds to float32
    up, down = moved(size), moved(-2 * size)
    moved(size)
    assert abs(found) > 1e-3
    assert found == pytest.approx((up - down) / (2 * size), rel=2e-3 if name == "solver" else 1e-4)


def test_the_first_pass_and_the_second_agree(policy: Policy) -> None:
    """With a graph or without, drawn again or taken from the record, the reward is the same."""
    from dataclasses import replace

    for config in SAMPLERS.values():
        view = view_of(policy, config, SamplerBackprop(2, random_steps=True))
        graph = judged(view)
        with torch.no_grad():
            plain, recorded = judged(view), judged(replace(view, again=False))
        assert graph.requires_grad and not plain.requires_grad
        torch.testing.assert_close(graph, plain, rtol=0, atol=1e-12)
        torch.testing.assert_close(graph, recorded, rtol=0, atol=1e-12)
        media = policy.decode(view.trajectory.final)
        spoken = DigitClassifierConfig().build()(media, view.parts[0].sample_prompts())
        gap = (graph.detach()[:, 0] / 2 - torch.tensor(spoken)).abs()
        assert gap.max() < 0.02  # __call__ sees pixels rounded to 1/255


# Recipes


@pytest.mark.parametrize("name", ["draft", "refl"])
def test_the_digits_recipes_repeat_their_samples(name: str) -> None:
    assert len((RECIPES / f"{name}.yaml").read_text().splitlines()) <= 25
    recipe = load_recipe(f"digits/{name}", ["policy.weights=null", "train.num_prompts=4"])
    trainer = build_trainer(recipe)
    before = [p.detach().clone() for p in trainer.weight_sets.trainable.values()]
    for _ in range(2):
        record = trainer.step()
        assert record.problem is None
        assert record.metrics["drift"] < 1e-5
        assert record.metrics["grad_norm"] > 0
    assert name == "refl" or record.metrics["reward_gap"] < 0.05
    after = list(trainer.weight_sets.trainable.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def refused(*overrides: str, name: str = "digits/draft") -> str:
    with pytest.raises(RecipeError) as caught:
        check_recipe(load_recipe(name, ["policy.weights=null", *overrides]))
    return str(caught.value)


@pytest.mark.parametrize("paradigm", ["masked", "autoregressive"])
def test_tokens_have_no_gradient(paradigm: str) -> None:
    said = refused("objective={grpo: null, reward_gradient: {}}", name=f"digits/{paradigm}")
    assert f"needs differentiable, which digits_{paradigm} does not provide" in said
    assert "a sampled token is one of a set, and no gradient passes through the choice" in said
    assert "Of other paradigms, digits_diffusion" in said


BLIND = '''
from genrl_core import Media, Prompt, Register, hookimpl


def ink(media: Media, prompts: list[Prompt]) -> list[float]:
    """How dark the image is."""
    return (255 - media.pixels.float().mean((1, 2, 3))).tolist()


@hookimpl
def register_rewards(register: Register) -> None:
    register("ink", ink, media="image")
'''


def test_a_reward_of_another_medium_does_not_hide_what_fits() -> None:
    """Rewards that have a gradient are offered by what the policy makes, not by a wrong one."""
    wrong = ["policy.weights=null", "reward.digit_classifier=null", "reward.arithmetic_correct={}"]
    with pytest.raises(RecipeError, match=r"has no gradient. Choose digit_classifier, or leave"):
        check_recipe(load_recipe("digits/draft", wrong))


def test_a_reward_without_a_gradient_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "blind.py").write_text(BLIND)
    registry = Registry.discover()
    registry.add_file(tmp_path / "blind.py")
    recipe = load_recipe("digits/draft", ["policy.weights=null", "reward.ink={}"], registry)
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe)
    said = str(caught.value)
    assert "reward.ink: reward_gradient differentiates the reward, and ink has no gradient" in said
    assert "Choose digit_classifier, or leave reward_gradient out" in said
    check_recipe(recipe.with_overrides("objective={reward_gradient: null, kl: null, sft: {}}"))


def test_what_has_no_steps_is_refused() -> None:
    said = refused("sampler={use: digits_data_diffusion}", "evaluate=null")
    assert (
        "reward_gradient differentiates the steps of a rollout, but digits_data_diffusion" in said
    )


def test_a_stop_beyond_the_last_step_is_named() -> None:
    recipe = load_recipe("digits/refl", ["policy.weights=null", "sampler.num_inference_steps=4"])
    with pytest.raises(RecipeError, match=r"step \d is asked for, but sampler.num_inference_steps"):
        build_trainer(recipe).step()


@pytest.mark.parametrize("mixed", ["grpo: {epsilon: 1e-3, over: mean}", "kl: {weight: 0.01}"])
def test_it_mixes_with_others(mixed: str) -> None:
    noise = ["sampler.noise=0.7", f"objective={{reward_gradient: {{weight: 2.0}}, {mixed}}}"]
    recipe = load_recipe("digits/draft", ["policy.weights=null", "train.num_prompts=4", *noise])
    trainer = build_trainer(recipe)
    for _ in range(2):
        record = trainer.step()
        assert record.problem is None
        assert record.metrics["drift"] < 1e-4


def test_a_reward_of_another_shape_is_named_in_a_run() -> None:
    class Flat(Reward):
        def __call__(self, media: Media, prompts: Any) -> list[float]:
            return [0.5] * len(prompts)

        def gradient(self, pixels: Tensor, prompts: Any) -> Tensor:
            return pixels.mean()

    recipe = load_recipe("digits/draft", ["policy.weights=null", "train.num_prompts=2"])
    trainer = build_trainer(recipe, rewards={"flat": Flat()})
    with pytest.raises(RewardError, match="the gradient of reward 'flat' has the shape"):
        trainer.step()
