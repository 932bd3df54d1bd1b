"""Published reward networks from folders and the hub: made empty, then filled, nothing drawn."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from genrl_core import RecipeError, Tensors
from genrl_models import ModelFiles, fit_tensors

Network = TypeVar("Network", bound=nn.Module)

BESIDE = (
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
"""What a tokenizer may read beside ``tokenizer.json``."""


@contextmanager
def told(where: str) -> Iterator[None]:
    """What a library raises about files, as a sentence of the recipe's kind.

    Raises:
        RecipeError: ``where``, what the library said, and what to do.
    """
    try:
        yield
    except Exception as error:  # each library has its own, tokenizers the bare class
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RecipeError(
            f"{where}: {reason}. Download the files again, or give those that were published with "
            "the model"
        ) from error


def filled(make: Callable[[], Network], state: Mapping[str, Tensor], where: str) -> Network:
    """The network that ``make`` builds, with the tensors as its own.

    Tables of positions, which older files hold and newer networks make themselves, are left out.

    Raises:
        RecipeError: keys are missing, unexpected or of another shape; ``where`` begins it.
    """
    with told(f"{where} has sizes that make no network"), torch.device("meta"):
        network = make()
    _count_positions(network)
    kept = {key: value for key, value in state.items() if not key.endswith(".position_ids")}
    fit_tensors(network, kept, where)
    return network


def _count_positions(network: nn.Module) -> None:
    """Give the meta device's tables of positions, which are in no file, their numbers."""
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            assert name == "position_ids", name
            counted = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            module.register_buffer(name, counted, persistent=False)


def load_tokenizer(kind: Any, source: str, field: str, revision: str | None, rows: int) -> Any:
    """The tokenizer of a folder or hub id, whose ids must fit an embedding of ``rows``.

    Args:
        kind: the class of transformers, which runs no code of the repository.
        source, field, revision: as for ``ModelFiles``.
        rows: ids that the network knows.

    Raises:
        RecipeError: its files are not there or cannot be read, or it has more ids.
    """
    files = ModelFiles(source, field, revision)
    folder = files.path(("tokenizer.json", "vocab.json", "vocab.txt")).parent
    for name in BESIDE:
        files.find((name,))  # from the hub into the same folder
    with told(f"{field}: transformers cannot read a {kind.__name__} from {folder}"):
        found = kind.from_pretrained(folder, local_files_only=True)
    if len(found) > rows:
        raise RecipeError(
            f"{field}: the tokenizer in {folder} has {len(found)} ids and the network knows "
            f"{rows}: give the tokenizer that the model was trained with"
        )
    return found


def linear_chain(state: Tensors, width: int, where: str) -> nn.Sequential:
    """Linear layers one after the other, nothing between them: ``[b, width]`` to ``[b, 1]``.

    Args:
        state: ``layers.N.weight`` and ``.bias`` behind any prefix; numbers that are left out are
            dropout, which does nothing here.
        width: of what they read.
        where: begins the message.

    Raises:
        RecipeError: there are none, or they do not lead from ``width`` to one number.
    """
    named = {re.sub(r"^.*?(?=layers\.\d)", "", key): tensor for key, tensor in state.items()}
    weights = {
        int(key.split(".")[1]): tensor
        for key, tensor in named.items()
        if re.fullmatch(r"layers\.\d+\.weight", key)
    }
    shapes = [weights[number].shape for number in sorted(weights)]
    widths = [width, *(shape[0] for shape in shapes)]
    if [tuple(shape[1:]) for shape in shapes] != [(w,) for w in widths[:-1]] or widths[-1] != 1:
        found = ", ".join(str(list(shape)) for shape in shapes) or "no layers.N.weight"
        raise RecipeError(
            f"{where} is no chain of linear layers from {width} numbers to one: it holds {found}"
        )
    order = {f"layers.{number}.": f"{place}." for place, number in enumerate(sorted(weights))}
    layers = [nn.Linear(i, o, device="meta") for i, o in pairwise(widths)]
    head = nn.Sequential(*layers)
    fit_tensors(head, {_renamed(key, order): tensor for key, tensor in named.items()}, where)
    return head


def _renamed(key: str, order: Mapping[str, str]) -> str:
    for old, new in order.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def count_layers(state: Tensors, prefix: str) -> int:
    """How many blocks ``prefix + N + "."`` a state dict has."""
    starts = (key.removeprefix(prefix) for key in state if key.startswith(prefix))
    return len({rest.split(".")[0] for rest in starts})


def require(state: Tensors, keys: Mapping[str, str], where: str, example: str) -> dict[str, Tensor]:
    """The tensors of which the sizes are read, by a short name.

    Raises:
        RecipeError: one of them is not there, so this is another kind of model.
    """
    if absent := [key for key in keys.values() if key not in state]:
        there = ", ".join(sorted(state)[:5]) or "nothing"
        raise RecipeError(
            f"{where} is another kind of model: it lacks {', '.join(absent)} and holds "
            f"{len(state)} keys, such as {there}. Give {example}"
        )
    return {name: state[key] for name, key in keys.items()}
