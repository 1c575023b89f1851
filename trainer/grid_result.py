"""What a grid gives: its rows, ours beside the paper's, as Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from schema.regions import REGION_BY_NAME
from trainer.evaluation.drawing import canvas, save
from trainer.evaluation.grid_figures import (
    BINS,
    CURVES,
    TRAINING_CURVES,
    draw_bins,
    draw_curves,
    draw_training_curves,
    has_training_curves,
    read_history,
    regions_in,
)
from trainer.evaluation.paper_figures import NOT_COMPARABLE
from trainer.evaluation.tables import NOTHING, RESEARCH_USE, markdown, number, with_interval, write_csv, write_json
from trainer.grid_columns import column_of
from trainer.grid_statistics import Comparison, FilmJaccards, compare, p_value, read_jaccards
from trainer.recipe import GridTable, Recipe
from worker.bootstrap import Interval

#: Cells are compared on films that nobody trained on or chose by.
PART = "test"
#: A figure as a paper prints it: value, and an interval, a standard deviation or neither; of all, or per cent.
_PRINTED = re.compile(r"([\d.]+)(?:\s*\(([\d.]+)-([\d.]+)\)|\s*±\s*([\d.]+))?\s*(%?)")
_PLACES = ("evaluations", "histories")
_OURS, _PAPER = "#332288", "#999999"
#: What a column of ``grid.csv`` has beside its value.
_ENDS = ("_low", "_high", "_sd", "_of", "_paper")


@dataclass(frozen=True)
class GridRow:
    """One cell, or an ensemble of cells.

    Attributes
    ----------
    label
        As in the recipe.
    folder
        The run folder, or that of the runs of a cell that is trained several times; an ensemble's evaluations.
    paper
        Column → figure as printed.
    settings
        What the cell changes in the recipe.
    figures
        Column → ``value`` with ``low`` and ``high``, with ``sd`` of several trainings, with ``of`` for counted films.
    facts
        ``films`` measured, regions ``not_scored`` because their truth was derived; ``epochs`` and ``seconds`` trained.
    failure
        Why there are no figures; ``""`` when there are.
    evaluations, histories
        Folders of the evaluations, and the ``metrics.csv`` of the runs, one for each training.
    """

    label: str
    folder: Path
    paper: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""
    evaluations: tuple[Path, ...] = ()
    histories: tuple[Path, ...] = ()


@dataclass(frozen=True)
class GridResult:
    """A grid so far.

    ``columns`` are those of the grid whose regions the recipe has, ``data`` is the data set's name, ``changes`` what
    was set for all cells, ``rows`` what is done.
    """

    recipe: Recipe
    grid: GridTable
    columns: tuple[str, ...]
    folder: Path
    data: str
    changes: Mapping[str, Any]
    rows: tuple[GridRow, ...]

    @property
    def expected(self) -> int:
        """Rows when all is done."""
        return len(self.grid.cells) + len(self.grid.ensembles)

    @property
    def failed(self) -> tuple[GridRow, ...]:
        """Rows without figures."""
        return tuple(row for row in self.rows if row.failure)

    @property
    def printed(self) -> set[str]:
        """Columns of which the paper gives a figure."""
        papers = [*(cell.paper for cell in self.grid.cells), *(each.paper for each in self.grid.ensembles)]
        return {name for paper in papers for name in paper}

    @cached_property
    def jaccards(self) -> dict[str, FilmJaccards]:
        """Label → the films' Jaccards, of the rows that segment and were measured."""
        return {
            row.label: read_jaccards(row.evaluations)
            for row in self.rows
            if row.evaluations and not row.failure and self.recipe.task == "segmentation"
        }

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every pair of cells tested, where the grid asks for it; ensembles are not among them."""
        table = self.grid.significance
        labels = {cell.label for cell in self.grid.cells}
        cells = {label: films for label, films in self.jaccards.items() if label in labels}
        return compare(cells, self._tested, table.paper) if table and self._tested else []

    @property
    def _tested(self) -> list[str]:
        table = self.grid.significance
        return [region for region in table.regions if region in self.recipe.data.regions] if table else []

    def table(self) -> str:
        """Ours beside the paper's in Markdown, and that the two cannot be compared."""
        headers = ["cell"]
        for name in self.columns:
            headers += [_title(name), *(["*paper*"] if name in self.printed else [])]
        rows = []
        for row in self.rows:
            cells = [_escaped(row.label)]
            for name in self.columns:
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
        measured = "nothing measured"
        if facts:
            films = facts["films"]
            measured = f"{films} films of the {PART} part, {_spread(self.grid)}" if films else "networks only"
        unscored = ", ".join(facts["not_scored"]) if facts else ""
        trained = any(row.evaluations for row in self.rows)
        blocks = [
            f"# {self.grid.title}",
            f"**{RESEARCH_USE}**",
            f"{self.recipe.description}. Recipe `{self.recipe.name}`, data `{self.data}`: {measured}.",
            *([f"Not scored, because their truth was derived by a rule: {unscored}."] if unscored else []),
            *([f"Other than in the recipe, for all cells: {changed}."] if changed else []),
            *([f"So far {len(self.rows)} of {self.expected} rows."] if len(self.rows) < self.expected else []),
            self.table(),
            *self._significance(),
            *(f"{_escaped(row.label)} failed: {row.failure}" for row in self.failed),
            f"![The same as a picture]({picture})",
            *self._pictures(),
            *([f"Each training's own report is `evaluation/{PART}/report.md` in its folder."] if trained else []),
        ]
        (self.folder / "grid.md").write_text("\n\n".join(blocks) + "\n", "utf-8")

    def _significance(self) -> list[str]:
        if not self.comparisons:
            return []
        titles = " / ".join(REGION_BY_NAME[region].title for region in self._tested)
        paper = any(each.paper for each in self.comparisons)
        rows = [
            [
                f"{_escaped(each.first)}, {_escaped(each.second)}",
                " / ".join(p_value(each.p[region]) for region in self._tested),
                " / ".join(str(each.films[region]) for region in self._tested),
                *([each.paper or NOTHING] if paper else []),
            ]
            for each in self.comparisons
        ]
        return [
            "## Do the cells differ?",
            f"Wilcoxon's signed-rank test on the films' Jaccards, two-sided p-values: {titles}.",
            markdown(["cells", "p", "films", *(["*paper*, p"] if paper else [])], rows),
        ]

    def _pictures(self) -> list[str]:
        """The figures that lay cells beside each other, drawn anew."""
        blocks = []
        scored = [
            region.name
            for region in self.recipe.region_definitions
            if region.value and not any(region.name in row.facts.get("not_scored", ()) for row in self.rows)
        ]
        spread = {
            label: {region: [film.get(region, float("nan")) for film in films.values()] for region in scored}
            for label, films in self.jaccards.items()
        }
        if spread and scored:
            blocks.append(f"![Share of the films by range of Jaccard]({draw_bins(spread, self.folder / BINS)})")
        histories = {
            row.label: [read_history(path) for path in row.histories]
            for row in self.rows
            if row.histories and not row.failure and self.recipe.task == "segmentation"
        }
        if regions_in(histories):
            blocks.append(f"![Validation Dice by epoch]({draw_curves(histories, self.folder / CURVES)})")
        if has_training_curves(histories):
            drawn = draw_training_curves(histories, self.folder / TRAINING_CURVES)
            blocks.append(f"![Dice on training and validation films by epoch]({drawn})")
        return blocks

    def _write_sheet(self, path: Path) -> None:
        facts = ("films", "epochs", "seconds")
        headers = ["cell", *facts, *(f"{name}{end}" for name in self.columns for end in ("", *_ENDS)), "failure"]
        rows: list[list[object]] = []
        for row in self.rows:
            line: list[object] = [row.label, *(row.facts.get(key) for key in facts)]
            for name in self.columns:
                figure = row.figures.get(name, {})
                line += [figure.get(key) for key in ("value", "low", "high", "sd", "of")] + [row.paper.get(name)]
            rows.append([*line, row.failure])
        write_csv(path, headers, rows)

    def _summary(self) -> dict[str, Any]:
        return {
            "title": self.grid.title,
            "recipe": self.recipe.name,
            "data": self.data,
            "part": PART,
            "changes": self.changes,
            "columns": {name: _title(name) for name in self.columns},
            "rows": [self._row(row) for row in self.rows],
            "significance": [vars(each) for each in self.comparisons],
            "complete": len(self.rows) == self.expected and not self.failed,
            "paper": NOT_COMPARABLE,
            "research_use": RESEARCH_USE,
        }

    def _row(self, row: GridRow) -> dict[str, Any]:
        places = {name: [str(path.relative_to(self.folder)) for path in getattr(row, name)] for name in _PLACES}
        return {**vars(row), "folder": row.folder.name, **places}


