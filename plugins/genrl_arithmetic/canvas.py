"""The masked answer: a canvas of a few characters beside the prompt, and a small encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from genrl_arithmetic import ArithmeticMaskedConfig, task
from genrl_core import GenRLError, Media, Prompt, Tensors
from genrl_masked import MaskedPolicy

_SEED = 1810
"""Of the initial weights: every run starts from the same ones, whatever its own seed."""

_MASK = task.VOCABULARY
"""The id of the mask in the network, after all characters."""


class AnswerEncoder(nn.Module):
    """A BERT over the prompt's characters and the answer's, ten digits, the end or the mask.

    prompt [R, P] int64    canvas [R, N] int64, character or mask (= V)    logits [R, N, V]
    """

    def __init__(self, config: ArithmeticMaskedConfig):
        super().__init__()
        self.encoder = BertForMaskedLM(_settings(config))

    def forward(self, prompt: Tensor, canvas: Tensor) -> Tensor:
        """Logits over the characters of an answer, in the network's dtype."""
        # The mask is V on a canvas, which is the id of a prompt's first own character.
        ids = canvas.masked_fill(canvas == task.END + 1, _MASK)
        logits: Tensor = self.encoder(input_ids=torch.cat([prompt, ids], 1)).logits
        return logits[:, prompt.shape[1] :, : task.END + 1]


class ArithmeticMasked(MaskedPolicy):
    """Answers of a fixed number of characters, filled in any order.

    ``cond`` is ``prompt`` ``[B, P]`` int64, padded with the end at its left, so that every answer
    follows its ``=``. ``final`` is ``tokens`` ``[B, N]`` int64; a text ends before its first end.
    """

    lora_targets = ("query", "key", "value", "dense")

    def __init__(self, config: ArithmeticMaskedConfig):
        # The encoder's constructor draws from the global generator: from our seed, put back after.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            network = AnswerEncoder(config)
        super().__init__(config, network.eval(), config.answer_length, task.END + 1)
        self.num_prompt_tokens = config.prompt_length

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        rows = [task.prompt_ids(prompt, self.num_prompt_tokens) for prompt in prompts]
        padded = [[task.END] * (self.num_prompt_tokens - len(row)) + row for row in rows]
        return {"prompt": torch.tensor(padded, device=next(self.network.parameters()).device)}

    def unconditional(self, cond: Tensors) -> Tensors:
        """The empty prompt, which is all padding."""
        return {"prompt": torch.full_like(cond["prompt"], task.END)}

    def mask_prompt(self, cond: Tensors, where: Tensor) -> Tensors:
        """A hidden character is the mask; padding stays what it is."""
        hidden = where & (cond["prompt"] != task.END)
        return {"prompt": cond["prompt"].masked_fill(hidden, _MASK)}

    def logits(self, canvas: Tensor, cond: Tensors) -> Tensor:
        logits: Tensor = self.network(cond["prompt"], canvas)
        return logits if logits.dtype == torch.float64 else logits.float()

    def decode(self, final: Tensors) -> Media:
        rows = final["tokens"].tolist()
        texts = ["".join(map(str, row[: (*row, task.END).index(task.END)])) for row in rows]
        return Media("text", texts=tuple(texts))

    def tokenize(self, texts: Sequence[str]) -> Tensors:
        """Numbers in decimal digits as finished samples, filled up with ends.

        Raises:
            GenRLError: a number has more digits than an answer has characters.
        """
        for text in texts:
            if len(text) > self.num_tokens:
                raise GenRLError(
                    f"{text} has {len(text)} digits; an answer has {self.num_tokens} characters: "
                    "raise policy.answer_length"
                )
        rows = [[*map(int, text), *[task.END] * (self.num_tokens - len(text))] for text in texts]
        return {"tokens": torch.tensor(rows)}


def _settings(config: ArithmeticMaskedConfig) -> BertConfig:
    return BertConfig(
        vocab_size=task.VOCABULARY + 1, hidden_size=config.width,
        num_hidden_layers=config.layers, num_attention_heads=config.heads,
        intermediate_size=4 * config.width, type_vocab_size=1,
        max_position_embeddings=config.prompt_length + config.answer_length,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=None,
        initializer_range=config.width**-0.5, tie_word_embeddings=False,
    )  # fmt: skip
