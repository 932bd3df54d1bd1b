"""The verbs of the command ``genrl``. Nothing here imports torch before a run begins."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from genrl_core import __version__
from genrl_core.cli import display
from genrl_core.cli.matrix import cells
from genrl_core.errors import GenRLError, PluginError, RecipeError
from genrl_core.recipe.check import find_problems, resolve_views
from genrl_core.recipe.problems import Problem, ProblemsError
from genrl_core.recipe.prompts import read_prompts
from genrl_core.recipe.reader import to_yaml
from genrl_core.recipe.recipe import Recipe, load_recipe, locate, read_document
from genrl_core.recipe.resolve import anchored, path_in
from genrl_core.registry import Command, Kind, Registry
from genrl_core.run.launch import launch, launched, worker_code
from genrl_core.run.trackers import missing
from genrl_core.text import did_you_mean, join_names

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 75
"""Exit codes: done; the run failed; the recipe or arguments are wrong; stopped and resumable."""

Shelf = Literal["policies", "samplers", "rewards", "objectives", "recipes", "all"]

_SHELVES: dict[str, Kind] = {
    "policies": "policy",
    "samplers": "sampler",
    "rewards": "reward",
    "objectives": "objective",
}

_PATHS = (("extends",), ("prompts", "file"), ("prompts", "evaluate"), ("policy", "weights"))
"""Where a recipe may hold a path relative to itself."""

_Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
_Source = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, file or run.")]
_Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.iterations=10."),
]


def ls(
    context: typer.Context,
    what: Annotated[Shelf, typer.Argument(help="Which shelf to list.")] = "all",
    json: _Json = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Objectives by policy, sampler and view: what trains.")
    ] = False,
) -> None:
    """List what is installed: policies, samplers, rewards, objectives, recipes."""
    registry: Registry = context.obj
    if matrix:
        if what != "objectives":
            raise RecipeError("--matrix is a table of objectives: genrl ls objectives --matrix")
        display.matrix(cells(registry), as_json=json)
        return
    shelves = [*_SHELVES, "recipes"] if what == "all" else [what]
    rows = {shelf: _rows(registry, shelf) for shelf in shelves}
    if json:
        display.say_json(rows if what == "all" else rows[what])
        return
    for shelf, found in rows.items():
        if shelf == "recipes":
            display.recipe_table(found)
        else:
            display.component_table(shelf, found)
    for trouble in (*registry.clashes, *(f"{p} is broken: {p.reason}" for p in registry.broken)):
        display.say(trouble, error=True)


def _rows(registry: Registry, shelf: str) -> list[dict[str, Any]]:
    if shelf == "recipes":
        return display.recipe_rows(registry)
    kind = _SHELVES[shelf]
    return [display.component_row(registry, kind, name) for name in registry.names(kind)]


def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A recipe, or a component by its name.")],
    overrides: _Overrides = None,
    json: _Json = False,
) -> None:
    """Show a recipe with where each value comes from, or a component with its fields."""
    registry: Registry = context.obj
    kinds = display.kinds_named(registry, name)
    is_recipe = name in registry.recipes() or Path(name).exists()
    if not kinds or is_recipe:
        if not is_recipe and not name.endswith((".yaml", ".yml")):
            known = [
                *registry.recipes(),
                *(n for k in _SHELVES.values() for n in registry.names(k)),
            ]
            hint = did_you_mean(name, known) or "."
            rest = f" `genrl ls` lists all of them{registry.broken_plugins_note()}"
            raise RecipeError(f"there is no recipe and no component `{name}`{hint}{rest}")
        recipe = load_recipe(name, overrides or (), registry)
        _say_removed(recipe)
        if json:
            display.say_json({"name": recipe.name, "resolved": recipe.resolved})
        else:
            display.say(display.annotated(recipe))
        return
    if overrides:
        raise RecipeError(f"`{name}` is a component ({kinds[0]}): overrides go with recipes")
    if json:
        rows = [display.component_row(registry, kind, name) for kind in kinds]
        fields = [display.fields_of(registry.get(kind, name)) for kind in kinds]
        display.say_json([r | {"fields": f} for r, f in zip(rows, fields, strict=True)])
        return
    for kind in kinds:
        display.show_component(registry, kind, name)


def cp(
    context: typer.Context,
    recipe: _Source,
    file: Annotated[Path, typer.Argument(help="The new file.")],
) -> None:
    """Copy a recipe to a new file, to edit it. Paths in it still lead to the same files."""
    _, path = locate(recipe, context.obj)
    problems: list[Problem] = []
    text, document = read_document(path, problems)
    edits: list[tuple[tuple[int, int], str]] = []
    for route in _PATHS:
        value: Any = document.tree
        for key in route:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, str) or (route == ("extends",) and not value.endswith("ml")):
            continue
        inner = path_in(route[0], value)
        if inner is not None:
            place = document.place(*route)
            full = value[: len(value) - len(inner)] + anchored(inner, place.folder)
            edits.append((place.span, to_yaml({"x": full}).strip().removeprefix("x: ")))
    for (start, end), new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise RecipeError(f"{file} exists already; choose another name") from None
    except OSError as error:
        raise RecipeError(f"{file} cannot be written: {error.strerror}") from None
    display.say(f"{path} copied to {file}")


def check(
    context: typer.Context,
    items: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help="Recipes, overrides.")
    ],
    json: _Json = False,
) -> None:
    """Check recipes without running them: their schema, whether their parts fit, prompt files."""
    overrides = [item for item in items if "=" in item and not Path(item).exists()]
    sources = [item for item in items if item not in overrides]
    if not sources:
        raise RecipeError("which recipe? Every argument looks like an override (KEY=VALUE)")
    results: list[dict[str, Any]] = []
    for source in sources:
        recipe, problems = _examine(source, overrides, context.obj)
        if recipe is not None:
            place = recipe.place("run", "trackers")
            problems += [Problem(place, "", what) for what in missing(recipe.run.trackers)]
        listing = [{"place": p.place, "path": p.path, "message": p.message} for p in problems]
        results.append({"recipe": source, "ok": not problems, "problems": listing})
        if not json and recipe is not None and not problems:
            display.say(f"ok  {recipe.name}: {_combination(recipe)}")
        elif not json:
            display.say("\n".join(map(str, problems)), error=True)
    if json:
        display.say_json(results)
    if not all(result["ok"] for result in results):
        raise typer.Exit(WRONG)


def _examine(
    source: str, overrides: Sequence[str], registry: Registry
) -> tuple[Recipe | None, list[Problem]]:
    """Everything that can be said about a recipe without building anything."""
    try:
        recipe = load_recipe(source, overrides, registry)
    except GenRLError as error:
        return None, _problems(error)
    _say_removed(recipe)
    problems = find_problems(recipe)
    for key in ("file", "evaluate"):
        path = getattr(recipe.prompts, key)
        if path is not None and Path(path).is_file():
            try:
                read_prompts(path)
            except RecipeError as error:
                problems += _problems(error)
    return recipe, problems


def _say_removed(recipe: Recipe) -> None:
    """What overrides took away, on stderr; the processes of a launcher leave it to that."""
    for line in () if launched() else recipe.removed:
        display.say(line, error=True)


def _checked(source: str, overrides: Sequence[str], registry: Registry) -> Recipe:
    """A recipe in which nothing is wrong, or an error that lists everything."""
    recipe, problems = _examine(source, overrides, registry)
    if recipe is None or problems:
        raise ProblemsError(problems)
    return recipe


def _problems(error: GenRLError) -> list[Problem]:
    if isinstance(error, ProblemsError):
        return list(error.problems)
    return [Problem("", "", str(error))]


def _combination(recipe: Recipe) -> str:
    name_of = recipe.registry.name_of
    views = resolve_views(recipe)
    objectives = " + ".join(
        f"{name_of(config)} [{views[label]}]" for label, config in recipe.objective.items()
    )
    parts = [name_of(part) for part in (recipe.policy, recipe.sampler) if part is not None]
    rewards = " + ".join(recipe.reward) or "no reward"
    return f"{', '.join(parts)}, {rewards}, {objectives}"


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
    loaded = _checked(recipe, given, registry)
    if processes > 1:
        arguments = ["run", recipe, *given, "--runs", str(runs)]
        arguments += ["--resume", str(resume)] if resume else []
        arguments += ["--stop-after", str(stop_after)] if stop_after else []
        arguments += ["--dry-run"] * dry_run + ["--json"] * json
        arguments += ["--quiet"] * quiet
        arguments += [word for file in registry.files for word in ("--plugin", str(file))]
        raise typer.Exit(launch(arguments, processes))
    from genrl_core.run import runner

    code = runner.run(
        loaded, runs, resume=resume, stop_after=stop_after, dry_run=dry_run, json=json, quiet=quiet
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
    _checked(source, overrides or (), context.obj)
    from genrl_core.run import sampling

    written = sampling.sample(
        source, prompt, num, out, seed=seed, overrides=overrides or (), registry=context.obj
    )
    display.say(f"{written}")


def plugins(context: typer.Context, json: _Json = False) -> None:
    """List the plugins: version, path, what each registers, or why it is broken."""
    registry: Registry = context.obj
    keys = ("name", "distribution", "version", "path", "registered", "reason")
    rows = [{key: getattr(plugin, key) for key in keys} for plugin in registry.plugins]
    if json:
        display.say_json({"plugins": rows, "clashes": registry.clashes})
        return
    columns = ("name", "version", "registers", "path")
    table = [
        [
            plugin.name,
            f"{plugin.distribution} {plugin.version}".strip(),
            f"BROKEN: {plugin.reason}" if plugin.reason else join_names(plugin.registered),
            plugin.path,
        ]
        for plugin in registry.plugins
    ]
    display.table("plugins", columns, table)
    for clash in registry.clashes:
        display.say(clash, error=True)


def _version(asked: bool) -> None:
    if asked:
        display.say(f"genrl {__version__}")
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
    claims: dict[str, list[Command]] = {}
    for command in registry.commands:
        claims.setdefault(command.name, []).append(command)
    for name, commands in claims.items():
        if len(commands) > 1:
            app.command(name, help="registered more than once")(_clashing(name, registry))
        elif isinstance(commands[0].command, typer.Typer):
            app.add_typer(commands[0].command, name=name)
        else:
            app.command(name)(commands[0].command)
    return app


def _clashing(name: str, registry: Registry) -> Any:
    def refuse() -> None:
        raise PluginError(next(c for c in registry.clashes if c.startswith(f"command `{name}`")))

    return refuse


def _plugin_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The path of every ``--plugin PATH``, and the other arguments."""
    files: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--plugin":
            file = next(words, None)
            if file is None:
                raise RecipeError("--plugin needs a file or a package folder")
            files.append(file)
        elif word.startswith("--plugin="):
            files.append(word.removeprefix("--plugin="))
        else:
            rest.append(word)
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
        display.say(str(error), error=True)
        return worker_code(WRONG if isinstance(error, RecipeError | PluginError) else FAILED)
    return DONE
