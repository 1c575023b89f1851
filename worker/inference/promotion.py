"""May a bundle be put into service?

Three gates, each with a sentence where it refuses:

engine
    The bundle has an engine that passed the parity gate: one is recorded, or it can be made here
    and now (with ``CARINA_ENGINE_BUILD=never``: it is in the cache that the workers read).
metrics
    On the same held-out films none of its figures lies below the interval of the bundle in
    service (:mod:`worker.inference.promotion_metrics`). What cannot be compared refuses nothing.
shadow
    Where ``CARINA_SHADOW_AGREEMENT`` asks for it: enough films were read in the shadow, and the two
    bundles agree about them.

Whoever insists overrides them; what was overridden is recorded with the promotion.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import exists, select

from schema import tables
from schema.bundle import BundleError, read_manifest
from schema.database import Database
from worker.errors import CarinaError
from worker.inference.bundles import load_bundle
from worker.inference.compare import compare
from worker.inference.promotion_metrics import judge_metrics
from worker.inference.registry import (
    CHAMPION,
    BundleEntry,
    bundle_folder,
    find_bundle,
    list_bundles,
    promote_bundle,
    record_engine,
)
from worker.settings import Settings

#: Fewer films tell nothing about agreement.
LEAST_SHADOW_FILMS = 30


@dataclass(frozen=True)
class Promotion:
    """What came of it: the bundle, what spoke against it and was overridden, and by what its figures were judged."""

    entry: BundleEntry
    overridden: tuple[str, ...]
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**self.entry.to_json(), "overridden": list(self.overridden), "remarks": list(self.remarks)}


def promote(database: Database, settings: Settings, key: str, *, actor: str, force: bool = False) -> Promotion:
    """Put the bundle called ``key`` into service if the gates let it through, or with ``force``.

    Raises
    ------
    worker.errors.CarinaError
        There is no such bundle, or a gate refuses it.
    """
    entry = find_bundle(database, settings, key)
    serving = next((each for each in list_bundles(database, settings) if CHAMPION in each.aliases), None)
    if serving is not None and serving.id == entry.id:
        return Promotion(entry, (), ())
    reasons = [*_engine_gate(database, settings, entry)]
    remarks: tuple[str, ...] = ()
    if serving is not None:
        judgement = judge_metrics(database, entry, serving)
        reasons += judgement.below
        remarks = judgement.remarks
        reasons += _shadow_gate(database, settings, entry, serving)
    if reasons and not force:
        # By what the figures were judged, and what may flatter one of the two: whoever decides must know.
        why = " ".join((*reasons, *remarks))
        raise CarinaError(
            f"{key} is not put into service. {why} To do it all the same: carina bundle promote {key} --force"
        )
    promoted = promote_bundle(database, settings, key, actor=actor, overridden=reasons)
    return Promotion(promoted, tuple(reasons), remarks)


def _engine_gate(database: Database, settings: Settings, entry: BundleEntry) -> Iterator[str]:
    with database.read() as connection:
        recorded = connection.scalar(select(exists().where(tables.engine.c.bundle_id == entry.id)))
    if not entry.here:
        if not recorded:
            yield (
                "No engine of it has passed the parity gate yet, and this machine lacks its files: run "
                "carina bundle add here, or promote it where it was added."
            )
        return
    directory = bundle_folder(settings, entry.sha256)
    try:
        if recorded:
            read_manifest(directory)
            return
        bundle = load_bundle(
            directory,
            home=settings.home,
            backend=settings.backend,
            precision=settings.precision,
            build=settings.engine_build,
        )
        try:
            record_engine(database, entry.id, bundle.engine_description, bundle.parity)
        finally:
            bundle.close()
    except BundleError as error:
        yield str(error)


def _shadow_gate(database: Database, settings: Settings, entry: BundleEntry, serving: BundleEntry) -> Iterator[str]:
    if settings.shadow_agreement <= 0:
        return
    found = compare(database, serving.id, entry.id)
    if found.films < LEAST_SHADOW_FILMS:
        yield (
            f"It has read {found.films} of the films that {serving.key} has read, and agreement is asked for on at "
            f"least {LEAST_SHADOW_FILMS} (carina bundle shadow {entry.key} --last 500)."
        )
    elif not found.agreement >= settings.shadow_agreement:
        yield (
            f"It agrees with {serving.key} to {found.agreement:.3f} on {found.films} films, asked for is "
            f"{settings.shadow_agreement:g} (carina bundle compare {serving.key} {entry.key})."
        )
