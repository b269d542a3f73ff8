"""What a run records: metrics.jsonl, trackers, skipped steps, and its environment."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from framework.distributed.collectives import gather
from framework.models.device import DeferredNumber
from framework.recipe import Recipe
from framework.run.listing import ENVIRONMENT
from framework.run.trackers import Trackers
from framework.runtime.console import print0
from framework.runtime.errors import UserError
from framework.runtime.files import atomic_write, named_in_errors, read_lines
from framework.runtime.packages import PACKAGES, package_versions
from framework.train_step import StepOutput

RECORDS = "metrics.jsonl"  # one value per line
NON_FINITE = "non_finite.jsonl"  # skipped steps and their exams
PROJECTOR = "projector"  # folder of the points of TensorBoard's projector
COST = "cost.json"  # parameters and peak memory; written at the end of a run


class Tracker:
    """Writes scalars to metrics.jsonl and the trackers of the recipe, on the main process only.

    Reports and images are shown by TensorBoard alone, whose files stay in the run's folder.

    Args:
        run: the run's folder.
        writes: whether this is the main process.
        done: the step that the run resumes from; records of later steps are removed.
        rewritten: prefixes of names whose records of step `done` are removed too.
        tensorboard: whether TensorBoard is a tracker of the run.
    """

    def __init__(
        self, run: Path, *, writes: bool, done: int, rewritten: tuple[str, ...], tensorboard: bool = True
    ) -> None:
        self.run, self.writes = run, writes
        self.board: Any = None
        self.trackers: Trackers | None = None
        if not writes:
            return
        self.path = run / RECORDS
        # Records that will be written again: of later steps, and of this step those with a name that starts so.
        self.removed: list[dict[str, Any]] = []
        for path in (self.path, run / NON_FINITE):
            self.removed += keep_lines(
                path, lambda row: row["step"] < done or (row["step"] == done and not _starts(row, rewritten))
            )
        self.file = self.path.open("a", encoding="utf-8")
        if tensorboard:
            from tensorboard.compat.proto.summary_pb2 import Summary
            from torch.utils.tensorboard import SummaryWriter

            self.summary = Summary
            self.board = SummaryWriter(str(run), purge_step=done + 1 if done else None)

    def connect(self, recipe: Recipe, launch: Mapping[str, Any]) -> None:
        """Starts or continues the run in the other trackers of the recipe. Called on the main process.

        Args:
            launch: device, processes, strategy and precision, which trackers show with the recipe.

        Raises:
            UserError: a tracker refuses the run.
        """
        sent = {(row["step"], row.get("name", "")) for row in self.removed}
        self.trackers = Trackers(recipe, self.run, launch, sent)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if not self.writes:
            return
        with named_in_errors(self.path):
            rows = [json.dumps({"step": step, "name": name, "value": value}) + "\n" for name, value in values.items()]
            self.file.write("".join(rows))
            self.file.flush()
        if self.board is not None:
            with named_in_errors(self.run):
                # One event for all values; `add_scalar` writes an event for each, at the price of one for all.
                scalars = [self.summary.Value(tag=name, simple_value=value) for name, value in values.items()]
                self.board._get_file_writer().add_summary(self.summary(value=scalars), step)
        if self.trackers is not None:
            self.trackers.send(step, values)

    def sample(self, step: int, exam_id: str, image_VCHW: np.ndarray, reference: str, prediction: str) -> None:
        """A generated report beside its reference and its views."""
        if self.board is None:
            return
        views_CHW = np.concatenate(list(image_VCHW), axis=-1)
        text = f"**reference** {reference}\n\n**prediction** {prediction}"
        with named_in_errors(self.run):
            self.board.add_image(f"samples/{exam_id}", views_CHW, step)
            self.board.add_text(f"samples/{exam_id}", text, step)

    def picture(self, name: str, path: Path) -> None:
        if self.board is not None and path.is_file():
            from PIL import Image

            self.board.add_image(name, np.asarray(Image.open(path).convert("RGB")), 0, dataformats="HWC")

    def projector(self, vectors_ND: np.ndarray, columns: Mapping[str, Sequence[object]]) -> None:
        """The points of TensorBoard's projector, each with a value of every column."""
        if self.board is None:
            return
        folder = self.run / PROJECTOR
        folder.mkdir(exist_ok=True)
        rows = [list(columns), *zip(*columns.values(), strict=True)]
        texts = {
            folder / "vectors.tsv": [[f"{value:.6g}" for value in vector] for vector in vectors_ND],
            folder / "metadata.tsv": [[" ".join(str(cell).split()) for cell in row] for row in rows],
        }
        for path, lines in texts.items():
            atomic_write(path, "".join("\t".join(line) + "\n" for line in lines))
        paths = {"tensor_path": "vectors.tsv", "metadata_path": "metadata.tsv"}
        named = "".join(f'  {key}: "{PROJECTOR}/{name}"\n' for key, name in paths.items())
        atomic_write(self.run / "projector_config.pbtxt", f'embeddings {{\n  tensor_name: "topics"\n{named}}}\n')

    @property
    def hints(self) -> list[str]:
        """Commands that show the run in its trackers."""
        board = [] if self.board is None else [f"tensorboard --logdir {self.run}"]
        return [*board, *([] if self.trackers is None else self.trackers.hints)]

    def close(self, *, failed: bool = False) -> None:
        if not self.writes:
            return
        if self.trackers is not None:
            self.trackers.close(failed=failed)
        with named_in_errors(self.run):
            self.file.close()
            if self.board is not None:
                self.board.close()


