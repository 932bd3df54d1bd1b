"""A vision-language model behind an OpenAI-compatible service as the judge of images."""

import base64
import io
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from genrl_core import Media, Prompt, RecipeError, Reward, RewardError
from genrl_rewards.chat import Chat, Json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from genrl_rewards import VlmJudgeConfig

_TOP = 20
"""Candidates of the first token whose probabilities are asked for: the most that services give."""
_LONGEST = 20_000
"""Characters of an answer, from its end, in which the score is sought."""
_log = logging.getLogger("genrl_rewards")


class VlmJudge(Reward):
    """Asks a model about every image, and reads a number from 0 to 1 off its answer.

    ``yes_probability``: ``P(yes) / (P(yes) + P(no))`` by the log-probabilities of the first token
    (VQAScore, arXiv 2404.01291), every spelling of the two words summed. ``score``: the last match
    of ``pattern``, ``(x - minimum) / (maximum - minimum)``; published code mostly has
    ``x / maximum``, which ranks the images alike.

    An answer without a number, with one that is not finite or out of range, and a request that
    stays without a reply are missing values (None), never a 0.
    """

    def __init__(self, config: "VlmJudgeConfig"):
        self._config = config
        self._pattern = re.compile(config.pattern)
        self._chat = Chat(
            f"{config.base_url.rstrip('/')}/chat/completions", _key(config.api_key_env),
            timeout=config.timeout, retries=config.retries, outage=config.outage,
            least=config.min_answered, concurrency=config.concurrency,
        )  # fmt: skip

    def __call__(self, media: Media, prompts: Sequence[Prompt]) -> list[float | None]:
        images = _images(media)
        pairs = zip(images, prompts, strict=True)
        bodies = [partial(self._body, image, prompt.text) for image, prompt in pairs]
        replies = self._chat.ask(bodies)
        values = [None if reply is None else self._value(reply) for reply in replies]
        self._check(values, replies)
        return values

    def _body(self, image: "NDArray[Any]", text: str) -> Json:
        config = self._config
        question = config.question.replace("{prompt}", text)
        content = [
            {"type": "image_url", "image_url": {"url": data_url(image)}},
            {"type": "text", "text": question},
        ]
        body = {
            "model": config.model, "messages": [{"role": "user", "content": content}],
            "temperature": 0, "max_tokens": config.max_tokens,
        }  # fmt: skip
        if config.mode == "yes_probability":
            body |= {"max_tokens": 1, "logprobs": True, "top_logprobs": _TOP}
        return body

    def _value(self, reply: Json) -> float | None:
        if self._config.mode == "yes_probability":
            return yes_probability(reply)
        found = score(answer(reply), self._pattern)
        low, high = self._config.minimum, self._config.maximum
        if found is None or not low <= found <= high:
            return None
        return (found - low) / (high - low)

    def _check(self, values: list[float | None], replies: list[Json | None]) -> None:
        """Warn of answers without a number, and stop where they are too many to be chance."""
        bad = [r for v, r in zip(values, replies, strict=True) if v is None and r is not None]
        if not bad:
            return
        said = answer(bad[0])
        shown = f"the first was {said[:200]!r}" if said else "the first had no text"
        _log.warning("%s of %s answers hold no number: %s", len(bad), len(values), shown)
        if values.count(None) > (1 - self._config.min_answered) * len(values):
            wanted = (
                "the log-probability of a yes or no as first token"
                if self._config.mode == "yes_probability"
                else f"a match of {self._config.pattern!r} in range"
            )
            raise RewardError(
                f"{len(bad)} of {len(values)} answers of {self._config.model} hold no number: "
                f"{shown}; expected {wanted}. Change the reward's question, pattern, mode or "
                "max_tokens, or lower min_answered to take fewer"
            )


def answer(reply: Json) -> str:
    """The text of a reply; empty where it has none."""
    content = _first(reply, "choices").get("message")
    text = content.get("content") if isinstance(content, dict) else None
    return text if isinstance(text, str) else ""


def score(text: str, pattern: re.Pattern[str]) -> float | None:
    """The number in the group of the last match; None without one, or where it is not finite."""
    matches = list(pattern.finditer(text[-_LONGEST:]))
    try:
        found = float(matches[-1].group(1))
    except (IndexError, TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def yes_probability(reply: Json) -> float | None:
    """``P(yes) / (P(yes) + P(no))`` of the first token; None where neither is a candidate."""
    mass = {"yes": 0.0, "no": 0.0}
    for token, log_prob in _candidates(reply):
        word = re.sub(r"[^a-z]", "", token.lower())
        if word in mass:
            mass[word] += math.exp(log_prob)
    total = sum(mass.values())
    return mass["yes"] / total if total > 0 else None


def data_url(image: "NDArray[Any]") -> str:
    """An image ``[H, W, 3]`` uint8 as a PNG in a URL: without loss, so that there are no traces of
    compression that a policy could learn to use.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _candidates(reply: Json) -> Iterator[tuple[str, float]]:
    log_probs = _first(reply, "choices").get("logprobs")
    first = _first(log_probs if isinstance(log_probs, dict) else {}, "content")
    rows = first.get("top_logprobs")
    for row in rows if isinstance(rows, list) else []:
        token, value = (row.get("token"), row.get("logprob")) if isinstance(row, dict) else (0, 0)
        if isinstance(token, str) and isinstance(value, float | int) and -1e9 < value < 1e-3:
            yield token, min(float(value), 0.0)  # rounding can put a sure token above 0


def _first(holder: Json, key: str) -> Json:
    rows = holder.get(key)
    row = rows[0] if isinstance(rows, list) and rows else None
    return row if isinstance(row, dict) else {}


def _images(media: Media) -> "NDArray[Any]":
    """The images ``[B, H, W, 3]`` uint8."""
    if media.kind != "image" or media.pixels is None:
        raise RewardError(f"vlm_judge judges images and found {media.kind}")
    images: NDArray[Any] = media.pixels.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    return images


def _key(variable: str | None) -> str | None:
    """The key in an environment variable.

    Raises:
        RecipeError: the variable is not set, or holds what no header can.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RecipeError(
            f"vlm_judge takes its key from the environment variable {variable}, which is not set. "
            f"Set it (export {variable}=...), or leave api_key_env out where no key is needed"
        )
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(f"the environment variable {variable} holds no key: not printable ASCII")
    return key
