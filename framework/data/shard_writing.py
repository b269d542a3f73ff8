"""Writes any data set as tar shards with an index, in parallel processes; a run that was killed continues."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from framework.data.check import SPLITS, check_splits
from framework.data.image_cache import GUARD, start_decoder, view_error
from framework.data.image_file import FileView
from framework.data.image_folder import SUFFIXES
from framework.data.shards import INDEX, VERSION, ShardedSplit, ShardFile, ShardIndex, counts
from framework.exam import Exam, ExamError, ExamSource, View
from framework.runtime.console import print0
from framework.runtime.errors import ProcessLost, UserError
from framework.runtime.files import atomic_write, digest, file_lock, named_in_errors, read_bounded, sync_file
from framework.runtime.live import ProgressBar
from framework.runtime.processes import require_shared_locks, usable_cores

PARTS = "unfinished"  # folder of what is known of each finished shard, until the index is written
SETTINGS = "settings.json"  # in it: of what these shards are
LARGEST_IMAGE = 1_000_000_000  # bytes of an image file
BLOCK = 512  # bytes of a tar header, and of what the data of a member are padded to


@dataclass(frozen=True)
class _Job:
    """A shard to write. Exams have the numbers from `first` on."""

    folder: Path
    name: str
    first: int
    exams: Sequence[Exam]
    on_broken: Literal["stop", "skip"]


@dataclass(frozen=True)
class _Finished:
    """What is known of a finished shard.

    Attributes:
        left_out: id, code and text of each view that did not load, of exams that the shard is without.
    """

    file: ShardFile
    left_out: list[tuple[str, str, str]]


def write_shards(
    source: ExamSource,
    folder: Path,
    *,
    exams_per_shard: int = 1000,
    processes: int | None = None,
    on_broken: Literal["stop", "skip"] = "stop",
) -> ShardIndex:
    """Writes the exams as shards into a folder, and the index last, so that a folder with an index is complete.

    Every view is loaded once, so that no broken image gets into a shard. Shards that an earlier run has finished are
    kept if their hash is right.

    Args:
        processes: None: as many as there are cores.

    Raises:
        UserError: the folder has an index, or shards of other data; an exam cannot be used.
        ProcessLost: a writing process was killed.
    """
    splits = {name: exams for name, exams in source.splits().items() if name in SPLITS and len(exams)}
    if errors := check_splits(splits, tuple(splits) or SPLITS).errors:
        raise UserError.of(errors)
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / ".lock", "shards"):
        key = hashlib.sha256(json.dumps([VERSION, source.cache_key, exams_per_shard, on_broken]).encode()).hexdigest()
        _require_folder_of(folder, key)
        total = sum(map(len, splits.values()))
        files: dict[str, list[ShardFile]] = {name: [] for name in splits}
        left_out: list[tuple[str, str, str]] = []
        jobs = _jobs(splits, folder, exams_per_shard, on_broken)
        bar: ProgressBar[Any] = ProgressBar((), total=total, text="writing exams")
        with bar:
            for split, exams, done in _finished(jobs, processes or usable_cores()):
                files[split].append(done.file)
                left_out += done.left_out
                bar.update(exams)
        for exam_id, code, text in left_out:
            print0(f"left out: {ExamError(exam_id, code, text)}")
        index = ShardIndex(key, {name: _merge(folder, name, shards) for name, shards in files.items()})
        atomic_write(folder / INDEX, index.to_json())
        for left in (folder / PARTS).iterdir():
            left.unlink()
        (folder / PARTS).rmdir()
    print0(counts(index))
    return index


def _require_folder_of(folder: Path, key: str) -> None:
    """Begins a folder, or checks that what is in it belongs to the same shards."""
    settings, content = folder / PARTS / SETTINGS, json.dumps({"key": key})
    if settings.is_file():
        if settings.read_text(encoding="utf-8") != content:
            found = "it contains unfinished shards of other data or settings"
            raise UserError("file-exists", found, place=folder, hint="Name a new folder, or delete this one.")
        return
    if any(path.name != ".lock" for path in folder.iterdir()):
        what = "the shards are complete" if (folder / INDEX).is_file() else "it is not an empty folder"
        raise UserError("file-exists", what, place=folder, hint="Name a new folder.")
    settings.parent.mkdir()
    atomic_write(settings, content)


def _jobs(
    splits: Mapping[str, Sequence[Exam]], folder: Path, size: int, on_broken: Literal["stop", "skip"]
) -> Iterator[tuple[str, int, _Job]]:
    """The shards, with the name of the split and the number of exams; made as they are needed."""
    for split, exams in splits.items():
        for number, first in enumerate(range(0, len(exams), size)):
            part = exams[first : first + size]
            yield split, len(part), _Job(folder, f"{split}-{number:06d}.tar", first, part, on_broken)


def _finished(jobs: Iterator[tuple[str, int, _Job]], processes: int) -> Iterator[tuple[str, int, _Finished]]:
    """The shards as they are finished, in their order. A few more than there are processes are in work."""
    waiting: deque[tuple[str, int, Future[_Finished]]] = deque()
    require_shared_locks("write shards")
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=start_decoder)
    try:
        for split, exams, job in jobs:
            if (done := _verified(job)) is not None:
                future: Future[_Finished] = Future()
                future.set_result(done)
            else:
                future = pool.submit(_write, job)
            waiting.append((split, exams, future))
            if len(waiting) > 2 * processes:
                split, exams, future = waiting.popleft()
                yield split, exams, future.result()
        while waiting:
            split, exams, future = waiting.popleft()
            yield split, exams, future.result()
    except BrokenProcessPool:
        raise ProcessLost(
            "a process that writes shards has ended, most often because the machine ran out of memory; start again, "
            f"finished shards are kept. Or a script of yours is not guarded: {GUARD}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _part(job: _Job, ending: str) -> Path:
    return job.folder / PARTS / f"{job.name}{ending}"


def _verified(job: _Job) -> _Finished | None:
    """What is known of a shard that an earlier run has finished; None if it has to be written."""
    try:
        found = json.loads(_part(job, ".json").read_bytes())
        done = _Finished(ShardFile(**found["file"]), [tuple(each) for each in found["left_out"]])  # type: ignore[misc]
        path = job.folder / job.name
        if path.stat().st_size == done.file.size and digest(path) == done.file.sha256:
            return done
        print0(f"warning: {path} is damaged, and written again")
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return None


def _write(job: _Job) -> _Finished:
    """Writes a shard; then its lines of the index; then what marks it as finished."""
    path, part = job.folder / job.name, job.folder / f"{job.name}.part"
    lines: list[str] = []
    errors: list[ExamError] = []
    try:
        with named_in_errors(path):
            with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
                for number, exam in enumerate(job.exams, job.first):
                    try:
                        lines.append(_add(tar, f"{number:09d}", exam))
                    except ExamError as error:
                        errors.append(error)
            sync_file(part)
        if errors and job.on_broken == "stop":
            raise ExamError.of(problem for error in errors for problem in error.problems)
        file = ShardFile(job.name, len(lines), part.stat().st_size, digest(part))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    done = _Finished(file, [(error.exam_id, each.code, each.found) for error in errors for each in error.problems])
    atomic_write(_part(job, ".jsonl"), "".join(lines))
    atomic_write(_part(job, ".json"), json.dumps(asdict(done)))
    return done


def _add(tar: tarfile.TarFile, key: str, exam: Exam) -> str:
    """Adds an exam to a shard, and returns its line of the index.

    Raises:
        ExamError: a view does not load, or an attribute is no JSON; nothing is added then.
    """
    images: list[tuple[str, bytes]] = []
    problems = [] if exam.views else [ExamError(exam.id, "broken-image", "it has no view")]
    for view in exam.views:
        try:
            images.append(_content(view))
        except (OSError, ValueError) as error:
            problems.append(view_error(exam.id, view, error))
    if problems:
        raise ExamError.of(problem for error in problems for problem in error.problems)
    known = {
        "id": exam.id, "patient": exam.patient, "report": exam.report, "attributes": dict(exam.attributes),
        "rewording": exam.rewording,
    }  # fmt: skip
    views: list[dict[str, Any]] = [
        {"name": view.name, "file": f"{key}.{number}{ending}", "window": getattr(view, "window", None)}
        for number, (view, (ending, _)) in enumerate(zip(exam.views, images, strict=True))
    ]
    try:
        text = _json({**known, "views": views})
    except (TypeError, ValueError) as error:
        raise ExamError(exam.id, "wrong-type", f"its attributes are no JSON ({error})") from None
    _add_file(tar, f"{key}.json", text.encode())
    for known_view, (_, content) in zip(views, images, strict=True):
        offset = _add_file(tar, known_view["file"], content)
        known_view |= {"offset": offset, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return f"{_json({**known, 'views': views})}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _content(view: View) -> tuple[str, bytes]:
    """The ending and content of a view's file: as it is, of an image file; otherwise its pixels as PNG."""
    pixels = view.load()
    if type(view).load is FileView.load:  # not of a view that changes what it reads
        assert isinstance(view, FileView)
        ending = Path(view.path).suffix.lower()
        if ending in SUFFIXES:
            return ending, read_bounded(Path(view.path), LARGEST_IMAGE)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"{pixels.dtype} of shape {pixels.shape}, expected uint8 of H x W or H x W x 3")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return ".png", buffer.getvalue()


def _add_file(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Adds a file, and returns where its content begins."""
    info = tarfile.TarInfo(name)  # of time 0 and no owner, so that the same exams give the same shard
    info.size = len(content)
    offset = tar.offset + BLOCK
    tar.addfile(info, io.BytesIO(content))
    return offset


def _merge(folder: Path, split: str, shards: Sequence[ShardFile]) -> ShardedSplit:
    """Joins the lines of a split's shards into one file."""
    path = folder / f"{split}.jsonl"
    patients: set[str] = set()
    part = path.with_suffix(".part")
    with named_in_errors(path), part.open("wb") as file:
        for shard in shards:
            content = (folder / PARTS / f"{shard.name}.jsonl").read_bytes()
            patients.update(json.loads(line)["patient"] for line in content.split(b"\n") if line)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    lines = ShardFile(path.name, sum(shard.exams for shard in shards), part.stat().st_size, digest(part))
    part.replace(path)
    return ShardedSplit(lines, len(patients), tuple(shards))
