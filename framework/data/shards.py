"""The form of a data set in shards: tar files of exams as WebDataset lays them out, and an index beside them.

    index.json            version, and for each split its number of exams and patients, and its files with hashes
    train.jsonl           one line per exam: what is known of it, and where its images lie in the shard
    train-000000.tar      000000000.json, 000000000.0.png, 000000000.1.png, 000000001.json, ...

Exams are in the order of the index. A reader needs the index alone to find an image, and does not unpack a shard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.check import SPLITS
from framework.runtime.errors import UserError
from framework.runtime.files import checked

INDEX = "index.json"
VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(tar|jsonl)")  # of files that an index names: no folder, no escape
DAMAGED = "Copy it again, or write the shards again with `data shard`."


@dataclass(frozen=True)
class ShardFile:
    """A file of a data set in shards, as it was written."""

    name: str
    exams: int
    size: int
    sha256: str


@dataclass(frozen=True)
class ShardedSplit:
    """A split: the file with a line per exam, and the shards in the order of these lines."""

    lines: ShardFile
    patients: int
    shards: tuple[ShardFile, ...]


@dataclass(frozen=True)
class ShardIndex:
    """What index.json contains. `key` changes with the content of the data set from which the shards were written."""

    key: str
    splits: dict[str, ShardedSplit]

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, content: bytes, place: Path) -> ShardIndex:
        """Raises UserError: `damaged-file`, or `wrong-version`."""
        try:
            found: Any = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError("damaged-file", f"not JSON ({error})", place=place, hint=DAMAGED) from None
        version = found.pop("version", None) if isinstance(found, dict) else None
        if version != VERSION:
            hint = "Write the shards again with `data shard`, or use the version of Sonoscribe that wrote them."
            raise UserError(
                "wrong-version", f"version {version}", place=place, expected=f"version {VERSION}", hint=hint
            )
        index: ShardIndex = checked(found, cls, place, DAMAGED)
        for split, each in index.splits.items():
            files = (each.lines, *each.shards)
            if split not in SPLITS or not all(NAME.fullmatch(file.name) and file.size >= 0 for file in files):
                found = f"split {split} names a file that no index contains"
                raise UserError("damaged-file", found, place=place, hint=DAMAGED)
            if each.lines.exams != sum(shard.exams for shard in each.shards):
                found = f"split {split} has {each.lines.exams} exams, and its shards another number"
                raise UserError("damaged-file", found, place=place, hint=DAMAGED)
        return index


@dataclass(frozen=True)
class ShardOrder:
    """The order in which an epoch reads exams of shards that are fetched one after another.

    The shards are in random order, in groups of `buffer`; the exams of a group are in random order. The order depends
    on (seed, epoch) alone, and a process needs the shards of one group at a time.
    """

    shard_of: np.ndarray  # [n], the number of each exam's shard
    buffer: int

    def __call__(self, seed: int, epoch: int) -> np.ndarray:
        draw = np.random.default_rng([seed, epoch])
        exams = draw.permutation(len(self.shard_of))  # the order of other data sets, which one group keeps
        place_of = draw.permutation(int(self.shard_of.max()) + 1)  # of each shard in this epoch
        groups = place_of[self.shard_of[exams]] // self.buffer
        return exams[np.argsort(groups, kind="stable")]


def counts(index: ShardIndex, splits: Sequence[str] = SPLITS) -> str:
    """`train 24 exams of 24 patients in 1 shard, val ...`."""
    return ", ".join(
        f"{name} {each.lines.exams} exams of {each.patients} patients in {len(each.shards)} shards"
        for name in splits
        if (each := index.splits.get(name)) is not None
    )
