"""What a person sees of a training."""

from __future__ import annotations

import io
import pickle

import pytest

pytest.importorskip("lightning")

from rich.console import Console

from trainer.training import progress
from trainer.training.progress import BarProgress, LineProgress, Pace, epoch_line, progress_for, spoken

PACE = Pace(epoch=2, epochs=5, batch=3, batches=10, loss=0.51234, films_per_second=12.34, seconds_left=3725.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_time_is_spoken(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


def test_an_epochs_line_names_what_was_measured() -> None:
    row = {"epoch": 2.0, "train_loss": 0.5, "loss": 0.6, "mean_dice": 0.75, "dice_spine": 0.1}
    line = epoch_line(PACE, row, better=True)
    assert line.startswith("epoch 2/5: training loss 0.5000, validation loss 0.6000, Dice 0.7500 (best);")
    assert "12.3 films/s" in line
    assert "1 h 02 min left" in line
    assert "AUROC" not in line


def test_lines_between_epochs_come_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines = LineProgress(stderr=False)
    for second in range(0, 181, 5):
        clock[0] = float(second)
        lines.batch(PACE)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert printed[0].startswith("epoch 2/5, batch 3/10, loss 0.5123, 12.3 films/s")


def test_lines_can_be_sent_to_other_processes() -> None:
    assert isinstance(pickle.loads(pickle.dumps(LineProgress())), LineProgress)


def test_a_terminal_gets_a_bar_and_a_file_lines() -> None:
    stream = io.StringIO()
    bar = progress_for(Console(file=stream, force_terminal=True))
    bar.batch(PACE)
    bar.epoch(PACE, {"loss": 0.5}, better=False)
    bar.close()
    assert isinstance(bar, BarProgress)
    assert "validation loss 0.5000" in stream.getvalue()
    assert isinstance(progress_for(Console(file=stream)), LineProgress)
