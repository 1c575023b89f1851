"""What a grid gives: its rows, ours beside the paper's, as Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from trainer.evaluation.drawing import canvas, save
from trainer.evaluation.paper_figures import NOT_COMPARABLE
from trainer.evaluation.tables import NOTHING, RESEARCH_USE, markdown, with_interval, write_csv, write_json
from trainer.recipe import GridTable, Recipe
from worker.bootstrap import Interval

#: Cells are compared on films that nobody trained on or chose by.
PART = "test"
#: Label of the row that averages all cells.
ENSEMBLE = "Ensemble"

#: A figure as a paper prints it: value, and an interval or none.
_PRINTED = re.compile(r"([\d.]+)(?:\s*\(([\d.]+)-([\d.]+)\))?")
_OURS, _PAPER = "#332288", "#999999"
#: What a column of ``grid.csv`` has beside its value.
_ENDS = ("_low", "_high", "_of", "_paper")


@dataclass(frozen=True)
class Column:
    """What a grid can compare: its heading, and the task whose evaluation has a figure of the column's name."""

    title: str
    task: str


#: Every column a grid may name. Each is one of the ``figures`` of an evaluation on the test part
#: (:func:`trainer.evaluation.evaluate.evaluate_runs`), which measures a classifier's validation part too.
COLUMNS: Mapping[str, Column] = {
    "mean_dice": Column("mean Dice", "segmentation"),
    "mean_dice_age_0_4": Column("mean Dice, ages 0-4", "segmentation"),
    "mean_dice_age_5_plus": Column("mean Dice, ages 5+", "segmentation"),
    "missing_carina": Column("films without carina", "segmentation"),
    "disconnected_films": Column("films with disconnected classes", "segmentation"),
    "mean_auroc_validation": Column("mean AUROC, validation", "classification"),
    "mean_auroc": Column("mean AUROC", "classification"),
    "mean_f1": Column("mean F1", "classification"),
}


@dataclass(frozen=True)
class GridRow:
    """One cell, or the ensemble.

    Attributes
    ----------
    label
        As in the recipe, or :data:`ENSEMBLE`.
    folder
        The run folder; of the ensemble that of its evaluation.
    paper
        Column → figure as printed.
    settings
        What the cell changes in the recipe.
    figures
        Column → ``value`` with ``low`` and ``high``, or with ``of`` for counted films.
    facts
        ``films`` measured, regions ``not_scored`` because their truth was derived; ``epochs`` and ``seconds`` trained.
    failure
        Why there are no figures; ``""`` when there are.
    """

    label: str
    folder: Path
    paper: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True)
