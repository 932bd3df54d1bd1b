"""The classifier reward, and three measures that are held out for evaluation.

The reward and the judge learn from different images and are different kinds of classifier, so what
fools the one has not yet fooled the other. The Frechet distance and the diversity show what an
accuracy hides: images that grow alike.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits
from torch import Tensor

from genrl_core import Media, Prompt, Reward, RewardError
from genrl_digits.data import INK, Array, split, to_grey
from genrl_digits.words import digit_of

COMPONENTS = 16
"""Principal components in which the Frechet distance is taken."""


class DigitClassifier(Reward):
    """``p(digit | image)`` of a small MLP trained on the reward split, 0 to 1.

    Args:
        shuffle: the control. Each image is asked for the digit that a hash of its own pixels picks,
            so its reward has the expectation 1/10 whatever the image and the prompt are, yet varies
            within a group. It depends neither on the batch nor on a generator.
    """

    def __init__(self, *, shuffle: bool = False):
        self._shuffle = shuffle

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        images = to_grey(media)
        asked = hashed_digits(images) if self._shuffle else [digit_of(p) for p in prompts]
        given: list[float] = predicted(features(images))[range(len(asked)), asked].tolist()
        return given

    def gradient(self, pixels: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The same probability from pixels ``[B, 3, 8, 8]``, 0 to 1: ``[B]`` float64.

        Equal to the value of ``__call__`` on images whose pixels are multiples of 1/255; others
        are rounded before ``__call__`` sees them. The control asks for the digit of the rounded
        image too. Where the probability is close to 0 or 1, so is its slope to 0.
        """
        grey = pixels.double().mean(1).flatten(1)
        if self._shuffle:
            rounded = (pixels.detach() * 255).round().clamp(0, 255).to(torch.uint8)
            asked = hashed_digits(to_grey(Media("image", rounded)))
        else:
            asked = [digit_of(p) for p in prompts]
        given = class_probabilities(grey)
        return given[torch.arange(len(asked), device=given.device), asked]


class DigitJudge(Reward):
    """1 where a support vector machine of the judge split sees the prompted digit, else 0."""

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float]:
        seen = judge_classifier().predict(features(to_grey(media)))
        return [float(s == digit_of(p)) for s, p in zip(seen, prompts, strict=True)]


class DigitFrechet(Reward):
    """``|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))`` between the samples and the judge split.

    Mean and covariance are of the first 16 principal components of the judge split's pixels, in
    grey levels 0 to 16 (squared). A property of the set: no single sample has one. The prompts
    should ask for every digit alike, as the judge split holds them.
    """

    def __call__(
        self, media: Media, prompts: Sequence[Prompt]  # noqa: ARG002  # a measure of whole sets
    ) -> list[float | None]:  # fmt: skip
        return [None] * len(media)

    def summary(self, media: Media, prompts: Sequence[Prompt]) -> Mapping[str, float]:  # noqa: ARG002
        if len(media) < 2:
            raise RewardError("digit_frechet compares covariances: it needs at least two samples")
        centre, basis = principal_components()
        own, real = ((x.reshape(len(x), -1) - centre) @ basis for x in _own_and_real(media))
        return {"": frechet_distance(own.mean(0), np.cov(own.T), real.mean(0), np.cov(real.T))}


class DigitDiversity(Reward):
    """The mean Euclidean distance between two samples of one prompt, in grey levels 0 to 16.

    Averaged over the pairs of a prompt, then over the prompts; a property of the set. 0 means that
    every prompt has one image.
    """

    def __call__(
        self, media: Media, prompts: Sequence[Prompt]  # noqa: ARG002  # a measure of whole sets
    ) -> list[float | None]:  # fmt: skip
        return [None] * len(media)

    def summary(self, media: Media, prompts: Sequence[Prompt]) -> Mapping[str, float]:
        images = to_grey(media).reshape(len(media), -1)
        rows: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(prompt.id, []).append(row)
        spreads = [mean_pairwise_distance(images[r]) for r in rows.values() if len(r) > 1]
        if not spreads:
            raise RewardError(
                "digit_diversity compares the samples of one prompt and found one sample each: set "
                "evaluate.num_generations to 2 or more"
            )
        return {"": float(np.mean(spreads))}


