"""What a terminal shows while a run trains, and after it was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import ROOT
from screen import OnTerminal, on_screen

from framework.checkpoint.format import TrainState
from framework.run.training_display import TrainingDisplay
from framework.runtime import live
from framework.runtime.errors import STOPPED, USER_ERROR

SMOKE = str(ROOT / "recipes" / "smoke.yaml")
TERMS = ["next_token", "topic", "global_semantic"]
VALUES = {"loss": 2.3141, "exams_per_s": 52.13, "memory_gib": 1.237, "lr": 3.1e-4, **dict.fromkeys(TERMS, 0.5)}
SCORES = {"bleu_4": 0.412, "bleu_1": 0.6, "cider": 1.22, "findings_f1": 0.51}
BASELINES = {"bleu_4": 0.38, "cider": 0.91, "findings_f1": 0.48}


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_epoch_steps_speed_losses_and_scores_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen = on_screen(monkeypatch, columns)
    state = TrainState(step=120, epoch=2)
    display = TrainingDisplay(state, 8, 384, TERMS)
    state.step = 121
    display.show_values(VALUES)
    display.show_scores(SCORES, BASELINES)
    display.show("scoring")
    rows = screen.rows
    display.close()
    assert len(rows) == 5 and all(len(row) < columns for row in rows), rows
    assert rows[1].startswith("epoch 3/8") and ("121/384" in rows[1] or columns == 40)
    assert rows[3].startswith("loss 2.314  next_token 0.500") and rows[4].startswith("val/baseline  bleu_4 0.412/0.380")
    if columns > 40:
        assert rows[2] == "52.1 exams/s  1.24 GiB  lr 0.00031  scoring"
        assert rows[4] == "val/baseline  bleu_4 0.412/0.380  cider 1.220/0.910  findings_f1 0.510/0.480"


def test_elsewhere_it_is_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(live, "LINE_S", 0.0)
    display = TrainingDisplay(TrainState(step=120, epoch=2), 8, 384, TERMS)
    display.show_values(VALUES)
    display.close()
    assert capsys.readouterr().err.splitlines()[-1] == (
        "epoch 3/8  step 120/384  52.1 exams/s  1.24 GiB  lr 0.00031  loss 2.314"
    )


def test_ctrl_c_on_a_terminal_leaves_lines_alone(work: Path) -> None:
    keys = ["train.epochs=200", "train.log_every=1", "run.name=pressed"]
    with OnTerminal(SMOKE, *keys, cwd=work) as run:
        run.until("val/baseline  bleu_4")
        run.press("\x03")
        run.until("SIGINT: saving at the end of this step; press again to stop at once")
        assert run.wait() == STOPPED
    rows = [row for row in run.screen.rows if row]
    assert rows[-1].endswith("resume=runs/smoke/pressed") or "Resume with" in " ".join(rows[-2:])
    assert any(row.startswith("epoch 1/200  loss ") and "(baseline " in row for row in rows)
    assert not [row for row in rows if "━" in row or "exams/s" in row], "the display is gone"
    assert "\x1b[?25l" not in run.text and run.screen.column == 0, "the cursor is shown, on a line of its own"


def test_an_error_on_a_terminal_is_the_last_that_is_shown(work: Path) -> None:
    keys = ["optimizer.lr=1e30", "train.max_grad_norm=null", "run.name=wrong"]
    with OnTerminal(SMOKE, *keys, cwd=work) as run:
        assert run.wait() == USER_ERROR
    rows = [row for row in run.screen.rows if row]
    assert "[non-finite]" in " ".join(rows[-6:]) and not [row for row in rows if "━" in row]
