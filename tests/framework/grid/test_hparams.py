"""The cells of a grid in TensorBoard's HParams, read back from the event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hand_made import BLEU, cell, result, row, two_axes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from framework.grid.hparams import write_hparams

WEIGHT = "losses.global_semantic.weight"


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def session(board: EventAccumulator) -> tuple[dict[str, Any], str | None]:
    """Parameters of a cell, and how it ended."""
    tags = board.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(tags[metadata.SESSION_START_INFO_TAG])
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    if metadata.SESSION_END_INFO_TAG not in tags:
        return values, None
    end = metadata.parse_session_end_info_plugin_data(tags[metadata.SESSION_END_INFO_TAG])
    return values, end.DESCRIPTOR.fields_by_name["status"].enum_type.values_by_number[end.status].name


def test_each_cell_is_an_entry_with_its_parameters_and_scores(tmp_path: Path) -> None:
    grid = two_axes(tmp_path / "runs")
    write_hparams(grid, tmp_path / "board")
    tags = read(tmp_path / "board").PluginTagToContent("hparams")
    experiment = metadata.parse_experiment_plugin_data(tags[metadata.EXPERIMENT_TAG])
    assert [info.name for info in experiment.hparam_infos] == ["distiller", WEIGHT, "seed"]
    assert [info.name.tag for info in experiment.metric_infos] == list(grid.metrics)
    for one in (one for each in grid.rows for one in each.cells):
        board = read(tmp_path / "board" / one.digest)
        settings = {"distiller": one.settings["distiller"], WEIGHT: float(one.settings[WEIGHT]), "seed": one.seed}
        ends = {"done": "STATUS_SUCCESS", "failed": "STATUS_FAILURE", "queued": None}
        assert session(board) == (settings, ends[one.status])
        found = {tag: board.Scalars(tag)[0].value for tag in board.Tags()["scalars"]}
        assert found.keys() == one.scores.keys()
        assert all(abs(found[name] - value) < 1e-6 for name, value in one.scores.items())


def test_a_later_report_replaces_the_entries(tmp_path: Path) -> None:
    write_hparams(two_axes(tmp_path / "runs"), tmp_path / "board")
    only = cell(tmp_path / "runs" / "only", 1, {"a": "x"}, 0.5)
    write_hparams(result([row("x", {"a": "x"}, [only])], {"a": ["x"]}), tmp_path / "board")
    assert [path.name for path in (tmp_path / "board").iterdir() if path.is_dir()] == [only.digest]
    assert len(read(tmp_path / "board" / only.digest).Scalars(BLEU)) == 1
