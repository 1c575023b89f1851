"""Who is trained on, who chooses, who judges: by patient, stratified, the same for a seed whatever the films' order.

Patients and duplicates are bound together first: films of one patient, and films of one group, end in one part.
These bundles are then dealt out by iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, Algorithm 1)
over the findings a film is known to show, its age group (Holste et al., Table 4: 0-4 years, 5 and older) and whether
it has a truth. The paper deals out single examples; a bundle here counts with all its films, and its size (1, 2-3, 4-7,
... films) is one more label: patients with many films are sicker than others, and no part should have them all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from schema.keys import is_held_out
from trainer.data.records import PARTS, FilmRecord, some_of
from trainer.errors import DataError
from trainer.recipe import SplitTable

#: Where the age groups part: five years, in days.
TODDLER_DAYS = 5 * 365.25

_TRAIN, _VALIDATION, _TEST = PARTS


@dataclass(frozen=True)
class Split:
    """Indices of the films of each part, ascending."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]

    def part(self, name: str) -> tuple[int, ...]:
        """The films of ``"train"``, ``"validation"`` or ``"test"``."""
        return {_TRAIN: self.train, _VALIDATION: self.validation, _TEST: self.test}[name]


@dataclass(frozen=True)
class _Bundle:
    """Films that stay together, and the part they must be in, if any."""

    films: tuple[int, ...]
    part: str


def split(records: Sequence[FilmRecord], settings: SplitTable) -> Split:
    """Deal films out to the parts.

    Patients held out (``settings.held_out``, :func:`schema.keys.is_held_out` of ``record.patient``) and films whose
    part the data set fixes go where they belong, and so do the other films of their patients. Validation or test,
    once filled in this way, takes no further patient; what is left is dealt out in proportion to the shares of the
    parts still open. With ``folds`` the patients left are dealt into so many equal folds instead: fold ``fold`` is the
    test part and the others are divided in proportion to ``train`` and ``validation``; where test is already filled,
    the fold is the validation part and the others are trained on. With ``own_folds`` the folds are those of the data
    set, in the order of their names.

    Raises
    ------
    DataError
        Two films of one name, a patient or group fixed to two parts, or a part without films
        (one whose share is 0 may be empty); the data set has other folds than ``own_folds`` expects.
    """
    _check_names(records)
    bundles = _bundles(records, settings.held_out)
    assigned: dict[str, list[int]] = {part: [] for part in PARTS}
    free = []
    for bundle in bundles:
        if bundle.part:
            assigned[bundle.part].extend(bundle.films)
        else:
            free.append(bundle)
    shares = {_TRAIN: settings.train, _VALIDATION: settings.validation, _TEST: settings.test}
    closed = {part for part in (_VALIDATION, _TEST) if assigned[part]} | ({_TEST} if settings.held_out else set())
    dealt: dict[str, list[_Bundle]] = {}
    if settings.folds:
        folds = (
            _own_folds(records, free, settings.folds)
            if settings.own_folds
            else _deal(records, free, [1.0] * settings.folds, settings.seed)
        )
        turn = _VALIDATION if _TEST in closed else _TEST
        dealt[turn] = folds.pop(settings.fold)
        free = sorted((bundle for fold in folds for bundle in fold), key=lambda bundle: records[bundle.films[0]].name)
        closed |= {turn, _TEST}
    still_open = {part: share for part, share in shares.items() if part not in closed}
    dealt |= dict(zip(still_open, _deal(records, free, list(still_open.values()), settings.seed), strict=True))
    for part, several in dealt.items():
        assigned[part].extend(index for bundle in several for index in bundle.films)
    for part in PARTS:
        if (shares[part] or part in closed) and not assigned[part]:
            raise DataError(
                f"The {part} part is empty: {len(bundles)} independent patients are too few for the shares of "
                f"data.split. Add films, or change data.split."
            )
    chosen = Split(*(tuple(sorted(assigned[part])) for part in PARTS))
    check_no_patient_crosses(records, chosen)
    return chosen


def check_no_patient_crosses(records: Sequence[FilmRecord], chosen: Split) -> None:
    """Refuse a split in which a patient, or a group of duplicates, is in more than one part.

    Raises
    ------
    DataError
        Names that patient's films and their parts, never the patient.
    """
    where: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for part in PARTS:
        for index in chosen.part(part):
            record = records[index]
            where["patient", record.patient][part].append(record.name)
            if record.group:
                where["group of duplicates", record.group][part].append(record.name)
    for (kind, _), parts in where.items():
        if len(parts) > 1:
            raise _crossing(kind, {name: part for part, names in parts.items() for name in names})


def choose_films(indices: Sequence[int], count: int, records: Sequence[FilmRecord], seed: int) -> tuple[int, ...]:
    """``count`` of the films at random (all of them for 0 or when there are fewer), ascending: ``data.films``.

    The choice depends on the films' names and the seed, and that of a smaller count lies within that of a larger.
    """
    if not count or count >= len(indices):
        return tuple(sorted(indices))
    named = sorted(indices, key=lambda index: records[index].name)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(named))
    return tuple(sorted(named[place] for place in order[:count]))


