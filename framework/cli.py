"""The verbs of the command line. Whatever is heavy is imported inside the verb that needs it, so the others are quick.

launch.py RECIPE [key=value ...]     train (under `accelerate launch` as well)
launch.py ls | describe | validate | explain | distill | evaluate | predict | data
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from framework.recipe import Recipe

TRACEBACK = "SONOSCRIBE_TRACEBACK"
RECIPE_HELP = "A recipe file, or the name of a shipped recipe."
OVERRIDES_HELP = "key=value, such as train.epochs=3; read as in a recipe file."

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in help texts are brackets
    help="Trains report generation for ultrasound from a recipe. Without a verb: launch.py RECIPE [key=value ...].",
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: check one, or write one out.")
app.add_typer(data_app, name="data")

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help=RECIPE_HELP)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=OVERRIDES_HELP)]
Files = Annotated[
    list[Path] | None,
    typer.Option("--plugins", metavar="FILE", help="A plugin file outside the package; may come several times."),
]


def rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def show(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: drawn on a terminal, aligned plain columns in a pipe."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*headers, box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))  # Text: a cell such as [a, b] is no markup
        Console().print(table)
        return
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    for row in [headers, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _files(files: list[Path] | None) -> tuple[Path, ...]:
    return tuple(path.resolve() for path in files or ())


def _load(named: str, overrides: Sequence[str] | None) -> Recipe:
    from framework.recipe import load_recipe

    return load_recipe(named, overrides or ())


@app.command()
def train(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Train, evaluate and report. The verb may be left out."""
    loaded = _load(recipe, overrides)  # before the heavy import: a mistake in a recipe shows at once
    from framework.engine import train as run_training

    run_training(loaded)


@app.command()
def ls(
    kind: Annotated[str | None, typer.Argument(help="A kind of plugin, or `recipe`; else all.")] = None,
    plugins: Files = None,
) -> None:
    """List plugins and recipes, one line each."""
    from framework.listing import RECIPE_WORD, plugin_rows, recipe_rows

    rows = [] if kind in (RECIPE_WORD, "recipes") else plugin_rows(kind, _files(plugins))
    if kind in (None, RECIPE_WORD, "recipes"):
        rows += recipe_rows()
    show(("kind", "name", "what it is", "where"), rows)


@app.command()
def describe(
    name: Annotated[str, typer.Argument(metavar="KIND/NAME", help="Such as encoder/resnet.")], plugins: Files = None
) -> None:
    """Show a plugin's keys, types, defaults and documentation, and a piece of recipe to paste."""
    from framework.listing import body, find_by_words, key_rows, snippet

    plugin = find_by_words(name, _files(plugins))
    print(f"{plugin.kind}/{plugin.name}: {plugin.summary}\n{plugin.where}\n")
    rows = key_rows(plugin)
    if rows:
        show(("key", "type", "default", "meaning"), rows)
    else:
        print("It has no keys.")
    text = body(plugin)
    print(f"\n{text}\n" if text else "")
    print(f"In a recipe:\n\n{snippet(plugin)}")


@app.command()
def validate(
    words: Annotated[list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE]...", help=RECIPE_HELP)],
) -> None:
    """Check recipes without running anything: every mistake, with file and line."""
    from framework.recipe import RecipeError, recipe_hash

    named = [word for word in words if "=" not in word or Path(word).exists()]
    overrides = [word for word in words if word not in named]
    if not named:
        raise typer.BadParameter("name at least one recipe")
    problems: list[str] = []
    for name in named:
        try:
            recipe = _load(name, overrides)
        except RecipeError as error:
            problems += error.lines
            continue
        print(f"{name}: good ({recipe_hash(recipe)})")
        for notice in recipe.notices:
            print(f"  notice: {notice}")
    if problems:
        raise RecipeError(*dict.fromkeys(problems))


@app.command()
def explain(
    recipe: RecipeArgument,
    key: Annotated[str, typer.Argument(help="Such as model.encoder.width; a block shows all its keys.")],
    overrides: Overrides = None,
) -> None:
    """Show a value of a recipe, and which file, override or default set it."""
    from framework.recipe import explain_rows

    show(("key", "value", "from"), explain_rows(_load(recipe, overrides), key))


