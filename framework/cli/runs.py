"""The verbs that run something: train, distill, evaluate, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from framework.cli.options import (
    Average,
    Ensemble,
    Overrides,
    RecipeArgument,
    RunArgument,
    Trust,
    With,
    load,
    must_exist,
    trust_code_of,
)
from framework.registry.trust import trust as trust_files
from framework.runtime.console import print_table
from framework.runtime.errors import UserError


def train(recipe: RecipeArgument, overrides: Overrides = None, trust: Trust = False) -> None:
    """Train, evaluate and write the report page. `train` may be omitted."""
    loaded = load(recipe, overrides)  # before the slow import, so that mistakes show at once
    if trust:
        trust_files(loaded.plugin_files)
        if loaded.init_from is not None:
            trust_code_of(Path(loaded.init_from))
    from framework.trainer import train as run_training

    run_training(loaded)


def launch(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[FLAG]... RECIPE [KEY=VALUE]...",
            help="Flags of accelerate launch, such as --num_processes 2; then a recipe, or a verb with its arguments. "
            "Without flags: one process for each GPU.",
        ),
    ],
) -> None:
    """Start several processes. `launch --num_processes 2 breast` is `accelerate launch launch.py`, but without its list
    of defaults and its tracebacks, and with the exit codes of the command."""
    from framework.cli import with_verb
    from framework.distributed.launcher import parse_launch, run_launcher

    options, command = parse_launch(words)
    verb, *rest = with_verb(command)
    if verb == "train" and rest:  # mistakes show before processes start
        load(rest[0], [word for word in rest[1:] if not word.startswith("--")])
    raise typer.Exit(run_launcher(options))


def distill(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write topics.json and topics.png; default: nowhere."),
    ] = None,
) -> None:
    """Find topics without training: their words, sizes and quality."""
    loaded = load(recipe, overrides)
    if not loaded.has_topics:
        hint = "Add distiller=faiss_kmeans, or see `ls distiller`."
        raise UserError("missing-input", "distiller is none", place=recipe, hint=hint)
    from framework.build import build_dataset, build_tokenizer, build_topics, load_reports
    from framework.topics.count import choice_rows, trade_of

    texts = load_reports(build_dataset(loaded))
    topics, _ = build_topics(loaded, build_tokenizer(loaded, texts["train"], None), texts, out)
    assert topics is not None
    rows = [(str(i), str(topics.sizes[i]), " ".join(topics.words[i][:8])) for i in range(topics.count)]
    if topics.choice is not None:
        print_table(("topics tried", "silhouette", "stability", "score"), choice_rows(topics.choice))
        if trade := trade_of(topics.choice):
            print(f"{trade}. Set distiller.topics to decide otherwise.")
        print()
    print_table(("topic", "training reports", "words"), rows)
    quality = {name: value for name, value in topics.quality.items() if value is not None}
    print(
        "  ".join(
            f"{name} {value:.0f}" if name.startswith("reports") else f"{name} {value:.3f}"
            for name, value in quality.items()
        )
    )


def evaluate(
    run: RunArgument,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    average: Average = None,
    ensemble: Ensemble = None,
    others: With = None,
    trust: Trust = False,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Suffix of the files of scores with overrides; default: a hash.")
    ] = "",
) -> None:
    """Score a run's best model on a split. Scores of an average or ensemble of models, or with overrides of the
    recipe, such as other exams, get a separate file."""
    for each in (run, *(others or [])):
        must_exist(each, "run folder")
        if trust:
            trust_code_of(each)
    from framework.data.check import require_split

    require_split(split)  # before the slow import
    from framework.evaluation.evaluate import evaluate_run
    from framework.evaluation.model_selection import ModelSelection

    evaluate_run(run, split, ModelSelection(average or 1, ensemble or 1, tuple(others or [])), overrides or (), name)


def predict(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="The views of one exam.")],
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beam width; default: the recipe's.")] = None,
    average: Average = None,
    ensemble: Ensemble = None,
    others: With = None,
    trust: Trust = False,
) -> None:
    """Generate the report of one exam. For research only; not a medical device."""
    for each in (run, *(others or [])):
        must_exist(each, "run folder")
        if trust:
            trust_code_of(each)
    for image in images:
        must_exist(image, "image")
    from framework.evaluation.model_selection import ModelSelection
    from framework.evaluation.predict import predict as write_report

    print(write_report(run, images, num_beams, ModelSelection(average or 1, ensemble or 1, tuple(others or []))))
