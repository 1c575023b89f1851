from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.data.description import DatasetDescription, find_description, layout_names, load_dataset
from trainer.errors import DataError


@pytest.fixture
def describe(labelled_folder: Path) -> Callable[[str], Path]:
    """Write ``dataset.toml`` beside the films."""

    def write(text: str) -> Path:
        (labelled_folder / "dataset.toml").write_text(text)
        return labelled_folder

    return write


def test_a_directory_needs_no_description(labelled_folder: Path) -> None:
    films = load_dataset(labelled_folder)
    assert films.name == "films" and films.root == labelled_folder
    assert [record.name for record in films.records] == [f"film-{number}" for number in range(6)]
    assert all(r.truth == labelled_folder / "labels" / f"{r.name}.png" for r in films.records)
    assert {record.truth_kind for record in films.records} == {"label_map"}
    assert len({record.patient for record in films.records}) == 6


def test_a_directory_without_labels_has_no_truth(labelled_folder: Path) -> None:
    (labelled_folder / "labels").rename(labelled_folder / "other")
    assert {record.truth_kind for record in load_dataset(labelled_folder).records} == {""}


def test_a_description_is_found_in_its_directory_and_by_name(describe: Callable[[str], Path]) -> None:
    root = describe('name = "mine"\n[images]\npatterns = ["*-[012].png"]\n')
    assert load_dataset(root) == load_dataset(root / "dataset.toml")
    assert load_dataset(str(root)).name == "mine"
    assert len(load_dataset(root).records) == 3


def test_a_description_may_start_from_a_layout(describe: Callable[[str], Path]) -> None:
    root = describe('layout = "chexpert"\nname = "mine"\n[findings]\nuncertain = "ones"\n')
    description, _ = find_description(root)
    packaged, _ = find_description(root, "chexpert")
    assert (description.name, packaged.name) == ("mine", "chexpert")
    assert (description.findings.uncertain, packaged.findings.uncertain) == ("ones", "ignore")
    assert description.findings.columns == packaged.findings.columns and description.films == packaged.films


@pytest.mark.parametrize("name", layout_names())
def test_every_layout_is_valid(name: str, tmp_path: Path) -> None:
    description, root = find_description(tmp_path, name)
    assert isinstance(description, DatasetDescription)
    assert description.name == name and root == tmp_path


@pytest.mark.parametrize(
    "text, complaint",
    [
        ('[imagez]\nfolder = "x"', "no key imagez; did you mean 'images'"),
        ('[images]\nfoldre = "x"', "no key images.foldre; did you mean 'folder'"),
        ('[findings.columns.pneumonia]\ncolum = "x"', "did you mean 'column'"),
        ('[findings.columns.pneumnia]\ncolumn = "x"', "no finding 'pneumnia'; did you mean 'pneumonia'"),
        ('[truth]\nkind = "maskes"', "truth.kind: input should be 'none', 'label_map'"),
        ('[truth]\nregions = ["background", "spin"]', "no region 'spin'; did you mean 'spine'"),
        ('[films]\nfiles = [{ file = "a.csv", part = "tests" }]', "films.files.0.part"),
        ('[films]\nfiles = [{ fil = "a.csv" }]', "no key films.files.0.fil; did you mean 'file'"),
        ('layout = "vindr"', "no layout 'vindr'; did you mean 'vindr_pcxr'"),
        ("name = ", "cannot be read"),
    ],
)
def test_a_wrong_description_is_refused_with_the_nearest_name(
    describe: Callable[[str], Path], text: str, complaint: str
) -> None:
    with pytest.raises(DataError) as refused:
        load_dataset(describe(text))
    assert complaint in str(refused.value)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data directory"):
        load_dataset(tmp_path / "none")
    with pytest.raises(DataError, match=r"none\.toml cannot be read"):
        load_dataset(tmp_path / "none.toml")
    with pytest.raises(DataError, match="no layout 'ped_cx'; did you mean 'ped_cxr'"):
        load_dataset(tmp_path, "ped_cx")
    with pytest.raises(DataError, match="no image in"):
        load_dataset(tmp_path)


def test_phantoms_need_no_directory() -> None:
    films = load_dataset("phantoms")
    assert films.root is None and len(films.records) == 400