@cache
def reward_classifier() -> MLPClassifier:
    """The MLP behind the reward: 64 pixels, 100 hidden units, 10 digits."""
    mlp = MLPClassifier(
        (100,), alpha=0.1, batch_size=50, max_iter=100, n_iter_no_change=100, random_state=0
    )
    data = split("reward")
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 epochs are what we want
        return mlp.fit(features(data.images), data.labels)


def predicted(features: Array) -> Array:
    """``predict_proba`` of the reward's MLP, bit by bit, without sklearn's checks of its input."""
    mlp = reward_classifier()
    hidden = features
    for layer, (weight, bias) in enumerate(zip(mlp.coefs_, mlp.intercepts_, strict=True)):
        hidden = (np.maximum(hidden, 0) if layer else hidden) @ weight + bias
    mass = np.exp(hidden - hidden.max(1, keepdims=True))
    probabilities: Array = mass / mass.sum(1, keepdims=True)
    return probabilities


def class_probabilities(features: Tensor) -> Tensor:
    """``predict_proba`` of the reward's MLP as torch operations: ``[B, 64]`` to ``[B, 10]``."""
    mlp = reward_classifier()
    hidden = features
    for layer, (weight, bias) in enumerate(zip(mlp.coefs_, mlp.intercepts_, strict=True)):
        inside = hidden.relu() if layer else hidden
        hidden = inside @ torch.as_tensor(weight).to(inside) + torch.as_tensor(bias).to(inside)
    return hidden.softmax(-1)


@cache
def judge_classifier() -> SVC:
    """The support vector machine behind the judge, with a Gaussian kernel."""
    data = split("judge")
    with threadpool_limits(1):
        # Without a random_state of its own, fit draws from numpy's global generator.
        return SVC(C=10.0, gamma=0.25, random_state=0).fit(features(data.images), data.labels)


def features(images: Array) -> Array:
    """What both classifiers see of images ``[B, 8, 8]``: pixels from 0 to 1, ``[B, 64]``."""
    scaled: Array = images.reshape(len(images), -1) / INK
    return scaled


def hashed_digits(images: Array) -> list[int]:
    """For every image a digit that its pixels alone decide, uniform on 0..9 over images."""
    digests = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return [int.from_bytes(digest, "little") % 10 for digest in digests]


@cache
def principal_components() -> tuple[Array, Array]:
    """The judge split's mean image ``[64]`` and leading principal directions ``[64, 16]``."""
    flat = split("judge").images.reshape(-1, 64)
    with threadpool_limits(1):
        directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2]
    return flat.mean(0), directions[:COMPONENTS].T


def frechet_distance(mean: Array, cov: Array, other_mean: Array, other_cov: Array) -> float:
    """The squared 2-Wasserstein distance of two Gaussians (Dowson and Landau 1982); at least 0.

    Args:
        mean, other_mean: ``[P]``.
        cov, other_cov: ``[P, P]``, symmetric and positive semi-definite, singular allowed.
    """
    root = _root(cov)
    cross = np.sqrt(np.linalg.eigvalsh(root @ other_cov @ root).clip(0)).sum()
    distance = ((mean - other_mean) ** 2).sum() + np.trace(cov) + np.trace(other_cov) - 2 * cross
    return max(float(distance), 0.0)


def mean_pairwise_distance(points: Array) -> float:
    """The mean Euclidean distance over the pairs of ``[n, P]``, n at least 2."""
    first, second = np.triu_indices(len(points), 1)
    return float(np.linalg.norm(points[first] - points[second], axis=1).mean())


def _root(cov: Array) -> Array:
    values, vectors = np.linalg.eigh(cov)
    rooted: Array = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return rooted


def _own_and_real(media: Media) -> tuple[Array, Array]:
    return to_grey(media), split("judge").images
