"""Exams in tar shards with an index, as `data shard` writes them: from a folder, by HTTP, or through a command."""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import PositiveInt

from framework.data.check import SPLITS
from framework.data.image_file import MAX_PIXELS, inside, read_image
from framework.data.image_folder import searched
from framework.data.shards import DAMAGED, INDEX, ShardedSplit, ShardFile, ShardIndex, ShardOrder
from framework.exam import Exam, LazyExams
from framework.registry import register
from framework.registry.trust import PIPE, require_trusted_command
from framework.runtime.errors import Problem, UserError
from framework.runtime.files import digest, file_lock, read_bounded, reading

KEY = "data.dataset.shards"
URLS = ("https://", "http://")
BUFFER = 8
TRIES = 3  # of a download
TIMEOUT_S = 60.0
READ = 1 << 20  # bytes of an index file that are searched for line ends at once
EXAMPLES = {"s3": "pipe:aws s3 cp s3://bucket/folder/{} -", "gs": "pipe:gsutil cat gs://bucket/folder/{}"}


class _Folder:
    """Shards in a folder of this machine."""

    hint = DAMAGED

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, file: ShardFile) -> Path:
        """The file. Raises UserError if it is missing, of another size, or a link out of the folder."""
        try:
            path = inside(self.root, file.name)
            size = path.stat().st_size
        except ValueError as error:
            raise UserError("no-such-file", str(error), place=self.root / file.name) from None
        except OSError as error:
            code = "no-such-file" if isinstance(error, FileNotFoundError) else "unreadable-file"
            found = "no such file, which the index names" if code == "no-such-file" else str(error.strerror)
            raise UserError(code, found, place=self.root / file.name, hint=DAMAGED) from None
        if size != file.size:
            found, expected = f"{size:,} bytes", f"{file.size:,}: it is truncated or another file"
            raise UserError("damaged-file", found, place=path, expected=expected, hint=DAMAGED)
        return path

    def read(self, file: ShardFile, offset: int, size: int) -> tuple[bytes, Path]:
        """Bytes of a shard, and where it is. `path` has found it at the start of the run."""
        path = self.root / file.name
        try:
            return _bytes(path, offset, size), path
        except OSError:
            self.path(file)  # which says what is wrong with it
            raise


class _Fetched:
    """Shards that are fetched whole when one is read, and verified, into a folder that holds the last `most` of them.

    The processes of a machine share the folder.
    """

    hint = "Delete this copy; it is fetched again."

    def __init__(self, location: str, cache: Path, most: int) -> None:
        self.location, self.root, self.most = location, cache / "shards", most

    def path(self, file: ShardFile) -> Path:
        """The file. Raises UserError if it cannot be fetched, or is another one than the index names."""
        path = self.root / file.name
        if _has_size(path, file):
            return path
        with file_lock(self.root / f"{file.name}.lock", None):
            if not _has_size(path, file):
                part = path.with_suffix(f".{os.getpid()}.part")
                try:
                    self._fetch(file.name, part)
                    if (size := part.stat().st_size) != file.size or digest(part) != file.sha256:
                        found = f"{size:,} bytes of another SHA-256 than the index names"
                        place, expected = self.name(file.name), f"{file.size:,} bytes, SHA-256 {file.sha256}"
                        raise UserError("damaged-file", found, place=place, expected=expected, hint=DAMAGED)
                    part.replace(path)
                finally:
                    part.unlink(missing_ok=True)
                self._remove_oldest(path)
        return path

    def read(self, file: ShardFile, offset: int, size: int) -> tuple[bytes, Path]:
        """Bytes of a shard, and where it is."""
        while True:
            path = self.path(file)
            try:
                return _bytes(path, offset, size), path
            except FileNotFoundError:  # removed since, as one of the oldest
                continue

    def index(self) -> bytes:
        """The content of index.json, fetched each time. Another content has another folder."""
        self.root.mkdir(parents=True, exist_ok=True)
        part = self.root / f"index.{os.getpid()}.part"
        try:
            self._fetch(INDEX, part)
            content = read_bounded(part)
        finally:
            part.unlink(missing_ok=True)
        self.root /= hashlib.sha256(self.location.encode() + content).hexdigest()[:16]
        return content

    def name(self, file: str) -> str:
        """Where a file comes from, for messages."""
        return self.location.replace("{}", file) if "{}" in self.location else f"{self.location.rstrip('/')}/{file}"

    def _remove_oldest(self, newest: Path) -> None:
        """Removes the shards beyond `most` that were fetched first. Who has opened one can still read it."""
        times = []
        for path in self.root.glob("*.tar"):
            try:
                times.append((path.stat().st_mtime_ns, path))
            except FileNotFoundError:  # another process has removed it
                continue
        for _, path in sorted(times)[: -self.most]:
            if path != newest:
                path.unlink(missing_ok=True)

    def _fetch(self, file: str, part: Path) -> None:
        for left in range(TRIES - 1, -1, -1):
            try:
                with part.open("wb") as to:
                    (self._run if self.location.startswith(PIPE) else self._download)(file, to)
                return
            except UserError as error:
                if not left or error.code == "no-such-file":
                    raise

    def _run(self, file: str, to: BinaryIO) -> None:
        """Writes what the command prints. The name of a file has no character that a shell would read."""
        command = self.name(file).removeprefix(PIPE)
        done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, stdout=to, stderr=subprocess.PIPE)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()[-300:]
            found = f"ended with exit code {done.returncode}: {words or 'no message'}"
            raise UserError("external-program", found, place=f"{KEY}: {command}")

    def _download(self, file: str, to: BinaryIO) -> None:
        url = self.name(file)
        try:
            with _opener().open(url, timeout=TIMEOUT_S) as answer:
                shutil.copyfileobj(answer, to)
        except (OSError, ValueError) as error:  # urllib's errors are OSErrors; ValueError: not a URL
            missing = isinstance(error, urllib.error.HTTPError) and error.code in (404, 410)
            raise UserError("no-such-file" if missing else "unreadable-file", f"{error}", place=url) from None


