"""Films on their way to the network."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightning")

import torch

from trainer.data.reading import UNDRAWN
from trainer.data.records import Dataset
from trainer.data.splits import Split
from trainer.data.store import Samples, build_samples
from trainer.errors import DataError, RunError
from trainer.training.data_module import TrainingData
from trainer.training.film_dataset import FilmDataset
from trainer.training.saved_copies import build_copies
from trainer.training.stored import open_samples, store_samples

PARTS = Split(tuple(range(8)), (8, 9, 10), (11,))


STILL = {"augmentation.live.rotation": 0.0, "augmentation.live.gamma": 0.0}


def _standardised(segmentation: Any, mean: float, std: float) -> dict[str, Any]:
    return {"preprocess": [*segmentation().preprocess, {"step": "standardise", "mean": mean, "std": std}]}


def _samples(recipe: Any, films: Dataset, cache: Path) -> Samples:
    usable = films.for_recipe(recipe)
    return build_samples(usable, range(12), recipe, cache)


def _trainer(rank: int = 0, world: int = 1, epoch: int = 0) -> Any:
    """What a data module asks Lightning's trainer."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=epoch))
    return SimpleNamespace(global_rank=rank, world_size=world, fit_loop=SimpleNamespace(epoch_progress=progress))


class TestItems:
    def test_validation_shows_films_as_they_are(self, segmentation: Any, films: Dataset, cache: Path) -> None:
        samples = _samples(segmentation(), films, cache)
        item = FilmDataset(samples, (3, 5), segmentation())[0, 1]
        assert item["film"] == 1
        np.testing.assert_array_equal(item["picture"], samples.pictures[5].astype(np.float32))
        assert samples.labels is not None
        np.testing.assert_array_equal(item["labels"], samples.labels[5])
        assert set(item) == {"picture", "labels", "film"}

    def test_variation_depends_on_film_and_pass_alone(self, segmentation: Any, films: Dataset, cache: Path) -> None:
        recipe = segmentation()
        samples = _samples(recipe, films, cache)
        first, second = (FilmDataset(samples, PARTS.train, recipe, live=True) for _ in range(2))
        _ = second[0, 1]
        assert torch.equal(first[3, 2]["picture"], second[3, 2]["picture"])
        assert torch.equal(first[3, 2]["labels"], second[3, 2]["labels"])
        assert not torch.equal(first[3, 2]["picture"], first[4, 2]["picture"])

    def test_copies_come_after_the_films(self, segmentation: Any, films: Dataset, cache: Path, tmp_path: Path) -> None:
        recipe = segmentation({"augmentation.saved.copies": 2, "loss.pixel_weights": "w1"})
        samples = _samples(recipe, films, cache)
        copies = build_copies(samples, PARTS.train, recipe, tmp_path)
        assert copies is not None
        dataset = FilmDataset(samples, PARTS.train, recipe, copies=copies, frequencies=np.full(4, 0.25))
        assert len(dataset) == 3 * 8
        np.testing.assert_array_equal(dataset[0, 8 + 8 + 3]["picture"][0], copies.pictures[8 + 3].astype(np.float32))
        assert copies.labels is not None
        np.testing.assert_array_equal(dataset[0, 8]["labels"], copies.labels[0])
        assert dataset[0, 8]["weights"].shape == (32, 32)
        assert not np.array_equal(copies.pictures[3], copies.pictures[8 + 3])

    def test_mixed_films_are_drawn_anew_for_each_pass(self, segmentation: Any, films: Dataset, cache: Path) -> None:
        recipe = segmentation({"augmentation.mixup": 0.4, "loss.name": "focal_tversky", **STILL})
        samples = _samples(recipe, films, cache)
        mixed, again = (FilmDataset(samples, PARTS.train, recipe, live=True) for _ in range(2))
        pictures, labels = samples.pictures[:, 0].astype(np.float32), samples.labels
        assert labels is not None
        met, shares = set(), []
        for seen in range(6):
            for film in PARTS.train:
                item = mixed[seen, film]
                share = float(item["share"])
                others = [i for i in PARTS.train if np.array_equal(labels[i], item["mixed_labels"])]
                wanted = [share * pictures[film] + (1 - share) * pictures[i] for i in others]
                assert film not in others
                assert any(np.allclose(item["picture"][0], each, atol=1e-6) for each in wanted)
                np.testing.assert_array_equal(item["labels"], labels[film])
                met.add((film, *others))
                shares.append(share)
                repeated = again[seen, film]
                assert torch.equal(repeated["picture"], item["picture"])
                assert torch.equal(repeated["share"], item["share"])
        assert len(met) > len(PARTS.train)
        assert len(set(shares)) == len(shares)
        assert 0.2 < np.mean(shares) < 0.8
        assert set(FilmDataset(samples, PARTS.validation, recipe)[0, 0]) == {"picture", "labels", "film"}

    def test_mixed_films_make_a_batch(self, segmentation: Any, films: Dataset, cache: Path) -> None:
        recipe = segmentation({"augmentation.mixup": 0.2, "loss.name": "tversky"})
        data = TrainingData(_samples(recipe, films, cache), PARTS, recipe)
        data.trainer = _trainer()
        batch = next(iter(data.train_dataloader()))
        assert batch["share"].dtype == batch["picture"].dtype == torch.float32
        assert batch["share"].shape == (4,)
        assert batch["mixed_labels"].shape == batch["labels"].shape == (4, 32, 32)

    def test_standardised_films_are_varied_before(self, segmentation: Any, films: Dataset, cache: Path) -> None:
        """A shifted film uncovers black, whatever the network is shown for it."""
        shifted = {"augmentation.live.shift": 0.3, "augmentation.live.rotation": 0.0, "augmentation.live.gamma": 0.3}
        plain, shown = segmentation(shifted), segmentation(shifted | _standardised(segmentation, 0.4, 0.2))
        pictures = [
            FilmDataset(_samples(recipe, films, cache), PARTS.train, recipe, live=True)[5, 2]["picture"].numpy()
            for recipe in (plain, shown)
        ]
        np.testing.assert_allclose(pictures[1] * 0.2 + 0.4, pictures[0], atol=5e-3)
        assert pictures[1].min() == pytest.approx(-2, abs=1e-3)

    def test_copies_of_standardised_films(self, segmentation: Any, films: Dataset, cache: Path, tmp_path: Path) -> None:
        saved = {"augmentation.saved.copies": 1}
        pictures = []
        for number, recipe in enumerate(
            [segmentation(saved), segmentation(saved | _standardised(segmentation, 0.4, 0.2))]
        ):
            copies = build_copies(_samples(recipe, films, cache), PARTS.train, recipe, tmp_path / str(number))
            assert copies is not None
            pictures.append(copies.pictures.astype(np.float32))
        np.testing.assert_allclose(pictures[1] * 0.2 + 0.4, pictures[0], atol=5e-3)

    def test_copies_are_made_once(self, segmentation: Any, films: Dataset, cache: Path, tmp_path: Path) -> None:
        recipe = segmentation({"augmentation.saved.copies": 1})
        samples = _samples(recipe, films, cache)
        told: list[int] = []
        build_copies(samples, PARTS.train, recipe, tmp_path, lambda done, _total: told.append(done))
        again = build_copies(samples, PARTS.train, recipe, tmp_path, lambda done, _total: told.append(done))
        assert told == list(range(1, 9))
        assert again is not None
        other = build_copies(
            samples, PARTS.train, segmentation({"augmentation.saved.copies": 1, "training.seed": 2}), tmp_path
        )
        assert other is not None
        assert not np.array_equal(other.pictures, again.pictures)

    def test_opacity_moves_with_the_picture(self, classification: Any, films: Dataset, cache: Path) -> None:
        changes = {"loss.guidance": 1.0, "network.options": {"guided": True}, "augmentation.live.flip": 1.0}
        recipe = classification(changes)
        samples = _samples(recipe, films, cache)
        assert samples.places is not None
        sick = int(np.argmax(samples.places.reshape(12, -1).max(axis=1)))
        plain = FilmDataset(samples, (sick,), recipe)[0, 0]
        mirrored = FilmDataset(samples, (sick,), recipe, live=True)[0, 0]
        assert plain["opacity"].max() > 0.1
        torch.testing.assert_close(mirrored["opacity"], plain["opacity"].flip(-1), atol=1 / 255, rtol=0)
        expected = np.kron(samples.places[sick], np.ones((2, 2)))
        np.testing.assert_allclose(plain["opacity"][0], expected, atol=0.5 / 255 + 1e-6)

    def test_lungs_move_with_the_picture(self, classification: Any, films: Dataset, cache: Path) -> None:
        recipe = classification({"loss.evidence": 1.0, "augmentation.live.flip": 1.0})
        samples = _samples(recipe, films, cache)
        assert samples.labels is not None
        plain = FilmDataset(samples, (4,), recipe)[0, 0]
        mirrored = FilmDataset(samples, (4,), recipe, live=True)[0, 0]
        np.testing.assert_array_equal(plain["lungs"][0], samples.labels[4] > 0)
        torch.testing.assert_close(mirrored["lungs"], plain["lungs"].flip(-1))
        undrawn = replace(samples, labels=np.full_like(samples.labels, UNDRAWN))
        assert FilmDataset(undrawn, (4,), recipe, live=True)[0, 0]["lungs"].isnan().all()


