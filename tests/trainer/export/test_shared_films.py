from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from finished_runs import PARTS, SECRET

from trainer.errors import RunError
from trainer.export.shared_films import shared_films, some_training_films
from trainer.training.run_folder import Run

MakeRun = Callable[..., Run]
COUNT = sum(PARTS.values())
NAMES = [f"{SECRET}/{index}" for index in range(COUNT)]


def moved(by: int) -> list[str]:
    return NAMES[by:] + NAMES[:by]


def test_one_run_keeps_its_parts(masks: Run) -> None:
    (films,) = shared_films([masks], "test")
    assert films.names == masks.samples("test").names
    assert films.labels is not None


def test_runs_that_were_split_alike_share_all(finders: tuple[Run, Run]) -> None:
    first, second = shared_films(finders, "validation")
    assert first.names == second.names == finders[0].samples("validation").names


def test_a_film_that_any_run_learned_from_is_left_out(untrained: MakeRun) -> None:
    first = untrained("a", "classification")
    second = untrained("b", "classification", names=moved(4))
    ours, theirs = (set(run.samples("test").names) for run in (first, second))
    (films, same) = shared_films([first, second], "test")
    assert films.names == same.names
    assert set(films.names) <= ours & theirs
    seen = {name for run in (first, second) for part in ("train", "validation") for name in run.samples(part).names}
    assert films.names and not set(films.names) & seen
    np.testing.assert_array_equal(films.targets, same.targets)


def test_so_is_every_film_of_a_patient_that_any_run_learned_from(untrained: MakeRun) -> None:
    patients = [f"patient {index}" for index in range(COUNT)]
    crossing = list(patients)
    crossing[-1] = patients[0]  # in one run the last test film is of a patient it was trained on
    first = untrained("a", "classification", patients=patients)
    second = untrained("b", "classification", patients=crossing)
    (films, _) = shared_films([first, second], "test")
    assert films.names == first.samples("test").names[:-1]


def test_runs_without_a_common_film_are_refused(untrained: MakeRun) -> None:
    first = untrained("a", "classification")
    second = untrained("b", "classification", names=moved(PARTS["train"]))
    with pytest.raises(RunError, match=r"share no film of their validation parts: train them on the same data"):
        shared_films([first, second], "validation")


def test_films_of_different_data_sets_are_never_the_same(untrained: MakeRun) -> None:
    first, second = untrained("a", "classification"), untrained("b", "classification", data="others")
    with pytest.raises(RunError, match=r"they learned from others and tiny films"):
        shared_films([first, second], "validation")


def test_a_run_without_films_in_a_part_is_told(untrained: MakeRun) -> None:
    run = untrained("a", "classification", parts={"train": 4, "test": 4})
    with pytest.raises(RunError, match="has no films in its validation part"):
        shared_films([run], "validation")


def test_runs_that_disagree_about_a_film_are_refused(untrained: MakeRun) -> None:
    first = untrained("a", "classification")
    # The helper lets a film's place decide what it shows.
    swapped = list(NAMES)
    swapped[24], swapped[25] = swapped[25], swapped[24]
    second = untrained("b", "classification", names=swapped)
    with pytest.raises(RunError, match="disagree about the findings"):
        shared_films([first, second], "validation")


@pytest.mark.parametrize(("count", "expected"), [(4, 4), (7, 7), (24, 24), (100, 24)])
def test_training_films_are_spread_evenly(masks: Run, count: int, expected: int) -> None:
    films = some_training_films(masks, count)
    every = masks.samples("train").names
    assert len(films) == expected
    assert set(films.names) <= set(every)
    assert films.names[0] == every[0]


def test_films_that_are_gone_are_told(untrained: MakeRun) -> None:
    run = untrained("a", "segmentation")
    (run.folder / "cache" / "pictures.npy").unlink()
    with pytest.raises(RunError, match="train it again"):
        some_training_films(run, 4)