class _SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to the scheme that the recipe names."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if newurl.partition("://")[0] != req.full_url.partition("://")[0]:
            raise urllib.error.HTTPError(req.full_url, code, f"redirects to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_SameScheme)


def _bytes(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), size, offset)


def _has_size(path: Path, file: ShardFile) -> bool:
    try:
        return path.stat().st_size == file.size
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class ShardView:
    """An image within a shard."""

    name: str
    store: _Folder | _Fetched
    shard: ShardFile
    offset: int
    size: int
    sha256: str
    window: tuple[float, float] | None

    def load(self) -> np.ndarray:
        """The image as `FileView.load` returns it. Nothing is unpacked: the index says where the file's bytes are.

        Raises:
            UserError: the shard is missing, truncated, or has other bytes than were written.
            OSError: the file is no image.
        """
        content, path = self.store.read(self.shard, self.offset, self.size)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            found = f"image {self.name}, {self.size:,} bytes at {self.offset:,}: another SHA-256 than the index names"
            raise UserError("damaged-file", found, place=path, hint=self.store.hint)
        return read_image(content, f"{self.shard.name}, {self.name}", MAX_PIXELS, self.window)


class ShardedExams(LazyExams):
    """The exams of a split, made as they are read from the index, which is mapped into memory.

    An exam costs 8 bytes of memory: where its line begins.
    """

    def __init__(self, split: ShardedSplit, store: _Folder | _Fetched, *, verify: bool) -> None:
        self.split, self.store = split, store
        self.path = store.path(split.lines)
        if verify and digest(self.path) != split.lines.sha256:
            found = "another SHA-256 than the index names"
            raise UserError("damaged-file", found, place=self.path, hint=store.hint)
        with self.path.open("rb") as file:
            self.lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if split.lines.size else b""
        ends = [
            np.flatnonzero(np.frombuffer(self.lines[start : start + READ], np.uint8) == ord("\n")) + start
            for start in range(0, len(self.lines), READ)
        ]
        self.ends = np.concatenate([np.array([-1]), *ends])
        if len(self) != split.lines.exams:
            found = f"{len(self)} lines"
            raise UserError("damaged-file", found, place=self.path, expected=f"{split.lines.exams}", hint=DAMAGED)
        self.firsts = np.cumsum([0, *(shard.exams for shard in split.shards)])  # exam number where each shard begins

    def __len__(self) -> int:
        return len(self.ends) - 1

    def make(self, number: int) -> Exam:
        """The exam of a line of the index."""
        shard = self.split.shards[self.shard_of(number)]
        with reading(Path(f"{self.path}:{number + 1}"), DAMAGED):
            known = json.loads(self.lines[self.ends[number] + 1 : self.ends[number + 1]])
            views = tuple(self._view(view, shard) for view in known["views"])
            if not views:
                raise ValueError("no view")
            exam_id, patient, report = (str(known[name]) for name in ("id", "patient", "report"))
            return Exam(exam_id, patient, views, report, known["attributes"], known["rewording"])

    def shard_of(self, number: int) -> int:
        """The number of an exam's shard."""
        return int(np.searchsorted(self.firsts, number, side="right")) - 1

    def _view(self, view: dict[str, Any], shard: ShardFile) -> ShardView:
        offset, size, window = int(view["offset"]), int(view["size"]), view["window"]
        if offset < 0 or size < 0 or offset + size > shard.size:
            raise ValueError(f"{size} bytes at {offset} of a shard of {shard.size}")
        return ShardView(
            str(view["name"]), self.store, shard, offset, size, view["sha256"], tuple(window) if window else None
        )