@app.command()
def distill(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write topics.json and topics.png."),
    ] = None,
) -> None:
    """Find topics alone: their words, sizes and quality."""
    loaded = _load(recipe, overrides)
    if not loaded.has_topics:
        raise ValueError(f"{recipe}: its distiller is none; add distiller=faiss_kmeans, or see `ls distiller`")
    from framework.build import build_dataset, build_tokenizer, build_topics, load_exams

    texts = {split: [exam.report for exam in exams] for split, exams in load_exams(build_dataset(loaded)).items()}
    topics, _ = build_topics(loaded, build_tokenizer(loaded, texts["train"], None), texts, out)
    assert topics is not None
    rows = [(str(i), str(topics.sizes[i]), " ".join(topics.words[i][:8])) for i in range(topics.count)]
    show(("topic", "training reports", "words"), rows)
    print("  ".join(f"{name} {value:.3f}" for name, value in topics.quality.items() if value is not None))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
) -> None:
    """Score a run's best model on a split."""
    _must_exist(run, "run folder")
    from framework.evaluation import evaluate_run

    evaluate_run(run, split)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="The views of one exam.")],
    beam: Annotated[int | None, typer.Option(min=1, help="Beam width; else the recipe's.")] = None,
) -> None:
    """Write the report of one exam. Research only, no medical device."""
    _must_exist(run, "run folder")
    for image in images:
        _must_exist(image, "image")
    from framework.prediction import predict as write_report

    print(write_report(run, images, beam))


@data_app.command("check")
def data_check(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Read every exam of a recipe's data set and tell which cannot be used."""
    loaded = _load(recipe, overrides)
    from framework.build import build_dataset
    from framework.data_check import ExamWarning, check

    def count(done: int, total: int) -> None:
        print(f"\r{done} of {total} exams", end="\n" if done == total else "", file=sys.stderr, flush=True)

    problems = check(build_dataset(loaded), count if sys.stderr.isatty() else None)
    for problem in problems:
        print(f"{'warning: ' if isinstance(problem, ExamWarning) else ''}{problem}")
    errors = sum(not isinstance(problem, ExamWarning) for problem in problems)
    print(f"{errors} problems, {len(problems) - errors} warnings")
    if errors:
        raise typer.Exit(2)


@data_app.command("make")
def data_make(
    recipe: RecipeArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    overrides: Overrides = None,
) -> None:
    """Write a recipe's data set as a manifest with PNG images."""
    loaded = _load(recipe, overrides)
    from framework.build import build_dataset
    from framework.data_make import write_manifest

    path = write_manifest(build_dataset(loaded), folder)
    print(f"{path}\nIn a recipe:\n\ndata:\n  dataset: {{name: manifest, file: {path}, images: {folder}}}")


def _must_exist(path: Path, what: str) -> None:
    if not path.exists():
        from framework.registry import did_you_mean

        near = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"{path}: no such {what}.{did_you_mean(str(path), near)}")


def with_verb(words: Sequence[str]) -> list[str]:
    """Puts `train` before words that begin with a recipe."""
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback} | {"data"}
    if words and words[0] not in verbs and not words[0].startswith("-"):
        return ["train", *words]
    return list(words)


def main(words: Sequence[str] | None = None) -> None:
    """Runs a command line. What a user got wrong ends in a short message and exit code 2."""
    words = sys.argv[1:] if words is None else words
    try:
        app(args=with_verb(words), prog_name="launch.py")
    except (ValueError, OSError) as error:
        if os.environ.get(TRACEBACK):
            raise
        _complain(error)
        sys.exit(2)


def _complain(error: ValueError | OSError) -> None:
    """Tells an error once: what every rank finds alike is left to rank 0."""
    from framework.exam import ExamError
    from framework.recipe.source import RecipeError
    from framework.registry import PluginError

    alike = isinstance(error, (RecipeError, PluginError))
    if rank() and alike:
        return
    who = f"rank {rank()}: " if rank() else ""
    print(f"{who}{error}", file=sys.stderr)
    if not (alike or isinstance(error, ExamError)):
        print(f"({TRACEBACK}=1 shows where in the code)", file=sys.stderr)


if __name__ == "__main__":
    main()
