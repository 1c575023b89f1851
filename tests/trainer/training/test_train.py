"""A training from films to a run folder: cut off, gone on with, refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightning")

import torch

from trainer.data.records import Dataset
from trainer.data.store import build_samples
from trainer.errors import DataError, RecipeError, RunError
from trainer.networks.registry import build_network
from trainer.training.module import share_outside
from trainer.training.progress import Pace, TrainingProgress
from trainer.training.run_folder import RunFolder, load_run
from trainer.training.train import train

MakeRecipe = Any
SOURCE = Path(__file__).parents[3]

#: Trains, and kills its own process without warning at a chosen moment of the second epoch.
_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from trainer.data.records import phantom_dataset
from trainer.recipe import load_recipe
from trainer.training import record
from trainer.training.progress import TrainingProgress
from trainer.training.train import train

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class InTheMiddle(TrainingProgress):
    def batch(self, pace):
        if pace.epoch == 2:
            die()

def link_and_die(source, target, link=record._link, calls=[]):
    link(source, target)
    calls.append(target)
    if len(calls) == 2:
        die()

if __name__ == "__main__":
    torch.set_num_threads(1)
    moment, recipe, out, cache = sys.argv[1:]
    if moment == "between checkpoints":
        record._link = link_and_die
    progress = InTheMiddle() if moment == "mid-epoch" else TrainingProgress()
    train(load_recipe(recipe), phantom_dataset(24), Path(out), progress=progress, cache=Path(cache))
"""


class Told(TrainingProgress):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.paces: list[Pace] = []
        self.epochs: list[bool] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def batch(self, pace: Pace) -> None:
        self.paces.append(pace)

    def epoch(self, pace: Pace, row: Any, better: bool) -> None:
        self.epochs.append(better)


