"""What a run ran on and with: machine, versions, commit, command line; never a secret."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from genrl_core import __version__

PACKAGES = (
    "torch", "numpy", "safetensors", "pydantic", "pluggy", "accelerate", "diffusers",
    "transformers", "peft", "scikit-learn", "xformers",
)  # fmt: skip
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "GENRL_STRICT", "HF_HUB_OFFLINE",
    "LOCAL_RANK", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "PYTHONHASHSEED", "RANK", "SLURM_JOB_ID",
    "SLURM_NNODES", "WORLD_SIZE",
)  # fmt: skip
"""The only environment variables that are written down."""

_SECRET = re.compile(r"token|secret|passw|credential|api[-_]?key", re.IGNORECASE)
_OPEN = re.compile(r"(?:tokenizer|(?:num|max)_(?:\w+_)?tokens)$")
"""What is named like a secret and is none: fields that a published command must keep."""


def environment() -> dict[str, Any]:
    """The content of ``environment.json``."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": sys.version.split()[0],
        "os": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpus": devices,
        "cuda": torch.version.cuda,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def versions() -> dict[str, str]:
    """GenRL's and those of the installed ones of ``PACKAGES``."""
    found = {"genrl-core": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout that GenRL runs from, ``-dirty`` if changed; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    # S603, S607: fixed arguments, and the user's own git.
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(  # noqa: S603
            command, cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def command_line(arguments: Sequence[str]) -> list[str]:
    """The arguments with the values of everything that is named like a secret blotted out."""
    shown, blot = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        named = bool(_SECRET.search(name)) and not _OPEN.search(name)
        secret = named and (bool(equals) or name.startswith("-"))
        shown.append("***" if blot else f"{name}=***" if secret and equals else argument)
        blot = secret and not equals
    return shown


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())