class NonFiniteSteps:
    """Counts steps that were skipped because their loss or gradient is not finite, and records them with their exams.

    On a GPU the flag of a step is read after the next step is queued, so that the host does not wait for the device.

    Args:
        names: of the losses.
        allowed: `train.skip_non_finite`.
        count: skipped steps before the run resumed.
        scaler: of fp16, whose overflows are not counted; None in other precisions.
    """

    def __init__(
        self, accelerator: Accelerator, run: Path, names: Sequence[str], *, allowed: int, count: int, scaler: Any
    ) -> None:
        self.accelerator, self.path, self.names = accelerator, run / NON_FINITE, list(names)
        self.allowed, self.count, self.scaler = allowed, count, scaler
        self.delay = 1 if accelerator.device.type == "cuda" else 0
        self.unread: list[tuple[int, list[str], StepOutput, DeferredNumber]] = []

    def add(self, step: int, exam_ids: list[str], output: StepOutput) -> None:
        """Adds a step, and reads the flags of earlier ones.

        Raises:
            UserError: more than `allowed` steps, on every process alike.
        """
        self.unread.append((step, exam_ids, output, DeferredNumber(output.finite)))
        self.check(self.delay)

    def check(self, delay: int = 0) -> None:
        """Reads the flags of all steps but the last `delay`."""
        while len(self.unread) > delay:
            step, exam_ids, output, finite = self.unread.pop(0)
            if not finite.read() and not (bool(torch.isfinite(output.loss)) and self._overflow()):
                self._skipped(step, exam_ids, output)

    def _overflow(self) -> bool:
        """Whether an infinite gradient may come from the scale of fp16, which is then lowered."""
        return self.scaler is not None and self.scaler.get_scale() >= 1

    def _skipped(self, step: int, exam_ids: list[str], output: StepOutput) -> None:
        self.count += 1
        exams = gather(self.accelerator, exam_ids)
        loss, norm = float(output.loss), float(output.grad_norm)
        if self.accelerator.is_main_process:
            terms = dict(zip(self.names, output.terms_L.tolist()))
            row = {"step": step, "loss": loss, "terms": terms, "gradient_norm": norm, "exams": exams}
            with named_in_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        what = f"loss {loss} and gradient norm {norm} are not both finite"
        if self.count > self.allowed:
            raise UserError(
                "non-finite",
                f"{what}; {self.count} such steps, and train.skip_non_finite is {self.allowed}",
                place=f"step {step}",
                hint=f"Exams: {', '.join(exams[:8])}{' ...' if len(exams) > 8 else ''}, all in {self.path}. Lower "
                "optimizer.lr, set train.max_grad_norm, or raise train.skip_non_finite.",
            )
        print0(f"warning: step {step}: {what}; skipped ({self.count} of at most {self.allowed})")


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Keeps the records of a JSON-lines file that `keep` accepts, and drops a last line without its end.

    Returns:
        the other records.
    """
    kept: list[str] = []
    removed: list[dict[str, Any]] = []
    if path.is_file():
        lines = read_lines(path, errors="replace")
        for number, line in enumerate(lines, 1):
            try:
                if line.endswith("\n"):
                    row = json.loads(line)
                    if keep(row):
                        kept.append(line)
                    else:
                        removed.append(row)
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                hint = "Delete the line; only curves need it."
                raise UserError(
                    "damaged-file", f"not a record ({error!r})", place=f"{path}:{number}", hint=hint
                ) from None
        atomic_write(path, "".join(kept))
    return removed


def _starts(row: dict[str, Any], prefixes: tuple[str, ...]) -> bool:
    return row.get("name", "").startswith(prefixes)


def write_environment(run: Path, launch: dict[str, Any]) -> None:
    """Writes versions, git state and launch of a run to environment.json."""
    write_json(
        run / ENVIRONMENT,
        {
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": sys.argv,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": package_versions(PACKAGES),
            "git": _git_state(),
            "launch": launch,
        },
    )


def _git_state() -> str | None:
    """The commit of the running code, with `-dirty` if files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, atomically."""
    atomic_write(path, json.dumps(value, ensure_ascii=False, indent=1))