class TestLoaders:
    def test_processes_give_the_same_batches(self, segmentation: Any, films: Dataset, cache: Path) -> None:
        recipe = segmentation({"training.steps_per_epoch": 2})
        samples = _samples(recipe, films, cache)
        batches = []
        for workers in (0, 1):
            data = TrainingData(samples, PARTS, recipe, workers=workers)
            data.trainer = _trainer(epoch=1)
            batches.append(list(data.train_dataloader()))
        for alone, helped in zip(*batches, strict=True):
            assert torch.equal(alone["picture"], helped["picture"])
            assert torch.equal(alone["labels"], helped["labels"])

    def test_devices_share_training_batches_and_validation_films(
        self, segmentation: Any, films: Dataset, cache: Path
    ) -> None:
        recipe = segmentation()
        samples = _samples(recipe, films, cache)
        seen, validated = [], []
        for rank in range(2):
            data = TrainingData(samples, PARTS, recipe, devices=2)
            data.trainer = _trainer(rank, 2)
            seen.append([batch["film"].tolist() for batch in data.train_dataloader()])
            validated += [film for batch in data.val_dataloader() for film in batch["film"].tolist()]
        alone = TrainingData(samples, PARTS, recipe)
        alone.trainer = _trainer()
        together = [first + second for first, second in zip(*seen, strict=True)]
        assert together == [batch["film"].tolist() for batch in alone.train_dataloader()]
        assert sorted(validated) == [0, 1, 2]

    def test_an_epoch_is_a_pass_unless_the_recipe_says_otherwise(
        self, segmentation: Any, films: Dataset, cache: Path
    ) -> None:
        samples = _samples(segmentation(), films, cache)
        whole = TrainingData(samples, PARTS, segmentation({"training.steps_per_epoch": 0, "training.batch_size": 3}))
        assert (whole.batches, whole.steps_per_epoch) == (3, 3)
        changes = {"training.steps_per_epoch": 5, "training.accumulate": 2}
        assert TrainingData(samples, PARTS, segmentation(changes)).steps_per_epoch == 3

    def test_what_cannot_be_trained_on_is_refused(
        self, segmentation: Any, classification: Any, films: Dataset, cache: Path
    ) -> None:
        samples = _samples(segmentation(), films, cache)
        with pytest.raises(DataError, match="validation part has no film"):
            TrainingData(samples, Split(PARTS.train, (), ()), segmentation())
        with pytest.raises(RunError, match="3 devices"):
            TrainingData(samples, PARTS, segmentation(), devices=3)
        guided = classification({"loss.guidance": 1.0, "network.options": {"guided": True}})
        found = _samples(guided, films, cache)
        without = Samples(**{**vars(found), "places": None})
        with pytest.raises(DataError, match="only phantoms"):
            TrainingData(without, PARTS, guided)


