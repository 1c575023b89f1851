"""The stand-in for a loaded bundle must not drift from the real one."""

import numpy as np
import pytest
from passthrough import PassthroughBundle, chest_labels, chest_probabilities
from tiny_bundle import make_bundle

from schema.regions import HOLSTE_REGIONS
from worker.inference.bundles import load_bundle
from worker.inference.engines.backends import BACKENDS


def surface(bundle):
    return {name for name in dir(bundle) if not name.startswith("_")}


def test_has_the_surface_of_a_loaded_bundle(tmp_path):
    real = load_bundle(make_bundle(tmp_path / "bundle"), home=tmp_path / "home", threads=1)
    stand_in = PassthroughBundle()
    assert surface(real) - surface(stand_in) <= {"directory"}
    assert set(real.engine_description) == set(stand_in.engine_description)
    assert len(stand_in.sha256) == len(real.sha256)
    real.close()


def test_is_no_backend_of_the_program():
    assert "passthrough" not in BACKENDS


@pytest.mark.parametrize("size", [128, 256, 512])
def test_chest_is_a_chest(size):
    labels = chest_labels(size)
    assert set(np.unique(labels)) == {region.value for region in HOLSTE_REGIONS}
    assert 5 <= (labels == 7).sum() * (256 / size) ** 2 <= 75
    right, left = (np.argwhere(labels == value).mean(axis=0) for value in (2, 1))
    assert right[1] < left[1]
    probabilities = chest_probabilities(size)
    np.testing.assert_array_equal(probabilities.argmax(axis=0), labels)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1.0, atol=1e-5)