class TestRunFolder:
    def test_leaves_a_whole_run_folder(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        told = Told()
        recipe = segmentation({"training.monitor": "mean_dice"})
        run = train(recipe, films, tmp_path / "run", progress=told, cache=cache)
        assert len(told.epochs) == 3
        assert told.epochs[0] is True  # the first is the best so far
        assert told.paces[-1].batch == told.paces[-1].batches == 3
        names = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
        assert names == {
            "recipe.toml", "split.csv", "data.json", "films.npz", "metrics.csv", "curves.png", "overlays",
            "checkpoints", "network.pt", "member.onnx", "run.json",
        }  # fmt: skip
        assert not list(run.folder.rglob("*.part"))
        assert run.facts["status"] == "finished"
        assert run.facts["steps"] == 9
        assert run.facts["films_per_second"] > 0
        assert [row["epoch"] for row in run.metrics] == [1, 2, 3]
        dice = [run.best[f"dice_{name}"] for name in run.recipe.data.regions]
        assert run.best["mean_dice"] == pytest.approx(np.nanmean(dice), abs=1e-6)
        assert run.best["lung_dice"] == pytest.approx((dice[1] + dice[2]) / 2, abs=1e-6)
        assert run.best["mean_dice"] == max(row["mean_dice"] for row in run.metrics)
        assert len(list((run.folder / "overlays").iterdir())) == min(6, len(run.split.validation))
        assert load_run(run.folder).recipe == run.recipe


@pytest.mark.usefixtures("without_export")
class TestSegmentation:
    def test_chosen_weights_give_the_chosen_epochs_metrics(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        run = train(segmentation(), films, tmp_path / "run", cache=cache)
        validation = run.samples("validation")
        with torch.inference_mode():
            found = run.network()(torch.from_numpy(np.array(validation.pictures, np.float32))).argmax(1).numpy()
        assert validation.labels is not None
        dice = np.full((len(validation), 4), np.nan)
        for film, (truth, answer) in enumerate(zip(validation.labels, found, strict=True)):
            for value in range(4):
                sizes = (truth == value).sum() + (answer == value).sum()
                if sizes:
                    dice[film, value] = 2 * ((truth == value) & (answer == value)).sum() / sizes
        assert run.best["mean_dice"] == pytest.approx(np.nanmean(np.nanmean(dice, axis=0)), abs=1e-5)

    def test_split_is_kept_by_name_and_part(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        run = train(segmentation({"training.epochs": 1, "data.films": 10}), films, tmp_path / "run", cache=cache)
        with (run.folder / "split.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["name"] for row in rows if row["part"] == "test"] == list(run.samples("test").names)
        assert len(run.split.train) == 10
        assert run.data["parts"] == {"train": 10, "validation": len(run.split.validation), "test": len(run.split.test)}
        assert len({row["name"] for row in rows}) == len(rows)

    def test_saved_copies_and_pixel_weights(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        changes = {"augmentation.saved.copies": 2, "loss.pixel_weights": "w2", "training.epochs": 1}
        run = train(segmentation(changes), films, tmp_path / "run", cache=cache)
        assert run.facts["films"] == 3 * len(run.split.train)
        assert np.isfinite(run.metrics[0]["train_loss"])

    def test_standardised_by_the_training_films(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        plain = segmentation({"training.epochs": 1})
        steps = [*plain.preprocess, {"step": "standardise", "from": "training"}]
        recipe = segmentation({"training.epochs": 1, "preprocess": steps})
        run = train(recipe, films, tmp_path / "run", cache=cache)
        step = run.recipe.preprocess[-1]
        assert run.data["standardise"] == {"mean": step["mean"], "std": step["std"]}
        learned = run.samples("train").pictures.astype(np.float64)
        assert learned.mean() == pytest.approx(0, abs=1e-3)
        assert learned.std() == pytest.approx(1, abs=1e-3)
        assert run.samples("test").pictures.mean(dtype=np.float64) != pytest.approx(0, abs=1e-3)
        assert load_run(run.folder).recipe == run.recipe
        assert train(recipe, films, tmp_path / "run", cache=cache).facts == run.facts

    def test_learns(self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path) -> None:
        changes = {"training.steps_per_epoch": 20, "training.epochs": 2}
        run = train(segmentation(changes), films, tmp_path / "run", cache=cache)
        assert run.metrics[-1]["train_loss"] < 0.8 * run.metrics[0]["train_loss"]

    def test_a_metric_without_its_regions_is_refused(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        recipe = segmentation({"training.monitor": "lung_dice", "data.regions": ["background", "spine"]})
        with pytest.raises(RecipeError, match=r"lung_dice.*mean_dice"):
            train(recipe, films, tmp_path / "run", cache=cache)
        assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("without_export")
class TestClassification:
    def test_trains_and_measures(self, classification: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path) -> None:
        run = train(classification(), films, tmp_path / "run", cache=cache)
        assert run.best["mean_auroc"] == pytest.approx(
            (run.best["auroc_pneumonia"] + run.best["auroc_no_finding"]) / 2, abs=1e-6
        )
        assert set(run.data["findings"]["train"]["pneumonia"]) == {"present", "absent"}
        assert (run.folder / "overlays" / "validation-1.png").is_file()

    def test_guidance_trains_the_place_head(
        self, classification: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        options = {"base_width": 2, "guided": True, "half_size": True}
        changes = {"loss.guidance": 1.0, "network.options": options, "augmentation.live.rotation": 5.0}
        run = train(classification(changes), films, tmp_path / "run", cache=cache)
        torch.manual_seed(run.recipe.training.seed)
        before = build_network(run.recipe).state_dict()["network.place.weight"]
        assert not torch.equal(run.network().state_dict()["network.place.weight"], before)

    def test_evidence_moves_the_maps_into_the_lungs(
        self, classification: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        shares = []
        for evidence in (0.0, 20.0):
            changes = {"loss.evidence": evidence, "loss.name": "binary_cross_entropy", "training.epochs": 4}
            run = train(classification(changes), films, tmp_path / f"run-{evidence}", cache=cache)
            told = classification({**changes, "loss.evidence": 1.0})
            samples = build_samples(films.for_recipe(told), range(16), told, cache)
            assert samples.labels is not None
            with torch.no_grad():
                maps = run.network()(torch.from_numpy(samples.pictures.astype(np.float32)))[1]
            lungs = torch.from_numpy((samples.labels > 0).astype(np.float32))[:, None]
            shares.append(float(share_outside(maps, lungs)))
        assert shares[1] < shares[0]


@pytest.mark.usefixtures("without_export")
class TestEnd:
    def test_patience_ends_it_and_the_best_epoch_is_kept(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        changes = {"training.patience": 1, "training.epochs": 50, "optimiser.rate": 1e-12, "training.ema": 0.0}
        run = train(segmentation({**changes, "training.monitor": "mean_dice"}), films, tmp_path / "run", cache=cache)
        assert len(run.metrics) < 50
        assert run.facts["chosen_epoch"] == len(run.metrics) - 1

    def test_last_weights_on_request(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        changes = {"training.keep": "last", "training.epochs": 2}
        run = train(segmentation(changes), films, tmp_path / "run", cache=cache)
        state = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert run.facts["chosen_epoch"] == 2
        assert torch.equal(run.network().state_dict()["head.bias"], state["network.head.bias"])


@pytest.mark.usefixtures("without_export")
class TestResuming:
    @pytest.mark.parametrize("moment", ["mid-epoch", "between checkpoints"])
    def test_a_killed_training_ends_with_the_same_metrics(
        self, moment: str, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        recipe = segmentation()
        whole = train(recipe, films, tmp_path / "whole", cache=cache)
        script, out = tmp_path / "killed.py", tmp_path / "killed"
        script.write_text(_KILLED, "utf-8")
        process = subprocess.run(
            [sys.executable, str(script), moment, str(tmp_path / "tiny-regions.toml"), str(out), str(cache)],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        with pytest.raises(RunError, match="not finished"):
            load_run(out)
        resumed = train(recipe, films, out, cache=cache)
        assert _metrics(out) == _metrics(tmp_path / "whole")
        for name, weights in whole.network().state_dict().items():
            assert torch.equal(weights, resumed.network().state_dict()[name]), name

    @pytest.mark.parametrize("epoch", [1, 2, 3])
    def test_metrics_that_were_not_written_are_written_from_the_checkpoint(
        self,
        epoch: int,
        segmentation: MakeRecipe,
        films: Dataset,
        cache: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        recipe = segmentation()
        train(recipe, films, tmp_path / "whole", cache=cache)
        write = RunFolder.write_metrics

        def fail(folder: RunFolder, history: Any) -> None:
            if len(history) == epoch:
                raise OSError("no space left")
            write(folder, history)

        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
            patch.setattr(RunFolder, "write_metrics", fail)
            train(recipe, films, tmp_path / "stopped", cache=cache)
        told = Told()
        train(recipe, films, tmp_path / "stopped", cache=cache, progress=told)
        assert len(told.epochs) == 3 - epoch
        assert _metrics(tmp_path / "stopped") == _metrics(tmp_path / "whole")

    def test_a_training_that_only_missed_its_end_is_not_trained_on(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = segmentation({"training.patience": 1, "optimiser.rate": 1e-12, "training.monitor": "mean_dice"})
        with monkeypatch.context() as patch, pytest.raises(OSError, match="gone"):
            patch.setattr("trainer.training.train._finish", _fail)
            train(recipe, films, tmp_path / "run", cache=cache)
        before = _metrics(tmp_path / "run")
        told = Told()
        run = train(recipe, films, tmp_path / "run", cache=cache, progress=told)
        assert told.epochs == []
        assert run.facts["status"] == "finished"
        assert _metrics(tmp_path / "run") == before

    def test_dropout_and_findings_too(
        self, classification: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        recipe = classification({"training.epochs": 3})
        train(recipe, films, tmp_path / "whole", cache=cache)
        _stopped(recipe, films, tmp_path / "stopped", cache, epoch=2)
        train(recipe, films, tmp_path / "stopped", cache=cache)
        assert _metrics(tmp_path / "stopped") == _metrics(tmp_path / "whole")

    def test_mixed_films_and_sigmoid_too(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        changes = {
            "network.activation": "sigmoid",
            "data.overlapping": True,
            "loss.name": "class_frequency_dice",
            "augmentation.mixup": 0.3,
            "training.epochs": 2,
        }
        recipe = segmentation(changes)
        run = train(recipe, films, tmp_path / "whole", cache=cache)
        assert "dice_background" not in run.best
        assert len(list((run.folder / "overlays").iterdir())) > 0
        _stopped(recipe, films, tmp_path / "stopped", cache, epoch=2)
        train(recipe, films, tmp_path / "stopped", cache=cache)
        assert _metrics(tmp_path / "stopped") == _metrics(tmp_path / "whole")

    def test_ctrl_c_leaves_what_can_be_gone_on_with(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        handler = signal.getsignal(signal.SIGINT)
        _stopped(segmentation(), films, tmp_path / "run", cache, epoch=2)
        assert signal.getsignal(signal.SIGINT) is handler
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
        assert train(segmentation(), films, tmp_path / "run", cache=cache).facts["status"] == "finished"

    def test_a_finished_training_is_not_trained_again(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        first = train(segmentation({"training.epochs": 1}), films, tmp_path / "run", cache=cache)
        told = Told()
        again = train(segmentation({"training.epochs": 1}), films, tmp_path / "run", cache=cache, progress=told)
        assert again.facts == first.facts
        assert told.epochs == []
        assert any("already" in line for line in told.lines)

    def test_another_recipe_is_refused_and_named(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        train(segmentation({"training.epochs": 1}), films, tmp_path / "run", cache=cache)
        other = segmentation({"training.epochs": 1, "optimiser.rate": 0.5})
        with pytest.raises(RunError, match=r"optimiser\.rate: 0\.01 → 0\.5"):
            train(other, films, tmp_path / "run", cache=cache)
        fresh = train(other, films, tmp_path / "run", cache=cache, resume=False)
        assert fresh.recipe.optimiser.rate == 0.5

    def test_other_films_are_refused(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        recipe = segmentation({"training.epochs": 1})
        train(recipe, films, tmp_path / "run", cache=cache)
        path = tmp_path / "run" / "data.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "digest": "0" * 64}), "utf-8")
        with pytest.raises(RunError, match=r"other data .*000000000000"):
            train(recipe, films, tmp_path / "run", cache=cache)

    def test_one_process_at_a_time(self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path) -> None:
        recipe = segmentation({"training.epochs": 1})
        with RunFolder(tmp_path / "run").held(), pytest.raises(RunError, match="Another process"):
            train(recipe, films, tmp_path / "run", cache=cache)
        assert train(recipe, films, tmp_path / "run", cache=cache).facts["epochs"] == 1

    def test_a_folder_of_other_things_is_left_alone(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "letter.txt").write_text("dear")
        with pytest.raises(RunError, match="other things"):
            train(segmentation(), films, tmp_path / "run", cache=cache, resume=False)
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["letter.txt"]


@pytest.mark.usefixtures("without_export")
class TestRefusals:
    def test_films_without_a_positive_label_for_a_loss_that_needs_one(
        self, classification: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        recipe = classification({"loss.name": "distribution_balanced", "data.findings": ["pneumonia"]})
        with pytest.raises(DataError, match=r"phantom-\d+ has no positive label"):
            train(recipe, films, tmp_path / "run", cache=cache)


class _Stopping(TrainingProgress):
    def __init__(self, epoch: int) -> None:
        self.stop_at = epoch

    def batch(self, pace: Pace) -> None:
        if pace.epoch == self.stop_at:
            raise KeyboardInterrupt


def _stopped(recipe: Any, films: Dataset, out: Path, cache: Path, *, epoch: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(recipe, films, out, cache=cache, progress=_Stopping(epoch))


def _fail(*_arguments: Any) -> None:
    raise OSError("gone")


def _metrics(folder: Path) -> str:
    return (folder / "metrics.csv").read_text("utf-8")


@pytest.mark.slow
class TestSeveralDevices:
    def test_two_processes_train_as_one(
        self, segmentation: MakeRecipe, films: Dataset, cache: Path, tmp_path: Path
    ) -> None:
        """Batch normalisation sees half a batch each, so the weights are close, not equal."""
        recipe = segmentation({"training.monitor": "mean_dice", "optimiser.rate": 1e-4})
        alone = train(recipe, films, tmp_path / "alone", cache=cache)
        shared = train(recipe, films, tmp_path / "shared", cache=cache, devices=2)
        assert [row["step"] for row in shared.metrics] == [3, 6, 9]
        for one, other in zip(alone.metrics, shared.metrics, strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=0.05)
            assert other["train_loss"] == pytest.approx(one["train_loss"], rel=0.1)
        assert shared.facts["devices"] == 2
