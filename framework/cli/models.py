"""The verbs that take a trained model elsewhere: export, push, pull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from framework.cli.options import RunArgument, Trust, must_exist, trust_code_of

RepoArgument = Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub of Hugging Face.")]


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new or empty folder.")],
    to: Annotated[str, typer.Option("--to", metavar="onnx|torch", help="For ONNX Runtime, or for torch.export.")],
    trust: Trust = False,
) -> None:
    """Write encoder and decoder of a run's best model as programs that need none of our code."""
    must_exist(run, "run folder")
    if trust:
        trust_code_of(run)
    from framework.deploy.program_files import export_model

    print(export_model(run, to, out))


def push(
    run: RunArgument,
    repo: RepoArgument,
    public: Annotated[bool, typer.Option("--public", help="Create it for everyone; default: for you alone.")] = False,
) -> None:
    """Upload a run's best model to the hub, with its card and hashes."""
    must_exist(run, "run folder")
    from framework.deploy.hub import push_model

    print(push_model(run, repo, public))


def pull(
    repo: RepoArgument,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="A branch, tag or commit; default: the newest.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A new folder; default: NAME of REPO.")] = None,
) -> None:
    """Download a model from the hub and check its hashes."""
    from framework.deploy.hub import pull_model

    folder = out or Path(repo.rpartition("/")[2])
    pull_model(repo, revision, folder)
    print(folder)
