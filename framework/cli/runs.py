"""The verbs that run something: train, distill, evaluate, predict, report; and `runs`, which lists runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from framework.cli.options import (
    Average,
    Ensemble,
    Json,
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
from framework.runtime.console import print_json, print_table
from framework.runtime.errors import UserError

if TYPE_CHECKING:
    from framework.run.listing import ListedRun

NOT_CALIBRATED = "the confidence is not calibrated; `launch.py evaluate RUN --split val` calibrates a run's best model"


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
            metavar="FLAG|RECIPE|KEY=VALUE",
            help="Flags of accelerate launch, such as --num_processes 2; then a recipe, or a verb with its arguments. "
            "Without flags: one process for each GPU.",
        ),
    ],
) -> None:
    """Start several processes. `launch --num_processes 2 breast` runs the launcher of accelerate without its list of
    defaults and its tracebacks, and with the exit codes of the command."""
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
    _require_runs(run, others, trust)
    from framework.data.check import require_split

    require_split(split)  # before the slow import
    from framework.evaluation.evaluate import evaluate_run
    from framework.evaluation.model_selection import ModelSelection

    evaluate_run(run, split, ModelSelection(average or 1, ensemble or 1, tuple(others or [])), overrides or (), name)


def predict(
    run: RunArgument,
    images: Annotated[list[Path] | None, typer.Argument(metavar="IMAGE", help="The views of one exam.")] = None,
    exams: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Many exams: JSON Lines of {id, images}, a file of the data set `manifest`, a folder with a folder of "
            "images for each exam, or a folder of images, each an exam.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON Lines of the reports of --exams; exams in it are not predicted again."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="FOLDER",
            help="Folder to which the paths in --exams FILE are relative; default: the file's.",
        ),
    ] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beam width; default: the recipe's.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Number of --exams at a time; default: the recipe's.")
    ] = None,
    average: Average = None,
    ensemble: Ensemble = None,
    others: With = None,
    unsure: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="P", help="List the findings whose confidence is less than P."),
    ] = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Generate the report of one exam, or of many. For research only; not a medical device."""
    _require_one_way(images, exams, {"--out": out, "--images": folder, "--batch-size": batch_size}, as_json)
    _require_runs(run, others, trust)
    for image in images or []:
        must_exist(image, "image")
    from framework.evaluation.model_selection import ModelSelection

    selection = ModelSelection(average or 1, ensemble or 1, tuple(others or []))
    if exams is not None and out is not None:
        must_exist(exams, "file or folder of exams")
        must_exist(folder or exams, "folder of images")
        must_exist(out.absolute().parent, "folder")
        from framework.evaluation.predict_exams import list_exams, predict_exams

        predict_exams(run, list_exams(exams, folder), out, num_beams, selection, batch_size, unsure)
        return
    from framework.evaluation.predict import predict as write_report

    report = write_report(run, images or [], num_beams, selection)
    if as_json:
        from framework.evaluation.predict_exams import finding_rows

        found: dict[str, Any] = {"images": [str(image) for image in images or []], "report": report.text}
        found |= {"confidence": round(report.confidence, 4), "calibrated": report.calibrated}
        found |= {"findings": finding_rows(report.findings), "warnings": report.warnings}
        found |= {"nearest": [exam._asdict() for exam in report.nearest]}
        print_json(found if unsure is None else {**found, "unsure": finding_rows(report.unsure(unsure))})
        return
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(report)
    if unsure is not None:
        for finding in report.unsure(unsure):
            print(f"unsure: {finding} ({finding.confidence:.2f})")
        if not report.calibrated:
            print(f"notice: {NOT_CALIBRATED}", file=sys.stderr)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="The folder of a run; several are compared.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page of several runs; default: compare.html.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Draw the page of a run again, or one page that compares several runs on the same test exams."""
    if len(runs) == 1 and out is not None:
        raise UserError("ignored-setting", "the page of one run is RUN/report.html", place="--out")
    if twice := [run for place, run in enumerate(runs) if run in runs[:place]]:
        raise UserError("duplicate-name", "the run is named twice", place=twice[0])
    for run in runs:
        _require_runs(run, None, trust)
    if out is not None:
        must_exist(out.absolute().parent, "folder")
    from framework.evaluation.report import compare_runs, draw_run

    print(draw_run(runs[0]) if len(runs) == 1 else compare_runs(runs, out or Path("compare.html")))


def serve(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="The folders of runs, or of exported models.")],
    host: Annotated[str, typer.Option(help="Address or name to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000,
    queue: Annotated[int, typer.Option(min=1, help="Open requests; those beyond get 429 with Retry-After.")] = 16,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beam width; default: the recipe's.")] = None,
    trust: Trust = False,
) -> None:
    """Try models on a local page and by JSON: drop images, and see the report with where the model looked. For research
    only; not a medical device."""
    for run in runs:
        _require_runs(run, None, trust)
    try:
        from framework.serve.command import serve_runs
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] not in ("fastapi", "python_multipart", "starlette", "uvicorn"):
            raise
        hint = "pip install 'sonoscribe[serve]'"
        raise UserError("missing-package", f"'{error.name}' is not installed", place="serve", hint=hint) from None
    serve_runs(runs, host, port, queue, num_beams)


def list_runs(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Where to look; default: runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List runs, the newest first: when they started, epochs, best validation score, and whether they are finished."""
    must_exist(root, "folder of runs")
    from framework.run.listing import list_runs as runs_below

    found = runs_below(root)
    if as_json:
        print_json([{**asdict(run), "started": run.started.isoformat(timespec="seconds")} for run in found])
    elif found:
        print_table(("run", "started", "epochs", "best on validation", "state"), [_row(run) for run in found])
    else:
        print(f"no runs in {root}")


def _row(run: ListedRun) -> list[str]:
    best = "-" if run.best is None else f"{run.monitor or 'monitor'} {run.best:.3f}"
    epochs = f"{run.epoch}/{'?' if run.epochs is None else run.epochs}"
    return [run.run, f"{run.started:%Y-%m-%d %H:%M}", epochs, best, run.state]


def _require_one_way(
    images: list[Path] | None, exams: Path | None, of_many: Mapping[str, object], as_json: bool
) -> None:
    """Raises UserError unless the options of `predict` are those of one exam, or those of many."""
    if bool(images) == (exams is not None):
        expected = "IMAGE... for one exam, or --exams for many"
        raise UserError("conflicting-settings", "both" if images else "neither", place="predict", expected=expected)
    if exams is not None and of_many["--out"] is None:
        raise UserError("missing-key", "no file for the reports", place="--out", expected="--out FILE")
    if exams is not None and as_json:
        raise UserError("ignored-setting", "the reports of --exams are JSON Lines", place="--json")
    for option in (name for name, value in of_many.items() if images and value is not None):
        raise UserError("ignored-setting", "it is an option of --exams", place=option)


def _require_runs(run: Path, others: list[Path] | None, trust: bool) -> None:
    for each in (run, *(others or [])):
        must_exist(each, "run folder")
        if trust:
            trust_code_of(each)
