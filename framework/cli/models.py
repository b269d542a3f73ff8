"""The verb that takes a trained model elsewhere: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from framework.cli.options import RunArgument, Trust, must_exist, trust_code_of


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
