"""The pictures of a run folder: sheets of samples side by side, and the curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genrl_core.interfaces.media import Media, Prompt
from genrl_core.run.console import short
from genrl_core.run.files import one_line

TILE = 48
"""Small samples are enlarged to about this many pixels, by whole factors."""
LARGEST = 160
"""Large samples are shrunk to this many."""
FRAMES = 4
"""Frames shown of a video."""
INK, GREY, RULE, PAPER = "#1c1c1e", "#6e6e73", "#d8d8dc", "#ffffff"
MARGIN, GAP, SPACE, LABEL, LINE = 24, 3, 32, 190, 19
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Column:
    """One column of a sheet: what one policy drew for the prompts.

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


def sheet(
    columns: Sequence[Column], title: str, rows: int = 10, samples: int = 6,
    largest: int | None = LARGEST,
) -> Image.Image:  # fmt: skip
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
    prompts = _spread(list({p.id: p for p in columns[0].prompts}.values()), rows)
    cells = [_cells(column, prompts, samples, largest) for column in columns]
    tiles = [tile for column in cells for cell in column for tile in cell]
    if not tiles:
        raise ValueError("there are no samples to show")
    wide, high = (max(size) for size in zip(*(tile.size for tile in tiles), strict=True))
    widths = [max(len(c) for c in column) * (wide + GAP) - GAP for column in cells]
    widths = [
        max(width, 150, _indent(column.metrics) + 50)
        for column, width in zip(columns, widths, strict=True)
    ]
    titles = [
        _wrapped(one_line(column.title), _font(14, bold=True), width, 3)
        for column, width in zip(columns, widths, strict=True)
    ]
    # Titles end on one line and numbers begin on one line in every column.
    under = MARGIN + 30 + max(len(lines) for lines in titles) * LINE
    top = under + max(len(column.metrics) for column in columns) * LINE + 16
    step = max(high, 34) + 10
    left = MARGIN + LABEL
    size = (
        left + sum(widths) + SPACE * (len(columns) - 1) + MARGIN,
        top + step * len(prompts) + 14,
    )
    page = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN - 6), one_line(title), INK, _font(17, bold=True))
    for row, prompt in enumerate(prompts):
        label = _wrapped(one_line(prompt.text), _font(13), LABEL - 18, 2)
        y = top + row * step + (high - 17 * len(label)) // 2
        for line in label:
            pen.text((MARGIN, y), line, INK, _font(13))
            y += 17
    x = left
    for column, lines, cell_rows, width in zip(columns, titles, cells, widths, strict=True):
        for place, line in enumerate(lines):
            y = under - (len(lines) - place) * LINE
            pen.text((x, y), line, INK, _font(14, bold=True))
        _numbers(pen, column.metrics, x, under)
        pen.line((x, top - 8, x + width - 1, top - 8), RULE)
        for row, cell in enumerate(cell_rows):
            for place, tile in enumerate(cell):
                at = (x + place * (wide + GAP), top + row * step)
                page.paste(tile, at)
                # A frame, since samples may be as white as the page.
                pen.rectangle(
                    (at[0] - 1, at[1] - 1, at[0] + tile.width, at[1] + tile.height), outline=RULE
                )
        x += width + SPACE
    return page


