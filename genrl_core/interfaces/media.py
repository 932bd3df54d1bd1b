"""What goes in and what comes out: prompts and finished samples. Importing it loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One normalised prompt: what ``encode`` conditions on and what rewards may read.

    Attributes:
        id: stable name; the random streams of its samples are keyed by it.
        text: the prompt itself.
        negative: what guidance steers away from; empty for none.
        columns: every further column of the prompt file, for rewards.
    """

    id: str
    text: str
    negative: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """How long some prompts are to a network, and how much of one it reads.

    Attributes:
        lengths: of every prompt, in units; 0 where it lacks this part.
        limit: the longest that is read whole.
        cut: whether the rest of a longer one goes unread; else a longer one cannot be taken at all.
        part: which part of a prompt this is about, ``text`` or ``negative``.
        unit: what is counted, special tokens included.
        way_out: what to do about a longer one.
    """

    lengths: Sequence[int]
    limit: int
    cut: bool
    part: Literal["text", "negative"] = "text"
    unit: str = "tokens"
    way_out: str = "shorten it, or leave it out"


@dataclass(frozen=True)
class Media:
    """Finished samples as a person or a reward takes them.

    Attributes:
        kind: ``image``, ``text`` or ``video``.
        pixels: ``[B, 3, H, W]`` or ``[B, F, 3, H, W]`` uint8, for images and videos.
        texts: B strings, for text, without the tokenizer's special tokens.
        raw_texts: the same with every token that was drawn, the end included; None where the policy
            has no special tokens, or does not tell.
    """

    kind: Literal["image", "text", "video"]
    pixels: Tensor | None = None
    texts: tuple[str, ...] = ()
    raw_texts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts) if self.pixels is None else int(self.pixels.shape[0])

    def select(self, rows: Sequence[int]) -> Media:
        """Some of the samples."""
        return Media(
            self.kind,
            None if self.pixels is None else self.pixels[list(rows)],
            tuple(self.texts[row] for row in rows) if self.texts else (),
            None if self.raw_texts is None else tuple(self.raw_texts[row] for row in rows),
        )

    @staticmethod
    def concat(parts: Sequence[Media]) -> Media:
        """The samples of several media of one kind."""
        import torch

        texts = tuple(text for part in parts for text in part.texts)
        pixels = [part.pixels for part in parts if part.pixels is not None]
        raw = tuple(text for part in parts for text in part.raw_texts or ())
        told = all(part.raw_texts is not None for part in parts)
        joined = torch.cat(pixels) if pixels else None
        return Media(parts[0].kind, joined, texts, raw if told else None)
