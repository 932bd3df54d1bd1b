"""``genrl sample``: samples of a run or of a recipe, into a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genrl_core.errors import RecipeError
from genrl_core.interfaces.media import Prompt
from genrl_core.recipe.recipe import RESOLVED_FILE, load_recipe
from genrl_core.run.api import Run, generate, load_policy
from genrl_core.run.pictures import ImageColumn, image_grid


def sample(
    source: str | Path, prompts: Sequence[str], num: int, out: Path, *, seed: int | None = None,
    overrides: Sequence[str] = (), registry: Any = None, columns: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Draw from the policy of a run folder (its newest checkpoint) or of a recipe.

    Images become one PNG with a row per prompt, each at its own size unless that is tiny; texts
    one text file. Neither rewards nor metrics are built.

    Raises:
        GenRLError: there is nothing to draw from.
        RecipeError: ``out`` exists, or it cannot be written.
    """
    if out.exists():
        raise RecipeError(f"{out} exists: choose another --out")
    if not out.parent.is_dir():
        raise RecipeError(f"there is no folder {out.parent}: make it, or choose another --out")
    folder = Path(source)
    is_run = (folder / RESOLVED_FILE).is_file()
    recipe = load_recipe(folder / RESOLVED_FILE if is_run else source, overrides, registry)
    policy = Run(folder, recipe).policy() if is_run else load_policy(recipe)
    asked = [Prompt(f"{i}", text, columns=columns or {}) for i, text in enumerate(prompts)]
    drawn = [prompt for prompt in asked for _ in range(num)]
    media = generate(
        policy, recipe.sampler_for().build(), asked, num,
        recipe.run.seed if seed is None else seed,
        rollout_batch_size=recipe.train.rollout_batch_size,
    )  # fmt: skip
    if media.pixels is None:
        pairs = zip(drawn, media.texts, strict=True)
        out.write_text("".join(f"{p.text}\t{t}\n" for p, t in pairs), encoding="utf-8")
        return out
    try:
        column = ImageColumn(recipe.name, media, drawn, {})
        image_grid([column], recipe.name, len(asked), num, largest=None).save(out)
    except (OSError, ValueError) as error:
        message = f"{out} cannot be written: {error}; choose an --out that ends in .png"
        raise RecipeError(message) from error
    return out
