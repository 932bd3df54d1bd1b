"""Any causal language model of transformers, in its published format, with its tokenizer."""

from collections.abc import Collection, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from genrl_autoregressive.transformers_policy import TransformersPolicy
from genrl_core import Media, Prompt, RecipeError, Tensors

if TYPE_CHECKING:
    from genrl_autoregressive import CausalLmConfig


class CausalLm(TransformersPolicy):
    """Texts that continue a prompt: GPT-2, Llama, Qwen and whatever else ``AutoModel`` knows.

    ``cond`` holds prompts and, as ``negative`` and ``negative_mask``, what guidance steers away
    from: the prompt's negative text, or the beginning-of-sequence token alone. Neither code from a
    repository is run nor a pickle read: ``trust_remote_code=False``, ``use_safetensors=True``. Ids
    of the network's head that are no token of the tokenizer are never drawn.

    Raises:
        RecipeError: nothing can be loaded from ``policy.weights``, or ``policy.base``.
    """

    def __init__(self, config: "CausalLmConfig"):
        source = config.weights or config.base
        if source is None:
            raise RecipeError(f"policy.weights {config.weights_problem()}")
        network, tokenizer = _load(source, config)
        ends = _end_tokens(network, tokenizer)
        width = int(network.get_output_embeddings().weight.shape[0])
        # Vocabularies are padded to round numbers: an id that is no token would be lost in a text.
        known = {*tokenizer.get_vocab().values(), *ends} & {*range(width)}
        super().__init__(config, network, max(known, default=-1) + 1, end_tokens=ends)
        self.missing = tuple(sorted({*range(self.num_symbols)} - known))
        self.tokenizer = tokenizer
        self._template = config.chat_template
        self._keep = config.keep_special_tokens

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        prompt, mask = self._pad([self._ids(self._text(p.text)) for p in prompts])
        negative, negative_mask = self._pad(
            [self._ids(self._text(p.negative) if p.negative else "") for p in prompts]
        )
        return {
            "prompt": prompt, "prompt_mask": mask,
            "negative": negative, "negative_mask": negative_mask,
        }  # fmt: skip

    def unconditional(self, cond: Tensors) -> Tensors:
        """The negative prompts."""
        return {"prompt": cond["negative"], "prompt_mask": cond["negative_mask"]}

    def decode(self, final: Tensors) -> Media:
        """The texts, and as ``raw_texts`` with all special tokens.

        With ``policy.keep_special_tokens`` the texts lack the end alone.
        """
        rows = zip(final["tokens"].tolist(), final["length"].tolist(), strict=True)
        drawn = [row[:length] for row, length in rows]
        raw = [self.tokenizer.decode(row, skip_special_tokens=False) for row in drawn]
        if self._keep:
            ended = [row[: len(row) - _trailing(row, self.end_tokens)] for row in drawn]
            texts = [self.tokenizer.decode(row, skip_special_tokens=False) for row in ended]
        else:
            texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in drawn]
        return Media("text", texts=tuple(texts), raw_texts=tuple(raw))

    def tokenize(self, texts: Sequence[str]) -> Tensors:
        """Texts as finished samples of their own, an end-of-sequence token after each."""
        end = list(self.end_tokens[:1])
        rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] + end for text in texts]
        tokens, mask = self._pad(rows)
        return {"tokens": tokens, "length": mask.sum(1)}

    def _text(self, text: str) -> str:
        if not self._template:
            return text
        turn = [{"role": "user", "content": text}]
        found = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return cast(str, found)

    def _ids(self, text: str) -> list[int]:
        """The tokens of a prompt; where there is none, one that begins a sequence.

        A template writes its own special tokens. Else the tokenizer may put one before the text,
        unless the text begins with it, and none behind: a sample would follow a text that is over.
        """
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        begin = self.tokenizer.bos_token_id
        if not (self._template and text):
            written, framed = ids, self.tokenizer(text)["input_ids"]
            closing = {*self.end_tokens, self.tokenizer.eos_token_id, self.tokenizer.sep_token_id}
            last = len(framed) - _trailing(framed, closing) + _trailing(written, closing)
            twice = written[:1] == [begin] and framed[:2] == [begin, begin]
            ids = framed[int(twice) : last]
        first = begin if begin is not None else (*self.end_tokens, 0)[0]
        return ids or [first]

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and their mask, padded with 0 at the end: ``[B, P]`` each."""
        width = max(map(len, rows))
        device = next(self.network.parameters()).device
        padded = [[*row, *[0] * (width - len(row))] for row in rows]
        ids = torch.tensor(padded, dtype=torch.int64, device=device)  # also where all are empty
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return ids, torch.arange(width, device=device) < lengths.unsqueeze(1)


def _trailing(ids: Sequence[int], closing: Collection[int | None]) -> int:
    """How many of the last ids, up to the first other one, are among ``closing``."""
    return len(list(takewhile(closing.__contains__, reversed(ids))))


def _load(source: str, config: "CausalLmConfig") -> tuple[Any, Any]:
    """The network in evaluation mode, all dropout taken out, and the tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if source.startswith(("/", ".", "~")) and not Path(source).is_dir():
        raise RecipeError(
            f"policy.weights: there is no folder {source}. Give one with config.json, "
            "model.safetensors and a tokenizer, or a hub id"
        )
    shared: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
    shared = {name: value for name, value in shared.items() if value is not None}
    try:
        settings = AutoConfig.from_pretrained(source, **shared)
        for name, value in settings.to_dict().items():
            if "drop" in name and isinstance(value, float):
                setattr(settings, name, 0.0)
        network = AutoModelForCausalLM.from_pretrained(
            source, config=settings, dtype=getattr(torch, config.dtype), use_safetensors=True,
            **shared,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(source, **shared)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"policy.weights: transformers cannot load a causal language model from {source!r}: "
            f"{first}. Give a folder or hub id with config.json, model.safetensors and a tokenizer"
        ) from error
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    network.train(mode=False)
    return network, tokenizer


def _end_tokens(network: Any, tokenizer: Any) -> tuple[int, ...]:
    """What ends a sample: the model's end-of-sequence tokens, or else the tokenizer's."""
    found = getattr(network.generation_config, "eos_token_id", None)
    found = tokenizer.eos_token_id if found is None else found
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list) else (found,)