class GridResult:
    """A grid so far.

    ``data`` is the data set's name, ``changes`` what was set for all cells, ``rows`` what is done.
    """

    recipe: Recipe
    grid: GridTable
    folder: Path
    data: str
    changes: Mapping[str, Any]
    rows: tuple[GridRow, ...]

    @property
    def expected(self) -> int:
        """Rows when all is done."""
        return len(self.grid.cells) + bool(self.grid.ensemble)

    @property
    def failed(self) -> tuple[GridRow, ...]:
        """Rows without figures."""
        return tuple(row for row in self.rows if row.failure)

    @property
    def printed(self) -> set[str]:
        """Columns of which the paper gives a figure."""
        return {name for paper in (self.grid.ensemble, *(cell.paper for cell in self.grid.cells)) for name in paper}

    def table(self) -> str:
        """Ours beside the paper's in Markdown, and that the two cannot be compared."""
        headers = ["cell"]
        for name in self.grid.columns:
            headers += [COLUMNS[name].title, *(["*paper*"] if name in self.printed else [])]
        rows = []
        for row in self.rows:
            cells = [_escaped(row.label)]
            for name in self.grid.columns:
                cells.append("failed" if row.failure else _shown(row.figures.get(name)))
                cells += [row.paper.get(name, NOTHING)] if name in self.printed else []
            rows.append(cells)
        return "\n\n".join([markdown(headers, rows), *([NOT_COMPARABLE] if self.printed else [])])

    def write(self) -> None:
        """Write ``grid.md``, ``grid.csv``, ``grid.json`` and ``grid.png``."""
        self._write_sheet(self.folder / "grid.csv")
        write_json(self.folder / "grid.json", self._summary())
        picture = _draw(self, self.folder / "grid.png")
        changed = ", ".join(f"`{key}` = `{value}`" for key, value in self.changes.items())
        facts = next((row.facts for row in self.rows if row.facts), None)
        measured = (
            f"{facts['films']} films of the {PART} part, 95 % bootstrap intervals" if facts else "nothing measured"
        )
        unscored = ", ".join(facts["not_scored"]) if facts else ""
        blocks = [
            f"# {self.grid.title}",
            f"**{RESEARCH_USE}**",
            f"{self.recipe.description}. Recipe `{self.recipe.name}`, data `{self.data}`: {measured}.",
            *([f"Not scored, because their truth was derived by a rule: {unscored}."] if unscored else []),
            *([f"Other than in the recipe, for all cells: {changed}."] if changed else []),
            *([f"So far {len(self.rows)} of {self.expected} rows."] if len(self.rows) < self.expected else []),
            self.table(),
            *(f"{_escaped(row.label)} failed: {row.failure}" for row in self.failed),
            f"![The same as a picture]({picture})",
            f"Each cell's own report is `<cell>/evaluation/{PART}/report.md`.",
        ]
        (self.folder / "grid.md").write_text("\n\n".join(blocks) + "\n", "utf-8")

    def _write_sheet(self, path: Path) -> None:
        facts = ("films", "epochs", "seconds")
        headers = ["cell", *facts, *(f"{name}{end}" for name in self.grid.columns for end in ("", *_ENDS)), "failure"]
        rows: list[list[object]] = []
        for row in self.rows:
            line: list[object] = [row.label, *(row.facts.get(key) for key in facts)]
            for name in self.grid.columns:
                figure = row.figures.get(name, {})
                line += [figure.get(key) for key in ("value", "low", "high", "of")] + [row.paper.get(name)]
            rows.append([*line, row.failure])
        write_csv(path, headers, rows)

    def _summary(self) -> dict[str, Any]:
        return {
            "title": self.grid.title,
            "recipe": self.recipe.name,
            "data": self.data,
            "part": PART,
            "changes": self.changes,
            "columns": {name: COLUMNS[name].title for name in self.grid.columns},
            "rows": [{**vars(row), "folder": row.folder.name} for row in self.rows],
            "complete": len(self.rows) == self.expected and not self.failed,
            "paper": NOT_COMPARABLE,
            "research_use": RESEARCH_USE,
        }


def _escaped(label: str) -> str:
    return label.replace("*", r"\*")


def _shown(figure: Mapping[str, Any] | None) -> str:
    if not figure or figure["value"] is None:
        return NOTHING
    if "of" in figure:
        return f"{figure['value']} of {figure['of']}"
    return with_interval(Interval(figure["value"], *_limits(figure), 0))


def _limits(figure: Mapping[str, Any]) -> tuple[float, float]:
    """Low and high, NaN where there is no interval."""
    low, high = figure.get("low"), figure.get("high")
    return (float("nan"), float("nan")) if low is None or high is None else (low, high)


def _draw(result: GridResult, path: Path) -> str:
    """Ours (filled) above the paper's (open), each row's intervals as lines, a panel for each column."""
    rows, columns = result.rows, result.grid.columns
    figure = canvas(2.2 + 3.4 * len(columns), 1.8 + 0.45 * len(rows))
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, name in zip(panels, columns, strict=True):
        for place, row in enumerate(rows):
            figures = row.figures.get(name)
            if figures and figures["value"] is not None:
                _point(axis, place - 0.13, figures["value"], *_limits(figures), colour=_OURS, filled=True)
            printed = _PRINTED.match(row.paper.get(name, ""))
            if printed:
                value, low, high = (float(part) if part else float("nan") for part in printed.groups())
                _point(axis, place + 0.17, value, low, high, colour=_PAPER, filled=False)
        axis.set(title=COLUMNS[name].title, ylim=(len(rows) - 0.5, -0.5))
        axis.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(rows)), [row.label for row in rows])
    paper = " Open: the paper's, on its own films; the two cannot be compared." if result.printed else ""
    figure.supxlabel(f"Filled: ours.{paper}", fontsize=8)
    figure.suptitle(result.grid.title)
    return save(figure, path)


def _point(axis: Axes, place: float, value: float, low: float, high: float, *, colour: str, filled: bool) -> None:
    axis.plot([low, high], [place, place], color=colour, linewidth=1.5)
    axis.plot(value, place, "o", color=colour, markerfacecolor=colour if filled else "white", markersize=5)
