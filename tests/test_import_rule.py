"""Arrows go one way: trainer → worker → schema; the worker runs where torch is absent."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "schema": {"worker", "trainer", "torch"},
    "worker": {"trainer", "torch"},
    "migrations": {"worker", "trainer", "torch"},
}


def imported_packages(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_package_imports_one_above_it(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {
        str(file.relative_to(ROOT)): sorted(bad)
        for file in files
        if (bad := imported_packages(file) & FORBIDDEN[package]) and file != ROOT / "worker/inference/engines/torch.py"
    }
    assert wrong == {}


WITHOUT_TORCH = """
import importlib.abc, sys, pkgutil, importlib

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxscript", "trainer"}:
            raise ModuleNotFoundError(f"{name} is absent", name=name)

sys.meta_path.insert(0, NoTorch())
import schema, worker
for package in (schema, worker):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print(len([name for name in sys.modules if name.startswith("worker.")]))
"""


def test_every_worker_module_imports_where_torch_is_absent() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


def test_no_dependency_ships_a_package_of_our_names() -> None:
    from importlib.metadata import packages_distributions

    owners = packages_distributions()
    for name in ("schema", "worker", "trainer", "migrations"):
        assert set(owners.get(name, [])) <= {"carina-cxr"}