@register("dataset", "webdataset")
class ShardedDataset:
    """Exams in tar shards, as `data shard` writes them: in a folder, behind a URL, or as the output of a command.

    The index is read first; it has the texts, and the place and SHA-256 of each image, which is verified when it is
    read. In a folder, any exam is read at once, and an epoch has the order of any data set. Shards behind a URL or a
    command are fetched whole, one group of `buffer` after another: an epoch shuffles the shards, and the exams of a
    group among each other. The order depends on the seed alone, for any number of processes and workers.

    Source:
        Tar layout of WebDataset: Aizman, Maltby, Breuel 2020, arXiv 2001.01858.

    Args:
        shards: Folder with index.json; or its URL, https://host/folder; or `pipe:COMMAND`, where {} is the name of a
            file that the command prints, as in `pipe:aws s3 cp s3://bucket/exams/{} -`.
        buffer: Shards of a URL or command among which exams are shuffled; the disk holds three times as many. [shards]
    """

    def __init__(self, *, shards: str, buffer: PositiveInt = 8, cache_dir: str) -> None:
        self.location, self.buffer = shards, buffer
        self.store: _Folder | _Fetched
        scheme, has_scheme, _ = shards.partition("://")
        if shards.startswith(PIPE):
            if "{}" not in shards:
                found = "the command has no {} in place of a file's name"
                raise UserError("wrong-format", found, place=KEY, expected=EXAMPLES["s3"])
            require_trusted_command(shards, KEY)
        elif has_scheme and not shards.startswith(URLS):
            hint = f"Read it through a command, such as {EXAMPLES.get(scheme, EXAMPLES['s3'])}."
            raise UserError("unsupported", f"found {scheme}://", place=KEY, expected="https:// or a folder", hint=hint)
        if shards.startswith((PIPE, *URLS)):
            self.store = _Fetched(shards, Path(cache_dir), most=3 * buffer)
        elif buffer != BUFFER:
            found = "a folder has exams in any order"
            raise UserError("ignored-setting", found, place="data.dataset.buffer", hint="Remove it.")
        else:
            self.store = _Folder(Path(shards))

    def splits(self) -> dict[str, Sequence[Exam]]:
        """The exams in the order of the index. In a folder, checks that every shard is there and of the right size.

        Raises:
            UserError: the index or a shard is missing, damaged or of another version, or cannot be fetched.
        """
        return dict(self._splits)

    def training_order(self, exams: Sequence[Exam]) -> Callable[[int, int], np.ndarray]:
        """The order in which an epoch reads exams: by shards if those are fetched; in a folder, any order is quick."""
        if isinstance(self.store, _Folder):
            return ShardOrder(np.zeros(len(exams), np.int32), 1)
        splits = self._index.splits.values()
        number_of = {shard.name: number for split in splits for number, shard in enumerate(split.shards)}
        shards: list[str] = [exam.views[0].shard.name for exam in exams]  # type: ignore[attr-defined]
        return ShardOrder(np.array([number_of[name] for name in shards], np.int32), self.buffer)

    @property
    def cache_key(self) -> str:
        """Hash of the index, which has the hash of every line and shard."""
        return f"webdataset-{hashlib.sha256(self._index.to_json().encode()).hexdigest()}"

    @cached_property
    def _index(self) -> ShardIndex:
        if isinstance(self.store, _Fetched):
            return ShardIndex.from_json(self.store.index(), Path(self.store.name(INDEX)))
        path = self.store.root / INDEX
        try:
            return ShardIndex.from_json(read_bounded(path), path)
        except FileNotFoundError:
            found = f"no index of shards ({KEY}){searched(path)}"
            hint = "`data shard` writes it after the last shard; start it again if it was stopped."
            raise UserError("no-such-file", found, place=path, hint=hint) from None

    @cached_property
    def _splits(self) -> dict[str, Sequence[Exam]]:
        problems: list[Problem] = []
        if isinstance(self.store, _Folder):
            for split in self._index.splits.values():
                for shard in split.shards:
                    try:
                        self.store.path(shard)
                    except UserError as error:
                        problems += error.problems
        if problems:
            raise UserError.of(problems)
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"  # the other processes of a machine would read the same
        found = self._index.splits
        return {
            name: ShardedExams(found[name], self.store, verify=is_first) if name in found else () for name in SPLITS
        }
