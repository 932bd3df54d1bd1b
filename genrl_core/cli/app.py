"""The verbs of the command ``genrl``.

Each imports what it needs itself: nothing here loads torch before a run begins, and ``--help``
reads no recipe.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from genrl_core import __version__
from genrl_core.cli.display import print_json, print_text
from genrl_core.errors import GenRLError, PluginError, RecipeError
from genrl_core.registration import KINDS, PLURALS, Kind
from genrl_core.registry import Registry
from genrl_core.run.launch import launch, launched, worker_code
from genrl_core.text import did_you_mean

if TYPE_CHECKING:
    from genrl_core.recipe.recipe import Recipe

DONE, FAILED, WRONG = 0, 1, 2
"""Exit codes: done; the run failed; the recipe or arguments are wrong. A run may return 75 too."""

_Listed = Literal["policies", "samplers", "rewards", "objectives", "recipes", "all"]
_KIND_OF: dict[str, Kind] = {plural: kind for kind, plural in PLURALS.items()}

_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_Source = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, file or run.")]
_Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.iterations=10."),
]


def ls(
    context: typer.Context,
    what: Annotated[_Listed, typer.Argument(help="What to list.")] = "all",
    json: _Json = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Objectives by policy, sampler and view: what trains.")
    ] = False,
) -> None:
    """List what is installed: policies, samplers, rewards, objectives, recipes."""
    from genrl_core.cli import listing

    registry: Registry = context.obj
    if matrix:
        if what != "objectives":
            raise RecipeError("--matrix is a table of objectives: genrl ls objectives --matrix")
        from genrl_core.cli.matrix import cells, print_matrix

        print_matrix(cells(registry), as_json=json)
        return
    rows = {
        name: [listing.component_row(registry, kind, each) for each in registry.names(kind)]
        for name, kind in _KIND_OF.items()
        if what in (name, "all")
    }
    if what in ("recipes", "all"):
        rows["recipes"] = listing.recipe_rows(registry)
    if json:
        print_json(rows if what == "all" else rows[what])
        return
    for name, found in rows.items():
        if name == "recipes":
            listing.recipe_table(found)
        else:
            listing.component_table(name, found)
    for trouble in (*registry.clashes, *(f"{p} is broken: {p.reason}" for p in registry.broken)):
        print_text(trouble, error=True)


def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A recipe, or a component by its name.")],
    overrides: _Overrides = None,
    json: _Json = False,
) -> None:
    """Show a recipe with where each value comes from, or a component with its fields."""
    from genrl_core.cli.show import show_components, show_recipe

    registry: Registry = context.obj
    kinds = [kind for kind in KINDS if name in registry.names(kind)]
    if name in registry.recipes() or Path(name).exists() or name.endswith((".yaml", ".yml")):
        show_recipe(_load(name, overrides, registry), as_json=json)
    elif not kinds:
        known = [*registry.recipes(), *(each for kind in KINDS for each in registry.names(kind))]
        hint = did_you_mean(name, known) or "."
        rest = f" `genrl ls` lists all of them{registry.broken_plugins_note()}"
        raise RecipeError(f"there is no recipe and no component `{name}`{hint}{rest}")
    elif overrides:
        raise RecipeError(f"`{name}` is a component ({kinds[0]}): overrides go with recipes")
    else:
        show_components(registry, kinds, name, as_json=json)


def cp(
    context: typer.Context,
    recipe: _Source,
    file: Annotated[Path, typer.Argument(help="The new file.")],
) -> None:
    """Copy a recipe to a new file, to edit it. Paths in it still lead to the same files."""
    from genrl_core.recipe.recipe import locate
    from genrl_core.recipe.sources import portable_text

    _, path = locate(recipe, context.obj)
    text = portable_text(path)
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise RecipeError(f"{file} exists already; choose another name") from None
    except OSError as error:
        raise RecipeError(f"{file} cannot be written: {error.strerror}") from None
    print_text(f"{path} copied to {file}")


def check(
    context: typer.Context,
    items: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="Recipes, overrides.")
    ],
    json: _Json = False,
) -> None:
    """Check recipes without running them: their schema, whether their parts fit, prompt files."""
    from genrl_core.cli.show import one_line
    from genrl_core.recipe.check import check_recipe
    from genrl_core.recipe.problems import Problem, problems_of
    from genrl_core.run.trackers import missing

    overrides = [item for item in items if "=" in item and not Path(item).exists()]
    sources = [item for item in items if item not in overrides]
    if not sources:
        raise RecipeError("which recipe? Every argument looks like an override (KEY=VALUE)")
    results: list[dict[str, Any]] = []
    for source in sources:
        problems: list[Problem] = []
        try:
            checked = check_recipe(_load(source, overrides, context.obj))
            trackers = missing(checked.recipe.run.trackers)
            problems = [checked.recipe.problem(each, "run", "trackers") for each in trackers]
        except GenRLError as error:
            problems = problems_of(error)
        listing = [asdict(problem) for problem in problems]
        results.append({"recipe": source, "ok": not problems, "problems": listing})
        if not json and problems:
            print_text("\n".join(map(str, problems)), error=True)
        elif not json:
            print_text(f"ok  {checked.recipe.name}: {one_line(checked)}")
    if json:
        print_json(results)
    if not all(result["ok"] for result in results):
        raise typer.Exit(WRONG)


def _load(source: str, overrides: Sequence[str] | None, registry: Registry) -> "Recipe":
    """A recipe; what overrides took away is said, but not by every process of a launcher."""
    from genrl_core.recipe.recipe import load_recipe

    recipe = load_recipe(source, overrides or (), registry)
    for line in () if launched() else recipe.removed:
        print_text(line, error=True)
    return recipe


def run(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE")] = None,
    overrides: _Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run folder.")] = None,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="Save and end after this many iterations.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, estimate memory, do one rollout.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    runs: Annotated[Path, typer.Option(help="Where run folders are made.")] = Path("runs"),
    json: _Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a recipe, or go on with a run.

    With --resume DIR the recipe of that run is taken; overrides may change what cannot change the
    mathematics (chunk sizes, threads, device, evaluation, saving, tolerance), and train.iterations
    where the learning rate is constant. A mapping given for reward, objective or evaluate.metrics
    replaces its labels; others merge.
    """
    registry: Registry = context.obj
    given: list[str] = list(overrides or ())
    if resume is not None and not resume.is_dir():
        raise RecipeError(f"--resume {resume}: there is no such run folder")
    if recipe is not None and "=" in recipe and not Path(recipe).exists():
        given, recipe = [recipe, *given], None
    if recipe is None:
        if resume is None:
            raise RecipeError("which recipe? `genrl ls recipes` lists them")
        recipe = str(resume)
    from genrl_core.recipe.check import check_recipe

    checked = check_recipe(_load(recipe, given, registry))
    if processes > 1:
        arguments = ["run", recipe, *given, "--runs", str(runs)]
        arguments += ["--resume", str(resume)] if resume else []
        arguments += ["--stop-after", str(stop_after)] if stop_after else []
        arguments += ["--dry-run"] * dry_run + ["--json"] * json + ["--quiet"] * quiet
        arguments += [word for file in registry.files for word in ("--plugin", str(file))]
        raise typer.Exit(launch(arguments, processes))
    from genrl_core.run import runner

    code = runner.run(
        checked, runs, resume=resume, stop_after=stop_after, dry_run=dry_run, json=json, quiet=quiet
    )
    raise typer.Exit(code)


