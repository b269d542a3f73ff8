"""Writes and reads exams in tar shards beside webdataset's own writer and pipeline.

Exams of one grey image of 32 px as PNG and a report of 40 words, in shards of 1000. `data shard` writes in a process
per core, with the index; webdataset's ShardWriter writes in one process, without one. Readers decode images to arrays
in one process. Ours verifies the SHA-256 of each image. Shuffled, ours takes any exam of the set, webdataset fills a
buffer of 1000. Memory is that of a new process, without the mapped file: of the index alone, and of the list of all
exams that a run makes of it.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import webdataset as wds
from PIL import Image

from benchmarks.rounds import compare, parser, rows_of, start, write
from framework.data.shard_writing import write_shards
from framework.exam import Exam, LazyExams
from plugins.dataset.webdataset import ShardedDataset

SHARD, SIZE, BUFFER = 1000, 32, 1000
REPORT = (
    "The mass in the left breast is oval and hypoechoic with a circumscribed margin, no shadow is seen behind it. " * 2
)


@dataclass(frozen=True)
class Tiny:
    number: int

    @property
    def name(self) -> str:
        return f"{self.number}.png"

    def load(self) -> np.ndarray:
        return np.random.default_rng(self.number).integers(0, 255, (SIZE, SIZE), dtype=np.uint8)


@dataclass(frozen=True)
class TinyExams(LazyExams):
    """Exams that are made when they are read."""

    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def make(self, number: int) -> Exam:
        number += self.first
        return Exam(f"exam-{number:09d}", f"patient-{number:09d}", (Tiny(number),), f"{REPORT}{number} mm.")


@dataclass(frozen=True)
class TinySource:
    count: int

    cache_key = "tiny"

    def splits(self) -> dict[str, Sequence[Exam]]:
        return {
            "train": TinyExams(0, self.count),
            "val": TinyExams(self.count, 1),
            "test": TinyExams(self.count + 1, 1),
        }


def write_theirs(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    with wds.ShardWriter(f"{folder}/train-%06d.tar", maxcount=SHARD, verbose=0) as shards:
        for number, exam in enumerate(TinyExams(0, count)):
            buffer = io.BytesIO()
            Image.fromarray(exam.views[0].load()).save(buffer, "png")
            known = {"id": exam.id, "patient": exam.patient, "report": exam.report}
            shards.write({"__key__": f"{number:09d}", "json": known, "0.png": buffer.getvalue()})


def bytes_of(folder: Path) -> tuple[int, int]:
    """Bytes of the index, and of a list of its exams; of this process, which should be a new one."""
    before = _private()
    exams = ShardedDataset(shards=str(folder), cache_dir=".").splits()["train"]
    with_index = _private()
    listed = list(exams)
    assert len(listed) == len(exams)
    return with_index - before, _private() - with_index


def _private() -> int:
    """Resident bytes of this process that are not pages of a file."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


def main() -> None:
    if sys.argv[1:2] == ["--memory-of"]:
        print(json.dumps(bytes_of(Path(sys.argv[2]))))
        return
    parse = parser(__doc__)
    parse.add_argument("--exams", type=int, default=1_000_000)
    parse.add_argument("--sample", type=int, default=20_000, help="exams that one round reads")
    options = start(parse, quick={"exams": 300, "sample": 300})
    count, sample = options.exams, min(options.exams, options.sample)
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = Path(name) / "ours", Path(name) / "theirs"
        began = time.perf_counter()
        write_shards(TinySource(count), ours, exams_per_shard=SHARD)
        written = time.perf_counter()
        write_theirs(theirs, sample)
        rates = {"ours": [count / (written - began)], "webdataset": [sample / (time.perf_counter() - written)]}
        rows: list[Any] = rows_of("write", "exams/s", rates)
        exams = ShardedDataset(shards=str(ours), cache_dir=name).splits()["train"]
        urls = sorted(map(str, ours.glob("train-*.tar")))
        order = np.random.default_rng(0).permutation(count)[:sample]

        def read(numbers: Any) -> None:
            for number in numbers:
                exams[number].views[0].load()

        def pipeline(buffer: int) -> None:
            found = wds.WebDataset(urls, shardshuffle=len(urls) if buffer else False, seed=0)
            for _ in found.shuffle(buffer).decode("l8").slice(sample):
                pass

        works = {"ours": lambda: read(range(sample)), "webdataset": lambda: pipeline(0)}
        rows += compare("read in order", "exams", sample, works, options.rounds)
        works = {"ours": lambda: read(order), "webdataset": lambda: pipeline(BUFFER)}
        rows += compare("read shuffled", "exams", sample, works, options.rounds)
        command = [sys.executable, "-m", "benchmarks.sharding", "--memory-of", str(ours)]
        index, listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows += rows_of("memory of the index", "B/exam", {"ours": [index / count]})
        rows += rows_of("memory of all exams as a list", "B/exam", {"ours": [listed / count]})
        sizes = [sum(path.stat().st_size for path in ours.glob(f"*.{ending}")) for ending in ("jsonl", "tar")]
    write(rows, options, ("webdataset", "pillow"), exams=count, index_bytes=sizes[0], shard_bytes=sizes[1])


if __name__ == "__main__":
    main()
