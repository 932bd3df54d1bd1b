"""Show-o on two processes is Show-o on one: the weights of both ranks, and the metrics."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from genrl_core import load_recipe
from genrl_core.registry import Registry
from genrl_core.run.assembly import build_trainer

from .test_policy import recipe_for

OBJECTIVE = "{grpo: {epsilon: 0.2}, kl: {weight: 0.05, estimator: k3}}"
ITERATIONS = 2
WORKER = """
import json, os, sys, torch
from pathlib import Path
from genrl_core.loop.distributed import Runtime
from tests.plugins.showo.test_processes import loaded, trained
folder, runtime = Path(sys.argv[1]), Runtime("cpu")
weights, metrics = trained(loaded(folder), runtime=runtime)
torch.save(weights, folder / f"weights.{runtime.rank}")
(folder / f"metrics.{runtime.rank}").write_text(json.dumps([metrics, runtime.world_size]))
runtime.close()
os._exit(0)  # as tests/core/test_trainer.py says
"""


def loaded(folder):
    return load_recipe(
        str(folder / "two.yaml"), registry=Registry.discover([folder / "genrl_bright.py"])
    )


def trained(recipe, **given):
    """The weights after a few iterations in float64, and the metrics of each."""
    policy = recipe.policy.build()
    policy.network.double()
    policy.image_tokenizer.double()
    trainer = build_trainer(recipe, policy=policy, **given)
    metrics = [trainer.step().metrics for _ in range(ITERATIONS)]
    timeless = [{k: v for k, v in m.items() if not k.startswith("seconds")} for m in metrics]
    return policy.network.state_dict(), timeless


def write(published, folder):
    """Three prompts of different lengths: two groups for one rank, one for the other."""
    recipe_for(published, folder, objective=OBJECTIVE)
    (folder / "prompts.txt").write_text("a red cube\ndog\ntwo small cat and a blue ball\n")
    text = (folder / "recipe.yaml").read_text().replace("num_prompts: 2", "num_prompts: 3")
    (folder / "two.yaml").write_text(text.replace("transition: p1", "guidance_scale: 2.0"))
    (folder / "worker.py").write_text(WORKER)


def launch(folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(folder / "worker.py"), str(folder)]
    paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    subprocess.run(command, check=True, env=environment, timeout=180)


def test_two_processes_equal_one_and_each_other(published, tmp_path):
    """B11 of Mask-GRPO's released code is that every rank trains a model of its own."""
    write(published, tmp_path)
    launch(tmp_path)
    start = loaded(tmp_path).policy.build().network.state_dict()
    alone, expected = trained(loaded(tmp_path))
    ranks = [torch.load(tmp_path / f"weights.{rank}", weights_only=True) for rank in (0, 1)]
    for rank, weights in enumerate(ranks):
        metrics, world = json.loads((tmp_path / f"metrics.{rank}").read_text())
        assert world == 2
        for found, own in zip(metrics, expected, strict=True):
            assert found.keys() == own.keys()
            assert all(abs(found[name] - own[name]) < 1e-7 for name in own)
        for key, tensor in alone.items():
            torch.testing.assert_close(weights[key], tensor, rtol=0, atol=1e-8, msg=key)
    assert all(torch.equal(ranks[0][key], ranks[1][key]) for key in alone)
    assert max((alone[key] - start[key]).abs().max() for key in alone) > 1e-4
