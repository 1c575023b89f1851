from __future__ import annotations

from collections.abc import Iterator

import pytest
from output_films import Site, output_site

for module in ("highdicom", "nibabel", "pyarrow"):
    pytest.importorskip(module, reason="the extras pacs and research are not installed")


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    # Not in tmp_path, which is the folder that is exported to.
    with output_site(tmp_path_factory.mktemp("site")) as opened:
        yield opened