def age_group(age_days: float | None) -> str:
    """``"0-4"``, ``"5+"`` or ``"unknown"``."""
    if age_days is None:
        return "unknown"
    return "0-4" if age_days < TODDLER_DAYS else "5+"


def _labels(record: FilmRecord) -> list[str]:
    shown = [f"finding {finding}" for finding, present in record.findings.items() if present]
    return [*shown, f"age {age_group(record.age_days)}", f"truth {bool(record.truth_kind)}"]


def _check_names(records: Sequence[FilmRecord]) -> None:
    seen: set[str] = set()
    for record in records:
        if record.name in seen:
            raise DataError(f"Two films are called {record.name}: give every film a name of its own.")
        seen.add(record.name)


def _bundles(records: Sequence[FilmRecord], held_out: bool) -> list[_Bundle]:
    """Films joined by patient and group; in the order of their first names."""
    parent = list(range(len(records)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, record in enumerate(records):
        for tie in (("patient", record.patient), ("group", record.group)):
            if tie[1]:
                parent[root(index)] = root(first.setdefault(tie, index))
    joined: dict[int, list[int]] = defaultdict(list)
    for index in sorted(range(len(records)), key=lambda index: records[index].name):
        joined[root(index)].append(index)
    return [_Bundle(tuple(films), _fixed_part(records, films, held_out)) for films in joined.values()]


def _fixed_part(records: Sequence[FilmRecord], films: Sequence[int], held_out: bool) -> str:
    fixed = {records[index].name: records[index].part for index in films if records[index].part}
    drawn = all(records[index].seed is not None for index in films)
    if held_out and not (drawn and fixed) and any(is_held_out(records[index].patient) for index in films):
        return _TEST
    if len(set(fixed.values())) > 1:
        raise _crossing("patient or group of duplicates", fixed)
    return next(iter(fixed.values()), "")


def _crossing(kind: str, parts: Mapping[str, str]) -> DataError:
    listed = some_of(f"{name} ({part})" for name, part in parts.items())
    return DataError(f"One {kind} is in two parts: {listed}. Put all of these films into one part.")


def _own_folds(records: Sequence[FilmRecord], bundles: Sequence[_Bundle], count: int) -> list[list[_Bundle]]:
    """The bundles by the data set's own folds."""
    folds: dict[str, list[_Bundle]] = defaultdict(list)
    for bundle in bundles:
        said = {records[index].name: records[index].fold for index in bundle.films}
        if len(set(said.values())) > 1:
            raise _crossing("patient or group of duplicates", said)
        folds[next(iter(said.values()))].append(bundle)
    if "" in folds or len(folds) != count:
        named = ", ".join(sorted(name for name in folds if name)) or "none"
        raise DataError(
            f"data.split.own_folds asks for {count} folds of the data set's own, and its films are in {named}"
            f"{' or in no fold' if '' in folds else ''}: correct data.split.folds, or the description's films.fold."
        )
    return [folds[name] for name in sorted(folds)]


def _deal(
    records: Sequence[FilmRecord], bundles: Sequence[_Bundle], shares: Sequence[float], seed: int
) -> list[list[_Bundle]]:
    """Iterative stratification of ``bundles`` into ``len(shares)`` subsets of films in proportion to ``shares``.

    Where bundles are so few that a subset with a share got none, it takes one of the fullest subset's.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    bundles = [bundles[place] for place in rng.permutation(len(bundles))]
    counts = [_counts(records, bundle) for bundle in bundles]
    waiting: dict[str, dict[int, int]] = defaultdict(dict)  # label → bundle → films that have it
    for number, count in enumerate(counts):
        for label, films in count.items():
            waiting[label][number] = films
    portions = np.asarray(shares, np.float64) / sum(shares)
    wanted = {label: portions * sum(films.values()) for label, films in waiting.items()}
    room = portions * sum(len(bundle.films) for bundle in bundles)
    dealt: list[list[_Bundle]] = [[] for _ in shares]
    while waiting:
        rarest = min(waiting, key=lambda label: (sum(waiting[label].values()), label))
        for number in list(waiting[rarest]):
            taker = _neediest(wanted[rarest], room, rng)
            dealt[taker].append(bundles[number])
            room[taker] -= len(bundles[number].films)
            for label, films in counts[number].items():
                wanted[label][taker] -= films
                del waiting[label][number]
        waiting = defaultdict(dict, {label: films for label, films in waiting.items() if films})
    for subset, share in zip(dealt, shares, strict=True):
        fullest = max(dealt, key=len)
        if share and not subset and len(fullest) > 1:
            subset.append(fullest.pop())
    return dealt


def _neediest(wanted: np.ndarray, room: np.ndarray, rng: np.random.Generator) -> int:
    most = np.flatnonzero(wanted >= wanted.max() - 1e-9)
    most = most[room[most] >= room[most].max() - 1e-9]
    return int(most[rng.integers(len(most))])


def _counts(records: Sequence[FilmRecord], bundle: _Bundle) -> Counter[str]:
    """Label → films of the bundle that have it; its size class is one more."""
    counts = Counter(label for index in bundle.films for label in _labels(records[index]))
    counts[f"bundle of 2^{len(bundle.films).bit_length() - 1}"] = len(bundle.films)
    return counts
