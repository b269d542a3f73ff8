"""The cells of a grid in TensorBoard's HParams: one entry per cell, with its parameters and its scores."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from framework.grid.results import CellResult, GridResult
from framework.runtime.files import atomic_write

EVENTS = "events.out.tfevents.grid"
VERSION = "brain.Event:2"  # of the format of event files, in their first event
ENDS = {"done": "STATUS_SUCCESS", "failed": "STATUS_FAILURE"}  # HParams shows any other cell as not ended


def write_hparams(result: GridResult, folder: Path) -> None:
    """Writes an event file for each cell, and one for the grid, in place of those of an earlier report.

    Parameters are the settings of a cell and its seed, as numbers where all labels of a setting are. Scores are those
    of the table, then the others without their parts.
    """
    from tensorboard.plugins.hparams.api_pb2 import DataType, Experiment, HParamInfo, MetricInfo, MetricName, Status
    from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_END_INFO_TAG, SESSION_START_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

    cells = [cell for row in result.rows for cell in row.cells]
    numeric = {name for name in _names(cells) if all(_number(label) is not None for label in _labels(cells, name))}
    scores = _scores(result, cells)

    def kind(name: str) -> int:
        number: int = DataType.Value("DATA_TYPE_FLOAT64" if name in numeric else "DATA_TYPE_STRING")
        return number

    experiment = Experiment(
        hparam_infos=[HParamInfo(name=name, type=kind(name)) for name in _names(cells)],
        metric_infos=[MetricInfo(name=MetricName(tag=name)) for name in scores],
    )
    shutil.rmtree(folder, ignore_errors=True)
    _write(folder, [_plugin_data(EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))])
    for cell in cells:
        start = SessionStartInfo()
        for name, label in _settings(cell).items():
            if name in numeric:
                start.hparams[name].number_value = _number(label)
            else:
                start.hparams[name].string_value = label
        written = [_plugin_data(SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))]
        if found := {name: cell.scores[name] for name in scores if name in cell.scores}:
            written.append(_scalars(found))
        if cell.status in ENDS:
            end = SessionEndInfo(status=Status.Value(ENDS[cell.status]))
            written.append(_plugin_data(SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)))
        _write(folder / cell.digest, written)


def _settings(cell: CellResult) -> dict[str, str]:
    return {**cell.settings, "seed": str(cell.seed)}


def _names(cells: Sequence[CellResult]) -> list[str]:
    return list(dict.fromkeys(name for cell in cells for name in _settings(cell)))


def _labels(cells: Sequence[CellResult], name: str) -> list[str]:
    return [settings[name] for settings in map(_settings, cells) if name in settings]


def _scores(result: GridResult, cells: Sequence[CellResult]) -> list[str]:
    whole = [name for cell in cells for name in cell.scores if name.count("/") == 1]
    return list(dict.fromkeys([*result.metrics, *whole]))


def _number(label: str) -> float | None:
    with contextlib.suppress(ValueError):
        return float(label)
    return None


def _plugin_data(tag: str, data: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.metadata import NULL_TENSOR, create_summary_metadata

    value = Summary.Value(tag=tag, metadata=create_summary_metadata(data), tensor=NULL_TENSOR)
    return Summary(value=[value])


def _scalars(values: dict[str, float]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def _write(folder: Path, summaries: Iterable[Any]) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    content, now = io.BytesIO(), time.time()
    events = [Event(wall_time=now, file_version=VERSION)]
    events += [Event(wall_time=now, step=0, summary=summary) for summary in summaries]
    for event in events:
        RecordWriter(content).write(event.SerializeToString())
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / EVENTS, content.getvalue())
