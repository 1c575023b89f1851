from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from output_films import Site, without
from stored_films import result

from schema.outputs import OutputKind
from worker.results.result import Heatmap

KINDS = [OutputKind.OVERLAY, OutputKind.HEATMAP]


def built(site: Site, job: int) -> tuple[Any, list[Any]]:
    made = site.build(job, KINDS)
    return made[OutputKind.OVERLAY][0], made[OutputKind.HEATMAP]


def test_polarity_makes_no_difference_to_what_is_shown(site: Site) -> None:
    from dicom_files import chest_pixels, make_dataset, save

    pixels = chest_pixels()
    shown = []
    for name, values, polarity in (("a", pixels, "MONOCHROME2"), ("b", 4095 - pixels, "MONOCHROME1")):
        path = save(make_dataset(values, PhotometricInterpretation=polarity), site.folder / name)
        shown.append(built(site, site.add(path))[0].pixel_array)
    difference = np.abs(shown[0].astype(int) - shown[1])
    # Rounding of the middle grey may differ by one level.
    assert difference.max() <= 2


def test_a_mirrored_film_is_shown_turned_back_with_its_regions(site: Site) -> None:
    from dicom_files import chest_pixels, make_dataset, save

    pixels = chest_pixels()
    plain = save(make_dataset(pixels, PatientOrientation=["L", "F"]), site.folder / "plain")
    turned = save(
        make_dataset(np.ascontiguousarray(pixels[:, ::-1]), PatientOrientation=["R", "F"]), site.folder / "turned"
    )
    first, _ = built(site, site.add(plain, result(film=(120, 100))))
    second, _ = built(site, site.add(turned, result(film=(120, 100), flip_columns=True)))
    assert list(first.PatientOrientation) == list(second.PatientOrientation) == ["L", "F"]
    np.testing.assert_allclose(first.pixel_array.astype(int), second.pixel_array.astype(int), atol=2)


def test_orientation_is_not_claimed_where_the_film_has_none(site: Site) -> None:
    overlay, _ = built(site, site.film(PatientOrientation=None))
    assert not overlay.PatientOrientation


def test_what_it_says_is_below_the_film_and_not_on_it(site: Site) -> None:
    overlay, _ = built(site, site.film(stored=result(film=(120, 100))))
    picture = overlay.pixel_array
    assert overlay.BurnedInAnnotation == "YES"
    assert picture.shape[0] > 1024
    # A drawn chest of 120 x 100 is 1024 x 853: text starts below.
    assert picture.shape[1] == 853
    assert picture[1024:].max() > 200
    assert "Laterality" not in overlay
    assert overlay.BodyPartExamined == "CHEST"
    assert overlay.SourceImageSequence[0].ReferencedSOPInstanceUID


def test_regions_are_drawn_in_their_colours_where_the_map_has_them(site: Site) -> None:
    with_regions, _ = built(site, site.film("a.dcm"))
    picture = with_regions.pixel_array[:1024].astype(int)
    # The map has value 1 (left lung, blue) at row 0.6, column 0.1 and background at row 0.9.
    blue, grey = picture[int(0.53 * 1024), 80], picture[int(0.9 * 1024), 80]
    assert blue[2] - blue[0] > 10
    assert grey.max() - grey.min() <= 1


def test_each_finding_but_no_finding_has_its_own_map(site: Site) -> None:
    names = ("pneumonia", "no_finding", "bronchitis")
    maps = np.zeros((3, 16, 16), np.uint8)
    maps[0, :8] = 255
    maps[2, 8:] = 255
    _, heat = built(site, site.film(stored=replace(result(film=(120, 100)), heatmap=Heatmap(names, maps))))
    assert [int(dataset.InstanceNumber) for dataset in heat] == [1, 2]
    assert len({dataset.SOPInstanceUID for dataset in heat}) == 2
    assert len({dataset.SeriesInstanceUID for dataset in heat}) == 1
    colour = [dataset.pixel_array[:1024].astype(int) for dataset in heat]
    coloured = [np.abs(picture[..., 0] - picture[..., 2]) > 20 for picture in colour]
    assert coloured[0][:400].mean() > 0.5 > coloured[0][700:].mean()
    assert coloured[1][700:].mean() > 0.5 > coloured[1][:400].mean()


def test_without_activation_maps_there_is_none(site: Site) -> None:
    job = site.film(stored=without(result(film=(120, 100)), "heatmap"))
    assert site.build(job, KINDS)[OutputKind.HEATMAP] == []
