"""The bundle that the tests read with: small and quick, trained on phantoms only by ``carina train carina-phantom``.

What ships is tested in tests/worker/test_packaged_bundle.py.
"""

from __future__ import annotations

from pathlib import Path

PHANTOM_BUNDLE = Path(__file__).parent / "bundles" / "phantom-2"
