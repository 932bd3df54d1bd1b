"""The pictures of a run folder: samples side by side, and the curves."""

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from genrl_core.interfaces.media import Media, Prompt
from genrl_core.run.console import short
from genrl_core.run.files import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST, LARGEST = 48, 160
"""Pixels of height to which small samples are enlarged, by whole factors, and large ones shrunk."""
FRAMES = 4
"""Frames shown of a video."""
GREY, RULE = "#6e6e73", "#d8d8dc"
MARGIN, SPACE, DPI = 24, 32, 100
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class ImageColumn:
    """One column of a grid: what one policy drew for the prompts.

    Attributes:
        title: over the column.
        media: B images or videos.
        prompts: the prompt of each; samples of one prompt stand in one row.
        metrics: written under the title.
    """

    title: str
    media: Media
    prompts: Sequence[Prompt]
    metrics: Mapping[str, float | None]


def image_grid(
    columns: Sequence[ImageColumn], title: str, rows: int = 10, samples: int = 6,
    largest: int | None = LARGEST,
) -> "Image":  # fmt: skip
    """A row per prompt, a column per policy, several samples in each cell.

    Args:
        columns: at least one; the first one's prompts give the rows.
        title: over everything.
        rows: how many prompts at the most, spread evenly over all of them.
        samples: how many samples per cell at the most.
        largest: pixels of height to which higher samples are shrunk; None for their own size.

    Raises:
        ValueError: there are no pixels to show.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL.Image import fromarray

    prompts = _spread(list({p.id: p for p in columns[0].prompts}.values()), rows)
    images = [_stacked(column, prompts, samples, largest) for column in columns]
    tall = max(image.shape[0] for image in images)
    figure = Figure(dpi=DPI)
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a box stands for what the font lacks
        widths = [_headed(*each) for each in zip(axes, columns, images, strict=True)]
        places = [1 - (row + 0.5) / len(prompts) for row in range(len(prompts))]
        labels = [_wrapped(prompt.text, 25, 2) for prompt in prompts]
        axes[0].set_yticks(places, labels, fontsize=9.4, parse_math=False)
        # The axes get as many pixels as the images, then margins for what stands around them.
        wide = sum(widths) + SPACE * (len(columns) - 1)
        axes[0].get_gridspec().set_width_ratios(widths)
        figure.set_size_inches(wide / DPI, tall / DPI)
        figure.subplots_adjust(0, 0, 1, 1, wspace=SPACE * len(columns) / sum(widths))
        box = figure.get_tightbbox().extents * DPI
        place, title = (box[0], box[3] - tall + 12), _wrapped(title, 60, 2)
        _write(axes[0], title, place, fontsize=12.3, weight="bold")
        box = figure.get_tightbbox().extents * DPI
        left, bottom, right, top = (
            np.ceil([-box[0], -box[1], box[2] - wide, box[3] - tall]) + MARGIN
        )
        wide, tall = wide + left + right, tall + bottom + top
        figure.set_size_inches(wide / DPI, tall / DPI)
        figure.subplots_adjust(left / wide, bottom / tall, 1 - right / wide, 1 - top / tall)
        canvas.draw()
    page = np.array(canvas.buffer_rgba())[..., :3]
    for axis, image in zip(axes, images, strict=True):
        # Not by axis.imshow, which resamples where an edge lies 1e-13 beside a pixel's, and takes
        # gigabytes for large samples at their own size.
        x, _, _, y = axis.get_window_extent().extents.round().astype(int)
        page[len(page) - y :, x:][: image.shape[0], : image.shape[1]] = image
    return fromarray(page)


def plots(records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw every curve of ``metrics.jsonl`` that there are numbers for into ``folder``.

    Raises:
        OSError: a picture could not be written.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for record in records for name in record))
    measures: list[Panel] = [((name,), "linear") for name in names if name.startswith("evaluate/")]
    for stem, panels in {**_PANELS, "evaluation": measures}.items():
        found = [(scale, _curves(records, names, wanted)) for wanted, scale in panels]
        found = [(scale, curves) for scale, curves in found if curves]
        if not found:
            continue
        figure = Figure(figsize=(8, 0.6 + 2.4 * len(found)), dpi=DPI, layout="constrained")
        axes = figure.subplots(len(found), squeeze=False)[:, 0]
        for axis, (scale, curves) in zip(axes, found, strict=True):
            _draw(axis, scale, curves, _points(records, "reward_std"))
        axes[-1].set_xlabel("iteration")
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{stem}.png")


Panel = tuple[tuple[str, ...], str]
_PANELS: dict[str, list[Panel]] = {
    "reward": [(("reward", "reward/"), "linear"), (("spread", "zero_spread"), "linear")],
    "drift": [(("drift",), "log")],
    "ratio": [(("ratio_mean", "ratio_max"), "linear"), (("clip_fraction",), "linear")],
    "kl": [(("kl",), "linear"), (("entropy",), "linear")],
    "grad_norm": [(("grad_norm",), "log"), (("loss",), "linear")],
    "seconds": [(("seconds", "seconds_rollout", "seconds_reward", "seconds_update"), "linear")],
}
"""Picture -> panels -> the metrics in it (``x/`` for all that begin so) and the scale."""

Points = tuple[list[int], list[float]]


def _points(records: Sequence[Mapping[str, Any]], name: str) -> Points:
    found = [(r["iteration"], r[name]) for r in records if r.get(name) is not None]
    return [x for x, _ in found], [y for _, y in found]


def _curves(
    records: Sequence[Mapping[str, Any]], names: Sequence[str], wanted: Sequence[str]
) -> dict[str, Points]:
    """Name -> iterations and values, of those among ``wanted`` that have any."""
    groups = tuple(name for name in wanted if name.endswith("/"))
    chosen = [name for name in names if name in wanted or name.startswith(groups)]
    curves = {name: _points(records, name) for name in chosen}
    return {name: points for name, points in curves.items() if points[0]}


def _draw(axis: Any, scale: str, curves: Mapping[str, Points], deviation: Points) -> None:
    for name, (x, y) in curves.items():
        # Few points (evaluations) are shown as points, so that nobody reads the line between them.
        axis.plot(x, y, label=name, linewidth=1.5, marker="o" if len(x) <= 20 else None, ms=3.5)
        if name == "reward" and deviation[0] == x:
            around = np.array(deviation[1])
            axis.fill_between(x, y - around, y + around, alpha=0.15, linewidth=0)
    if scale == "log" and any(value > 0 for _, y in curves.values() for value in y):
        axis.set_yscale("log", nonpositive="mask")
    axis.grid(color=RULE, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if len(curves) == 1:
        axis.set_ylabel(next(iter(curves)))
    else:
        axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _spread(items: list[Prompt], count: int) -> list[Prompt]:
    """One of each of ``count`` equal parts, at places that the golden ratio spreads.

    The same place in all of them would show one category alone where categories take turns, as in
    GenEval's prompts.
    """
    if len(items) <= count:
        return items
    part = len(items) // count
    places = (int(i * _GOLDEN % 1 * part) for i in range(count))
    return [items[i * len(items) // count + place] for i, place in enumerate(places)]


def _stacked(
    column: ImageColumn, prompts: Sequence[Prompt], samples: int, largest: int | None
) -> Any:
    """A column as one image ``[H, W, 3]``: a row per prompt, its samples side by side."""
    if column.media.pixels is None:
        raise ValueError(f"{column.title}: {column.media.kind} has no pixels")
    rows: dict[str, list[Tensor]] = {prompt.id: [] for prompt in prompts}
    for prompt, pixels in zip(column.prompts, column.media.pixels, strict=True):
        if prompt.id in rows and len(rows[prompt.id]) < samples:
            rows[prompt.id].append(_tile(pixels, largest))
    sizes = [tile.shape[1:] for tiles in rows.values() for tile in tiles]
    if not sizes:
        raise ValueError("there are no samples to show")
    step, wide = max(high for high, _ in sizes) + 8, max(wide for _, wide in sizes) + 1
    most = max(map(len, rows.values()))
    page = torch.full((3, step * len(rows), wide * most), 255, dtype=torch.uint8)
    for row, tiles in enumerate(rows.values()):
        for place, tile in enumerate(tiles):
            _, h, w = tile.shape
            page[:, step * row + 4 : step * row + 4 + h, wide * place : wide * place + w] = tile
    return page.permute(1, 2, 0).numpy()


def _tile(pixels: Tensor, largest: int | None) -> Tensor:
    """One sample ``[3, H, W]``, or frames of ``[F, 3, H, W]`` in a row, at a readable size."""
    if pixels.dim() == 4:
        places = torch.linspace(0, len(pixels) - 1, min(FRAMES, len(pixels))).round().long()
        pixels = torch.cat(list(pixels[places.to(pixels.device)]), dim=2)
    tile = pixels.cpu()
    _, high, wide = tile.shape
    if largest is not None and high > largest:
        size = (largest, round(wide * largest / high))
        tile = interpolate(tile[None], size, mode="bicubic", antialias=True)[0]
    elif high < SMALLEST:
        scale = math.ceil(SMALLEST / high)
        tile = tile.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return pad(tile, (1, 1, 1, 1), value=216)  # a frame: samples may be as white as the page


def _headed(axis: Any, column: ImageColumn, image: Any) -> int:
    """Empty the axis and write title and metrics above it; the pixels that the column needs."""
    axis.set(xticks=[], yticks=[], facecolor="none")
    axis.tick_params(left=False, pad=10)
    axis.spines[:].set_visible(False)
    names = _write(axis, "\n".join(map(one_line, column.metrics)), (0, 4), color=GREY)
    box = names.get_window_extent()
    values = "\n".join(map(short, column.metrics.values()))
    numbers = _write(axis, values, (box.width + 14, 4))
    wide = max(image.shape[1], box.width + 14 + numbers.get_window_extent().width)
    title = _wrapped(column.title, max(22, int(wide) // 9), 3)
    head = _write(axis, title, (0, box.height + 10), fontsize=10, weight="bold")
    return math.ceil(float(max(wide, head.get_window_extent().width)))


def _write(axis: Any, text: str, offset: tuple[float, float], **style: Any) -> Any:
    """Text that ends so many pixels above the axis, from so many beside its left edge."""
    style = {"fontsize": 9.4, "linespacing": 1.4, "va": "bottom", "parse_math": False} | style
    return axis.annotate(text, (0, 1), offset, "axes fraction", "offset pixels", **style)


def _wrapped(text: str, width: int, most: int) -> str:
    """The text in lines of so many characters, cut after ``most`` lines."""
    lines = textwrap.wrap(one_line(text), width)
    if len(lines) > most:
        lines[most - 1 :] = [lines[most - 1][: width - 1] + "…"]
    return "\n".join(lines)
