from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shifted_clock import VARIABLE

SCRIPT = """
import os
from shifted_clock import VARIABLE, shift_clock
from _datetime import datetime as right
before = right.now()
shift_clock(float(os.environ[VARIABLE]))
import datetime, time
now = datetime.datetime.now(datetime.UTC)
assert isinstance(before, datetime.datetime) and isinstance(now, right)
assert abs(now.timestamp() - time.time()) < 60 and abs(time.time_ns() / 1e9 - time.time()) < 60
assert datetime.datetime(2026, 1, 1) == right(2026, 1, 1)
print(time.time(), time.monotonic())
"""


@pytest.mark.parametrize("shift", [-3600.0, 0.0, 3600.0])
def test_all_of_python_believes_in_another_hour(shift: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parent,
        env={**os.environ, VARIABLE: str(shift)},
        capture_output=True,
        text=True,
        check=True,
    )
    believed, steady = map(float, done.stdout.split())
    assert believed - time.time() == pytest.approx(shift, abs=60)
    assert steady == pytest.approx(time.monotonic(), abs=60)
