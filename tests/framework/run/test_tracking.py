"""What a run records, also on a disk that is full."""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from small_disk import fill, small_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector import projector_config_pb2

from framework import cli
from framework.run.tracking import RECORDS, Tracker


def test_records_on_a_full_disk_end_in_an_error_that_names_the_file_and_keep_those_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk, cli._hooks():
        tracker = Tracker(disk, writes=True, done=0, rewritten=())
        tracker.scalars(1, {"train/loss": 1.0})
        fill(disk)
        with pytest.raises(OSError, match="No space left") as caught:
            for step in range(2, 9999):
                tracker.scalars(step, {"train/loss": 1.0})
        assert caught.value.filename == str(disk / RECORDS)
        time.sleep(0.5)  # the thread of TensorBoard fails too
        with contextlib.suppress(OSError):
            tracker.close()
        lines = (disk / RECORDS).read_text().splitlines()
        assert json.loads(lines[0])["step"] == 1
    assert "Traceback" not in capfd.readouterr().err


def test_tensorboard_shows_every_value_of_the_records(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, writes=True, done=0, rewritten=())
    for step in (1, 2):
        tracker.scalars(step, {"train/loss": 2.0 / step, "train/lr": 0.25, "val/bleu_4": math.nan})
    tracker.close()
    board = EventAccumulator(str(tmp_path)).Reload()
    assert set(board.Tags()["scalars"]) == {"train/loss", "train/lr", "val/bleu_4"}
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    assert all(math.isnan(event.value) for event in board.Scalars("val/bleu_4"))


def test_the_projector_shows_each_point_with_its_columns(tmp_path: Path) -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2) / 3
    tracker = Tracker(tmp_path, writes=True, done=0, rewritten=())
    tracker.projector(vectors, {"topic": [0, 1, 1], "report": ["a\tb", "two\nlines", "甲状腺"]})
    tracker.close()
    config = projector_config_pb2.ProjectorConfig()
    text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), config)
    (points,) = config.embeddings
    rows = [line.split("\t") for line in (tmp_path / points.metadata_path).read_text().splitlines()]
    assert rows == [["topic", "report"], ["0", "a b"], ["1", "two lines"], ["1", "甲状腺"]]
    assert np.allclose(np.loadtxt(tmp_path / points.tensor_path, delimiter="\t"), vectors, atol=1e-5)


def test_without_tensorboard_there_are_only_the_records(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, writes=True, done=0, rewritten=(), tensorboard=False)
    tracker.scalars(1, {"train/loss": 1.0})
    tracker.sample(1, "a", np.zeros((1, 1, 4, 4), np.uint8), "reference", "prediction")
    tracker.projector(np.zeros((1, 2)), {"topic": [0]})
    tracker.close()
    assert [path.name for path in tmp_path.iterdir()] == [RECORDS] and tracker.hints == []
