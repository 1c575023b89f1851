"""The trainer's commands; they join ``carina`` through the entry points of the group ``carina.commands``."""

from __future__ import annotations

import importlib.util
from typing import Any

import click

#: What only training needs; a machine that reads films has none of it.
_LIBRARIES = (
    "torch",
    "lightning",
    "monai",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "matplotlib",
    "optuna",
    "pydantic",
    "scipy",
)


class TrainerCommand(click.Command):
    """A command that needs the train extra, and says so in one sentence where it is missing."""

    def invoke(self, ctx: click.Context) -> Any:
        """Look for the libraries, then run."""
        missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
        if missing:
            raise click.ClickException(
                f"training needs the train extra: pip install 'carina-cxr[train]' (missing: {', '.join(missing)})"
            )
        return super().invoke(ctx)
