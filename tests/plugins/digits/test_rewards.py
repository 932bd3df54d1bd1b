"""The classifiers on images that they never saw, and the measures against closed forms."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import chisquare

from genrl_core import Media, Prompt, RewardError
from genrl_digits import DigitClassifierConfig, data, rewards
from genrl_digits.words import NUMBER_WORDS


def prompt(digit, name=""):
    return Prompt(name or f"p{digit}", f"a handwritten {NUMBER_WORDS[digit]}")


def real(name):
    found = data.split(name)
    return Media("image", data.to_pixels(found.images)), [prompt(d) for d in found.labels]


@pytest.mark.parametrize("name", ["generator", "judge"])
def test_reward_knows_held_out_digits(name):
    media, prompts = real(name)
    given = np.array(rewards.DigitClassifier()(media, prompts))
    assert ((given >= 0) & (given <= 1)).all()
    assert (given > 0.5).mean() >= 0.95


def test_reward_is_the_probability_of_sklearn_bit_by_bit():
    media, prompts = real("judge")
    peer = rewards.reward_classifier().predict_proba(rewards.features(data.to_grey(media)))
    asked = [NUMBER_WORDS.index(p.text.split()[-1]) for p in prompts]
    assert rewards.DigitClassifier()(media, prompts) == peer[range(len(asked)), asked].tolist()


@pytest.mark.parametrize("name", ["generator", "reward"])
def test_judge_knows_held_out_digits(name):
    judge = rewards.DigitJudge()
    media, prompts = real(name)
    assert judge.summary(media, prompts)[""] >= 0.97
    wrong = [prompt((NUMBER_WORDS.index(p.text.split()[-1]) + 1) % 10) for p in prompts]
    assert judge.summary(media, wrong)[""] <= 0.01


def test_codes_keep_what_the_classifiers_see():
    found = data.split("judge")
    images = data.to_pixels(data.decode(data.encode(found.images, 64), 64))
    prompts = [prompt(d) for d in found.labels]
    assert np.mean(rewards.DigitClassifier()(Media("image", images), prompts)) >= 0.85


def test_rewards_do_not_depend_on_the_batch():
    media, prompts = real("judge")
    reward = rewards.DigitClassifier()
    whole = reward(media, prompts)
    for row in (0, 17, 500):
        alone = reward(media.select([row]), [prompts[row]])
        assert alone[0] == pytest.approx(whole[row], abs=1e-12)


@pytest.mark.parametrize(
    ("given", "digit"),
    [
        (Prompt("a", "whatever", columns={"digit": 7}), 7),
        (Prompt("b", "a handwritten three", columns={"digit": "0"}), 0),
        (Prompt("c", "Three drawn by hand"), 3),
        (Prompt("d", "nine nine"), 9),
    ],
)
def test_digit_of_a_prompt(given, digit):
    assert rewards.digit_of(given) == digit


@pytest.mark.parametrize(
    "given",
    [
        Prompt("here", "a handwritten cat"),
        Prompt("here", "one two"),
        Prompt("here", "three", columns={"digit": 12}),
        Prompt("here", "three", columns={"digit": ""}),
        Prompt("here", "three", columns={"digit": True}),
    ],
)
def test_a_prompt_without_a_digit_is_named(given):
    with pytest.raises(RewardError, match="'here'"):
        rewards.digit_of(given)


def test_shuffled_reward_ignores_the_prompt_and_has_no_favourite_image():
    control = DigitClassifierConfig(shuffle=True).build()
    media, prompts = real("judge")
    given = control(media, prompts)
    assert given == control(media, [prompt(0)] * len(media))
    assert given == control(media.select(range(547)), prompts)
    assert np.mean(given) == pytest.approx(0.1, abs=0.04)
    assert np.std(given) > 0.2
    honest = rewards.DigitClassifier()(media, prompts)
    assert abs(np.corrcoef(given, honest)[0, 1]) < 0.15


def test_hashed_digits_are_uniform():
    images = np.random.default_rng(0).integers(0, 17, (5000, 8, 8)).astype(np.float64)
    digits = rewards.hashed_digits(images)
    assert chisquare(np.bincount(digits, minlength=10)).pvalue > 1e-3


def covariance(generator, rank):
    factor = generator.normal(size=(4, rank))
    return factor @ factor.T


@pytest.mark.parametrize("rank", [4, 2])
def test_frechet_formula_equals_scipy(rank):
    generator = np.random.default_rng(rank)
    mean, other = generator.normal(size=(2, 4))
    cov, other_cov = covariance(generator, rank), covariance(generator, 4)
    root = np.real(sqrtm(cov @ other_cov))
    expected = ((mean - other) ** 2).sum() + np.trace(cov + other_cov - 2 * root)
    found = rewards.frechet_distance(mean, cov, other, other_cov)
    assert found == pytest.approx(expected, rel=1e-6)
    assert rewards.frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-9)


def test_frechet_of_commuting_gaussians_has_the_closed_form():
    variances, others = np.array([4.0, 1.0]), np.array([1.0, 9.0])
    found = rewards.frechet_distance(np.zeros(2), np.diag(variances), np.ones(2), np.diag(others))
    assert found == pytest.approx(2 + ((np.sqrt(variances) - np.sqrt(others)) ** 2).sum())


def noisy(images, level):
    noise = np.random.default_rng(0).normal(size=images.shape) * level
    return Media("image", data.to_pixels((images + noise).clip(0, 16)))


def test_frechet_is_small_between_real_digits_and_grows_with_noise_and_with_collapse():
    images, frechet = data.split("generator").images, rewards.DigitFrechet()
    distances = [frechet.summary(noisy(images, level), [])[""] for level in (0.0, 2.0, 4.0, 8.0)]
    assert distances[0] < 15
    assert distances == sorted(distances)
    assert distances[-1] > 6 * distances[0]
    real_judge = frechet.summary(noisy(data.split("judge").images, 0.0), [])[""]
    assert real_judge < 0.1
    collapsed = np.repeat(images[:10], 50, axis=0)
    assert frechet.summary(noisy(collapsed, 0.0), [])[""] > 5 * distances[0]


def test_principal_components_are_orthonormal_and_lead():
    centre, basis = rewards.principal_components()
    assert centre.shape == (64,)
    assert np.allclose(basis.T @ basis, np.eye(16))
    flat = data.split("judge").images.reshape(-1, 64) - centre
    explained = ((flat @ basis) ** 2).sum() / (flat**2).sum()
    assert 0.8 < explained < 0.95


def test_diversity_counts_pairs_of_one_prompt_only():
    black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    diversity = rewards.DigitDiversity()
    alike = Media("image", torch.cat([black, black, white, white]))
    asked = [prompt(0), prompt(0), prompt(1), prompt(1)]
    assert diversity.summary(alike, asked) == {"": 0.0}
    # One prompt: 6 pairs, 4 of them 16 * sqrt(64) = 128 apart.
    assert diversity.summary(alike, [prompt(0)] * 4)[""] == pytest.approx(128 * 4 / 6)
    # The mean over prompts: 128 and 0; a prompt with one sample has no pair.
    three = Media("image", torch.cat([black, white, black, black, white]))
    asked = [prompt(0), prompt(0), prompt(1), prompt(1), prompt(2)]
    assert diversity.summary(three, asked)[""] == pytest.approx(64)


def test_diversity_of_real_digits_is_about_36():
    assert rewards.DigitDiversity().summary(*real("judge"))[""] == pytest.approx(36, abs=2)


def test_set_measures_have_no_value_for_a_sample_and_say_what_they_need():
    media, prompts = real("judge")
    for measure in (rewards.DigitFrechet(), rewards.DigitDiversity()):
        assert measure(media, prompts) == [None] * 547
        with pytest.raises(RewardError, match="samples"):
            measure.summary(media.select([0]), prompts[:1])


def numpy_global_state():
    _, keys, place, *_ = np.random.get_state()  # noqa: NPY002  # the one that must not be used
    return keys.tobytes(), place


def test_training_the_classifiers_leaves_the_global_generators_alone():
    rewards.reward_classifier.cache_clear()
    rewards.judge_classifier.cache_clear()
    data.codebook.cache_clear()
    data.split.cache_clear()
    torch_state, numpy_state = torch.get_rng_state(), numpy_global_state()
    media, prompts = real("judge")
    rewards.DigitClassifier()(media, prompts)
    rewards.DigitJudge()(media, prompts)
    data.codebook(64)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert numpy_global_state() == numpy_state