def sample(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="RUN_OR_RECIPE")],
    prompt: Annotated[list[str], typer.Option(help="What to draw; may stand more than once.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    overrides: _Overrides = None,
    num: Annotated[int, typer.Option(min=1, help="Samples per prompt.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Silent: the recipe's seed.")] = None,
) -> None:
    """Draw samples from a trained run, or from the policy of a recipe."""
    from genrl_core.recipe.check import check_recipe

    check_recipe(_load(source, overrides, context.obj))
    from genrl_core.run import sampling

    written = sampling.sample(
        source, prompt, num, out, seed=seed, overrides=overrides or (), registry=context.obj
    )
    print_text(f"{written}")


def plugins(context: typer.Context, json: _Json = False) -> None:
    """List the plugins: version, path, what each registers, or why it is broken."""
    from genrl_core.cli.listing import plugin_table

    registry: Registry = context.obj
    if json:
        print_json({"plugins": [*map(asdict, registry.plugins)], "clashes": registry.clashes})
        return
    plugin_table(registry.plugins)
    for clash in registry.clashes:
        print_text(clash, error=True)


def _version(asked: bool) -> None:
    if asked:
        print_text(f"genrl {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="A plugin: a file or package folder; repeatable."),
    ] = None,
) -> None:
    """Reinforcement learning for generative models: any paradigm, any objective."""


def build_app(registry: Registry) -> typer.Typer:
    """The application: GenRL's verbs and those of the plugins."""
    app = typer.Typer(
        name="genrl", no_args_is_help=True, add_completion=False,
        pretty_exceptions_enable=False, rich_markup_mode=None,
    )  # fmt: skip
    app.callback()(_root)
    for verb in (ls, show, cp, check, run, sample, plugins):
        app.command()(verb)
    for name, command in registry.commands.items():
        if clash := registry.clash_of_command(name):
            app.command(name, help="registered more than once")(_refusing(clash))
        elif isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _refusing(clash: str) -> Callable[[], None]:
    def refuse() -> None:
        raise PluginError(clash)

    return refuse


def _plugin_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The path of every ``--plugin PATH``, and the other arguments."""
    files, rest, words = list[str](), list[str](), iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if word == "--":
            rest += [word, *words]
        elif name != "--plugin":
            rest.append(word)
        elif file := value if equals else next(words, ""):
            files.append(file)
        else:
            raise RecipeError("--plugin needs a file or a package folder")
    return files, rest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake never shows a traceback."""
    try:
        files, rest = _plugin_files(sys.argv[1:] if arguments is None else arguments)
        registry = Registry.discover(files)
        build_app(registry)(rest, prog_name="genrl", obj=registry)
    except SystemExit as ending:
        return worker_code(ending.code if isinstance(ending.code, int) else FAILED)
    except GenRLError as error:
        if os.environ.get("GENRL_STRICT") == "1" and isinstance(error, PluginError):
            raise
        print_text(str(error), error=True)
        return worker_code(WRONG if isinstance(error, RecipeError | PluginError) else FAILED)
    return DONE
