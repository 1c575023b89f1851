"""What is evaluated: networks with an engine each, as the night runs them.

A finished run has one network, a bundle several; both become a :class:`Subject` of one task, so
that one code measures them. Predictions come from the worker's engines in fp32 and go through the
worker's own steps (:data:`worker.pipeline.CONCLUDE`): nothing is computed twice in two ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from schema.bundle import BundleRegion, FindingThreshold, Manifest, Member, Task, read_manifest
from trainer.data.store import Samples
from trainer.errors import RunError
from trainer.recipe import Recipe
from trainer.region_origins import regions_of, with_derived
from worker.film.prepared import FilmFacts, Geometry, PreparedFilm
from worker.findings.postprocess import PostprocessSettings
from worker.inference.bundles import LoadedBundle
from worker.inference.engines.backends import open_backend
from worker.inference.engines.base import Engine, EngineBuildError, Precision
from worker.inference.networks import NetworkOutput, infer
from worker.pipeline import CONCLUDE, Conclusion, FilmInWork, Step, score_findings

#: Called with what is being done, how many films are done and how many there are.
Progress = Callable[[str, int, int], None]

_STEPS: dict[Task, tuple[Step, ...]] = {
    "segmentation": tuple(step for _, step in CONCLUDE),
    "classification": (score_findings,),
}


class FinishedRun(Protocol):
    """What evaluation needs of a run: see :class:`trainer.training.Run`."""

    @property
    def folder(self) -> Path:
        """The run folder, which holds ``member.onnx``."""

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""

    def samples(self, part: str) -> Samples:
        """The films of a part as the network sees them."""


#: Gives the films of a part as a run's network sees them.
FilmSource = Callable[[FinishedRun, str], Samples]


@dataclass(frozen=True)
class Subject:
    """Networks of one task, ready to run.

    Attributes
    ----------
    title
        What a report calls it.
    bundle
        Manifest and engines of this task's members only.
    recipes
        Member name → the recipe it was trained with, where that is known.
    """

    title: str
    bundle: LoadedBundle
    recipes: Mapping[str, Recipe]

    def with_derived(self, regions: Sequence[str]) -> Subject:
        """The same where the films' truth of ``regions`` was derived."""
        marked = with_derived(self.manifest.regions, regions)
        return replace(self, bundle=replace(self.bundle, manifest=replace(self.manifest, regions=marked)))

    def alone(self, member: Member) -> Subject:
        """One of several members by itself."""
        manifest = replace(self.manifest, members=(member,))
        recipes = {name: recipe for name, recipe in self.recipes.items() if name == member.name}
        return replace(self, bundle=replace(self.bundle, manifest=manifest), recipes=recipes)

    @property
    def manifest(self) -> Manifest:
        """The members of one task."""
        return self.bundle.manifest

    @property
    def members(self) -> tuple[Member, ...]:
        """The networks, in ensemble order."""
        return self.manifest.members

    @property
    def task(self) -> Task:
        """What all members do."""
        return self.members[0].task

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings, in the order of the scores."""
        return tuple(finding.finding for finding in self.manifest.findings)

    @property
    def paper(self) -> str:
        """The paper that all members follow, or ``""``."""
        papers = {recipe.paper for recipe in self.recipes.values()}
        return papers.pop() if len(papers) == 1 and len(self.recipes) == len(self.members) else ""


@contextmanager
def subject_of_runs(runs: Sequence[FinishedRun]) -> Iterator[Subject]:
    """The network of a run, or the average of several runs' networks; engines are closed afterwards.

    Raises
    ------
    RunError
        The runs differ in task or classes, or a network is missing or does not compile.
    """
    first = runs[0].recipe
    for run in runs[1:]:
        if (run.recipe.task, run.recipe.data.regions, run.recipe.data.findings) != (
            first.task,
            first.data.regions,
            first.data.findings,
        ):
            raise RunError(
                f"{run.folder} and {runs[0].folder} learned different things and cannot be averaged: "
                "evaluate them one by one."
            )
    names = member_names([run.recipe.network.name for run in runs])
    members = tuple(_member_of(run, name) for run, name in zip(runs, names, strict=True))
    findings = tuple(FindingThreshold(finding, 0.5) for finding in first.data.findings)
    manifest = replace(
        _manifest(" + ".join(run.recipe.name for run in runs), members, regions_of(first, first.bundle), findings),
        postprocess=first.bundle.postprocess if first.bundle else {},
    )
    with _engines({name: run.folder / "member.onnx" for name, run in zip(names, runs, strict=True)}) as engines:
        recipes = {name: run.recipe for name, run in zip(names, runs, strict=True)}
        yield Subject(manifest.name, _loaded(manifest, runs[0].folder, engines), recipes)


@contextmanager
def subject_of_bundle(directory: Path, task: Task, recipes: Mapping[str, Recipe]) -> Iterator[Subject]:
    """The members of one task of a bundle; engines are closed afterwards."""
    manifest = read_manifest(directory)
    members = manifest.members_of(task)
    part = replace(manifest, members=members, findings=manifest.findings if task == "classification" else ())
    with _engines({member.name: directory / member.onnx for member in members}) as engines:
        known = {member.name: recipes[member.name] for member in members if member.name in recipes}
        yield Subject(manifest.key, _loaded(part, directory, engines), known)


@contextmanager
def whole_bundle(directory: Path) -> Iterator[LoadedBundle]:
    """All members of a bundle, as a worker has them loaded; engines are closed afterwards."""
    manifest = read_manifest(directory)
    with _engines({member.name: directory / member.onnx for member in manifest.members}) as engines:
        yield _loaded(manifest, directory, engines)


@dataclass(frozen=True)
class Evaluation:
    """What is measured, on which films, how, and where the results go.

    Attributes
    ----------
    samples
        Member name → the same films as this member sees them.
    part
        How these films are called: ``"test"``.
    out
        Folder for the results.
    replicates, seed
        Of every bootstrap.
    """

    subject: Subject
    samples: Mapping[str, Samples]
    part: str
    out: Path
    replicates: int
    seed: int
    progress: Progress

    @property
    def films(self) -> Samples:
        """The films as the first member sees them: truth, names and ages are every member's."""
        return next(iter(self.samples.values()))