class TestStored:
    def test_a_data_set_travels_as_names_of_files(self, segmentation: Any, films: Dataset, cache: Path) -> None:
        samples = _samples(segmentation(), films, cache)
        dataset = FilmDataset(samples, PARTS.train, segmentation())
        sent = pickle.dumps(dataset)
        assert len(sent) < samples.pictures.nbytes / 3
        assert torch.equal(pickle.loads(sent)[0, 4]["picture"], dataset[0, 4]["picture"])

    def test_films_are_found_again(self, classification: Any, films: Dataset, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        samples = _samples(classification(), films, folder / "cache")
        store_samples(samples, folder / "films.npz")
        folder = folder.rename(tmp_path / "moved")
        again = open_samples(folder / "films.npz")
        assert (again.names, again.patients, again.digest) == (samples.names, samples.patients, samples.digest)
        assert again.pictures.shape == samples.pictures.shape == (12, 3, 32, 32)
        np.testing.assert_array_equal(again.targets, samples.targets)
        np.testing.assert_array_equal(again.pictures[7], np.asarray(samples.pictures[7]))

    def test_without_its_cache_nothing_is_found(self, segmentation: Any, films: Dataset, tmp_path: Path) -> None:
        samples = _samples(segmentation(), films, tmp_path / "elsewhere")
        (tmp_path / "run").mkdir()
        store_samples(samples, tmp_path / "run" / "films.npz")
        assert open_samples(tmp_path / "run" / "films.npz").names == samples.names
        (tmp_path / "elsewhere").rename(tmp_path / "gone")
        with pytest.raises(FileNotFoundError):
            open_samples(tmp_path / "run" / "films.npz")
