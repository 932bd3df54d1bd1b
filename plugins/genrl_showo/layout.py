"""Show-o's sequence (arXiv 2408.12528): the ids, the order of the parts, and who attends to whom.

    [PAD] .. [PAD] [t2i] [sot] text [eot]  |  [soi] y_1 .. y_N [eoi]
    the prefix: P = 129 ids, left padded   |  the image: N + 2 ids

A prompt's text attends causally to itself, the image to itself and to the text, nothing real ever
to padding. So the text is independent of the image, and its keys and values can be kept. Positions
count from the first padding on, and the logits of a position are those of its own code: nothing is
shifted. Letters: U prompts, R rows, P ids of the prefix, N codes of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_SPECIAL = 10
"""[PAD] soi eoi sov eov t2i mmu t2v v2v lvg, in this order, after the tokenizer's ids."""


@dataclass(frozen=True)
class Vocabulary:
    """All ids of Show-o: text, ten special ones, image codes, mask.

    Attributes:
        text: ids of the tokenizer: 50,295 for Phi-1.5's.
        codes: V, image codes: 8,192.
        boundary: the tokenizer's end-of-text id, around every text (sot and eot): 50,256.
    """

    text: int = 50295
    codes: int = 8192
    boundary: int = 50256

    @property
    def pad(self) -> int:
        return self.text

    @property
    def soi(self) -> int:
        return self.text + 1

    @property
    def eoi(self) -> int:
        return self.text + 2

    @property
    def t2i(self) -> int:
        return self.text + 5

    @property
    def first_code(self) -> int:
        return self.text + NUM_SPECIAL

    @property
    def mask(self) -> int:
        """The last id: what the mask code V of a canvas becomes, as ``first_code + V``."""
        return self.first_code + self.codes

    @property
    def size(self) -> int:
        return self.mask + 1


def prompt_ids(text: Sequence[int], vocabulary: Vocabulary, length: int = 128) -> list[int]:
    """The prefix of one prompt: ``length + 1`` ids, padded on the left.

    A text that is too long is cut after ``length`` ids, t2i and sot included, and ends with eot as
    every other. No text gives ``[t2i] [sot] [eot]``, the prompt without a prompt.
    """
    ids = framed(text, vocabulary)
    if len(ids) > length + 1:
        ids = [*ids[:length], vocabulary.boundary]
    return [vocabulary.pad] * (length + 1 - len(ids)) + ids


def framed(text: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """A whole text between t2i, sot, which it may bring itself, and eot."""
    begin = [] if list(text[:1]) == [vocabulary.boundary] else [vocabulary.boundary]
    return [vocabulary.t2i, *begin, *text, vocabulary.boundary]


def image_ids(canvas: Tensor, vocabulary: Vocabulary) -> Tensor:
    """A canvas ``[R, N]`` of codes 0 .. V - 1 and the mask code V as ids ``[R, N + 2]``."""
    edge = canvas.new_full((len(canvas), 1), vocabulary.soi)
    end = torch.full_like(edge, vocabulary.eoi)
    return torch.cat([edge, canvas + vocabulary.first_code, end], 1)


def prefix_attention(padding: Tensor) -> Tensor:
    """Which ids of the prefix each of them attends to: ``[U, 1, P, P]`` bool, True to attend.

    Text attends causally to text. Padding attends causally to padding, so that no row of the mask
    is empty; what comes of it is never read.

    Args:
        padding: ``[U, P]`` bool.
    """
    size = padding.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=padding.device).tril()
    real = ~padding
    return (causal & (real.unsqueeze(1) | padding.unsqueeze(2))).unsqueeze(1)


def image_attention(padding: Tensor, size: int) -> Tensor | None:
    """Which ids every id of the image attends to: ``[R, 1, 1, P + size]`` bool; None for all.

    All but the padding, the same for every id of the image. None lets kernels run that take no
    mask.

    Args:
        padding: ``[R, P]`` bool.
        size: ids of the image, N + 2.
    """
    if not padding.any():
        return None
    image = padding.new_ones(len(padding), size)
    return torch.cat([~padding, image], 1)[:, None, None]
