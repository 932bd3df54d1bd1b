"""The splits, the codebook, and that every process finds the same bits."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from genrl_core import Media, RewardError
from genrl_digits import data

ROOT = Path(__file__).parents[3]
SPLITS: tuple[data.SplitName, ...] = ("generator", "reward", "judge")


def test_splits_are_disjoint_and_cover_the_data_set():
    rows = [data.split(name).rows for name in SPLITS]
    assert [len(r) for r in rows] == [700, 550, 547]
    assert sorted(np.concatenate(rows).tolist()) == list(range(1797))


@pytest.mark.parametrize("name", SPLITS)
def test_splits_hold_every_digit_in_proportion_and_the_right_label(name):
    found, whole = data.split(name), load_digits()
    share = np.bincount(whole.target) * len(found.labels) / 1797
    assert np.abs(np.bincount(found.labels) - share).max() <= 1
    assert np.array_equal(found.labels, whole.target[found.rows])
    assert np.array_equal(found.images, whole.images[found.rows])
    assert set(np.unique(found.images)) == set(range(17))


def test_split_is_the_one_that_the_published_numbers_were_measured_on():
    together = np.concatenate([data.split(name).rows for name in SPLITS])
    digest = hashlib.sha256(together.astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "ab2af1ee132047ed"


def test_splits_and_codebook_cannot_be_changed_in_place():
    for array in (data.split("judge").images, data.split("judge").labels, data.codebook(8)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_round_trip_of_images_has_a_small_error_that_falls_with_the_codebook():
    images = data.split("judge").images
    errors = []
    for size in (4, 16, 64):
        restored = data.decode(data.encode(images, size), size)
        errors.append(float(np.sqrt(((restored - images) ** 2).mean())))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1.3  # of 16 grey levels


def test_round_trip_of_tokens_is_exact():
    tokens = np.random.default_rng(0).integers(0, 64, (50, 16))
    assert np.array_equal(data.encode(data.decode(tokens, 64), 64), tokens)


def test_a_code_stands_for_the_patch_at_its_place_row_by_row():
    image = data.decode(np.arange(16)[None], 64)[0]
    for place in range(16):
        row, column = 2 * (place // 4), 2 * (place % 4)
        patch = image[row : row + 2, column : column + 2]
        assert np.array_equal(patch.ravel(), data.codebook(64)[place])


def test_nearest_code_equals_brute_force():
    images = data.split("reward").images[:20]
    for image, codes in zip(images, data.encode(images, 64), strict=True):
        for place, code in enumerate(codes):
            row, column = 2 * (place // 4), 2 * (place % 4)
            patch = image[row : row + 2, column : column + 2].ravel()
            distance = ((data.codebook(64) - patch) ** 2).sum(1)
            assert distance[code] == pytest.approx(distance.min())


def test_pixels_carry_the_grey_levels():
    images = data.split("judge").images
    pixels = data.to_pixels(images)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (547, 3, 8, 8)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert np.abs(data.to_grey(Media("image", pixels)) - images).max() <= 16 / 255 / 2


@pytest.mark.parametrize(
    "media",
    [
        Media("image", torch.zeros(2, 3, 16, 16, dtype=torch.uint8)),
        Media("video", torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)),
        Media("text", texts=("three", "four")),
    ],
)
def test_other_media_are_refused(media):
    with pytest.raises(RewardError, match="policy of genrl_digits"):
        data.to_grey(media)


PROBE = """
import hashlib, sys
import numpy as np, torch
torch.manual_seed(int(sys.argv[1])); np.random.seed(int(sys.argv[1]))
from genrl_digits import DigitsMaskedConfig, data, rewards
images = data.split("judge").images[:50]
found = [data.split("reward").rows, data.codebook(64),
         rewards.reward_classifier().predict_proba(rewards.features(images)),
         rewards.judge_classifier().decision_function(rewards.features(images)),
         *(p.detach().numpy() for p in DigitsMaskedConfig().build().network.parameters())]
print(hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in found)).hexdigest())
"""


def test_two_processes_with_other_seeds_and_threads_find_the_same_bits():
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
    found = set()
    for seed, threads in (("1", "1"), ("2", "2")):
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", PROBE, seed], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        found.add(run.stdout)
    assert len(found) == 1