def _title(name: str) -> str:
    column = column_of(name)
    assert column is not None  # checked before the first cell is trained
    return column.title


def _spread(grid: GridTable) -> str:
    if grid.folds:
        return f"{grid.folds} folds: mean over all films ± standard deviation between the folds"
    if grid.repeats > 1:
        return f"{grid.repeats} trainings, each on a split of its own: mean ± standard deviation between them"
    return "95 % bootstrap intervals"


def _escaped(label: str) -> str:
    return label.replace("*", r"\*")


def _shown(figure: Mapping[str, Any] | None) -> str:
    if not figure or figure["value"] is None:
        return NOTHING
    if "of" in figure:
        return f"{figure['value']} of {figure['of']}"
    if figure.get("sd") is not None:
        return f"{figure['value']:.3f} ± {figure['sd']:.3f}"
    if "low" not in figure:
        return number(figure["value"])
    return with_interval(Interval(figure["value"], *_limits(figure), 0))


def _limits(figure: Mapping[str, Any]) -> tuple[float, float]:
    """Low and high, or one standard deviation to either side; NaN where there is neither."""
    if figure.get("sd") is not None:
        return figure["value"] - figure["sd"], figure["value"] + figure["sd"]
    low, high = figure.get("low"), figure.get("high")
    return (float("nan"), float("nan")) if low is None or high is None else (low, high)