def plots(records: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw every curve of ``metrics.jsonl`` that there are numbers for into ``folder``.

    Raises:
        OSError: a picture could not be written.
    """
    from matplotlib.figure import Figure

    written = []
    names = list(dict.fromkeys(name for record in records for name in record))
    measures: list[Panel] = [((name,), "linear") for name in names if name.startswith("evaluate/")]
    for stem, panels in {**_PANELS, "evaluation": measures}.items():
        drawn = [(panel, _matching(names, panel[0], records)) for panel in panels]
        drawn = [(panel, curves) for panel, curves in drawn if curves]
        if not drawn:
            continue
        high = 0.6 + 2.4 * len(drawn)
        figure = Figure(figsize=(8, high), dpi=100)
        figure.subplots_adjust(0.11, 0.5 / high, 0.78, 1 - 0.15 / high, hspace=0.25)
        axes = figure.subplots(len(drawn), squeeze=False)[:, 0]
        for axis, ((_, scale), curves) in zip(axes, drawn, strict=True):
            _curves(axis, curves, records, scale)
        axes[-1].set_xlabel("iteration")
        folder.mkdir(parents=True, exist_ok=True)
        written.append(folder / f"{stem}.png")
        figure.savefig(written[-1])
    return written


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

Curve = tuple[list[int], list[float]]


def _matching(
    names: Sequence[str], wanted: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> dict[str, Curve]:
    prefixes = tuple(name for name in wanted if name.endswith("/"))
    chosen = [n for n in names if n in wanted or (prefixes and n.startswith(prefixes))]
    curves = {name: _curve(name, records) for name in chosen}
    return {name: curve for name, curve in curves.items() if curve[0]}


def _curve(name: str, records: Sequence[Mapping[str, Any]]) -> Curve:
    points = [(r["iteration"], r[name]) for r in records if r.get(name) is not None]
    return [x for x, _ in points], [y for _, y in points]


def _curves(
    axis: Any, curves: Mapping[str, Curve], records: Sequence[Mapping[str, Any]], scale: str
) -> None:
    for name, (x, y) in curves.items():
        # Few points (evaluations) are shown as points, so that nobody reads the line between them.
        axis.plot(x, y, label=name, linewidth=1.5, marker="o" if len(x) <= 20 else None, ms=3.5)
        if name == "reward" and (around := _curve("reward_std", records))[0] == x:
            band = [(m - s, m + s) for m, s in zip(y, around[1], strict=True)]
            axis.fill_between(x, *zip(*band, strict=True), alpha=0.15, linewidth=0)
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


def _cells(
    column: Column, prompts: Sequence[Prompt], samples: int, largest: int | None
) -> list[list[Image.Image]]:
    if column.media.pixels is None:
        raise ValueError(f"{column.title}: {column.media.kind} has no pixels")
    rows: dict[str, list[Image.Image]] = {prompt.id: [] for prompt in prompts}
    for prompt, pixels in zip(column.prompts, column.media.pixels, strict=True):
        cell = rows.get(prompt.id, [])
        if prompt.id in rows and len(cell) < samples:
            cell.append(_tile(pixels, largest))
    return list(rows.values())


def _tile(pixels: Tensor, largest: int | None) -> Image.Image:
    """One sample ``[3, H, W]``, or frames of ``[F, 3, H, W]`` in a row, at a readable size."""
    if pixels.dim() == 4:
        places = torch.linspace(0, len(pixels) - 1, min(FRAMES, len(pixels))).round().long()
        pixels = torch.cat(list(pixels[places.to(pixels.device)]), dim=2)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    high = image.height
    if largest is not None and high > largest:
        factor = largest / high
        return image.resize((round(image.width * factor), largest), Image.Resampling.LANCZOS)
    scale = math.ceil(TILE / high)
    return image.resize((image.width * scale, high * scale), Image.Resampling.NEAREST)


def _numbers(pen: ImageDraw.ImageDraw, metrics: Mapping[str, float | None], x: int, y: int) -> None:
    """The metrics of a column, one below the other, values aligned."""
    indent = _indent(metrics)
    for place, (name, value) in enumerate(metrics.items()):
        pen.text((x, y + place * LINE), one_line(name), GREY, _font(13))
        pen.text((x + indent, y + place * LINE), short(value), INK, _font(13, bold=True))


def _indent(metrics: Mapping[str, float | None]) -> int:
    lengths = [_font(13).getlength(one_line(name)) for name in metrics]
    return math.ceil(max(lengths, default=0)) + 14


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float, most: int) -> list[str]:
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    cut = len(lines) > most
    lines = lines[:most]
    while font.getlength(lines[-1] + "…" * cut) > width and lines[-1]:
        lines[-1], cut = lines[-1][:-1].rstrip(), True
    lines[-1] += "…" * cut
    return lines


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font of matplotlib, which covers more scripts than Pillow's."""
    import matplotlib as mpl

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{mpl.get_data_path()}/fonts/ttf/{name}", size)