def predict(evaluation: Evaluation, rows: Iterable[int], what: str) -> Iterator[FilmInWork]:
    """Each film after the networks and the night's steps, in the order of ``rows``.

    ``rows`` are places of films in the samples; ``what`` is told to the progress.

    Raises
    ------
    RunError
        An engine failed on a film.
    """
    subject = evaluation.subject
    conclusion = Conclusion(subject.manifest, PostprocessSettings.from_manifest(subject.manifest.postprocess))
    steps = _STEPS[subject.task]
    wanted = list(rows)
    for done, row in enumerate(wanted, 1):
        prepared = _prepared(evaluation, row)
        (output,) = infer(subject.bundle, [prepared])
        if not isinstance(output, NetworkOutput):
            raise RunError(f"{subject.title}: the engine failed on {evaluation.films.names[row]}: {output}.")
        film = FilmInWork(prepared, output)
        for step in steps:
            step(film, conclusion)
        evaluation.progress(what, done, len(wanted))
        yield film


def member_names(networks: Sequence[str]) -> list[str]:
    """Distinct names: a network's own, with a number where several runs share it."""
    names = []
    for place, network in enumerate(networks):
        earlier = networks[:place].count(network)
        names.append(network if networks.count(network) == 1 else f"{network}-{earlier + 1}")
    return names


def _prepared(evaluation: Evaluation, row: int) -> PreparedFilm:
    """A stored film as the decoder would hand it over.

    Samples keep neither header nor spacing: facts are empty but for the age, and the film is taken
    to have the size of the network's grid.
    """
    age = float(evaluation.films.ages[row])
    facts = FilmFacts("", "", "", "", "", "", 0, None if np.isnan(age) else int(age), "")
    tensors = {name: np.asarray(each.pictures[row], np.float32) for name, each in evaluation.samples.items()}
    height, width = next(iter(tensors.values())).shape[1:]
    return PreparedFilm(tensors, Geometry(height, width), facts, "", "")


def _member_of(run: FinishedRun, name: str) -> Member:
    channels, height, width = run.recipe.input_shape
    steps = tuple(run.recipe.preprocess)
    return Member(name, run.recipe.task, "member.onnx", channels, height, width, steps, run.recipe.network.name)


def _manifest(
    name: str, members: tuple[Member, ...], regions: tuple[BundleRegion, ...], findings: tuple[FindingThreshold, ...]
) -> Manifest:
    return Manifest(
        name=name,
        version="",
        created="",
        description="",
        regions=regions,
        findings=findings,
        members=members,
        temperature=1.0,
        parity_films=(),
        metrics={},
        recipe={},
        data_digest="",
        files={},
    )


def _loaded(manifest: Manifest, directory: Path, engines: dict[str, Engine]) -> LoadedBundle:
    return LoadedBundle(manifest, directory, "", engines, (), {})


@contextmanager
def _engines(networks: Mapping[str, Path]) -> Iterator[dict[str, Engine]]:
    engines: dict[str, Any] = {}
    try:
        backend = open_backend()
        for name, onnx in networks.items():
            if not onnx.is_file():
                raise RunError(f"{onnx.parent} has no {onnx.name}: finish the training with carina train.")
            engines[name] = backend.compile(onnx, Precision.FP32)
        yield engines
    except EngineBuildError as error:
        raise RunError(f"The network cannot be run: {error}") from error
    finally:
        for engine in engines.values():
            engine.close()