def _draw(result: GridResult, path: Path) -> str:
    """Ours (filled) above the paper's (open), each row's intervals as lines, a panel for each column."""
    rows, columns = result.rows, result.columns
    figure = canvas(2.2 + 3.4 * len(columns), 1.8 + 0.45 * len(rows))
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, name in zip(panels, columns, strict=True):
        for place, row in enumerate(rows):
            figures = row.figures.get(name)
            if figures and figures["value"] is not None:
                _point(axis, place - 0.13, figures["value"], *_limits(figures), colour=_OURS, filled=True)
            printed = as_printed(row.paper.get(name, ""))
            if printed:
                value, low, high = printed
                _point(axis, place + 0.17, value, low, high, colour=_PAPER, filled=False)
        axis.set(title=_title(name), ylim=(len(rows) - 0.5, -0.5))
        axis.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(rows)), [row.label for row in rows])
    paper = " Open: the paper's, on its own films; the two cannot be compared." if result.printed else ""
    figure.supxlabel(f"Filled: ours.{paper}", fontsize=8)
    figure.suptitle(result.grid.title)
    return save(figure, path)


def as_printed(text: str) -> tuple[float, float, float] | None:
    """Value, low and high of a figure of a paper, per cent as a share; NaN where it prints no interval.

    Reads ``0.709 (0.690-0.729)``, ``87.2 ± 1.9 %``, ``3 140 771`` and plain numbers; None for anything else.
    """
    found = _PRINTED.match(re.sub(r"(?<=\d) (?=\d{3})", "", text))
    if not found:
        return None
    value, low, high, sd = (float(part) if part else float("nan") for part in found.groups()[:4])
    if found[4]:
        low, high = value - sd, value + sd
    scale = 100.0 if found[5] else 1.0
    return value / scale, low / scale, high / scale


def _point(axis: Axes, place: float, value: float, low: float, high: float, *, colour: str, filled: bool) -> None:
    axis.plot([low, high], [place, place], color=colour, linewidth=1.5)
    axis.plot(value, place, "o", color=colour, markerfacecolor=colour if filled else "white", markersize=5)
