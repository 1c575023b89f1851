"""What becomes of a shard's films in the target?

====================================  =====================================================
the film is                           then
====================================  =====================================================
not in the target                     it comes with all its files, jobs and results
the same picture as another film      it becomes that film's alias; its results count as
                                      that film's, where that one has none of the kind
in both, read from the same file      what says more wins: done, ineligible, failed, open.
                                      Of two results of one bundle and revision the
                                      target's stays
in both, read from two files          one content: the file is a duplicate. Another content:
                                      a conflict if the target's film is done. If only the
                                      shard's is done, its file takes the film's place.
                                      Otherwise a worker of the target looks: unverified
====================================  =====================================================

What a person decided in the target stays: a file that it knows and that does not hold the
film's place never takes it, and a film that was tried again there is not failed by an old
failure from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from sqlalchemy import Connection

from schema.tables import ArrivalState, JobState
from worker.errors import CODES, Kind
from worker.intake.arrivals import replace_file
from worker.intake.lookups import KnownArrival
from worker.merge.shard_file import Row, ShardArrival, ShardFilm, is_rejected
from worker.merge.target import DONE, FAILED, RANK, Target, TargetFilm, best, known_files, rank
from worker.merge.writing import UNBOUND, Writing, verify_first

_ALIAS_DETAIL = "the same picture is known under another name"
_LASTING = frozenset({Kind.PERMANENT, Kind.INELIGIBLE})
_UNSETTLED = frozenset({RANK[JobState.READY], FAILED})
#: State, code and detail of an arrival.
_Fate = tuple[str, str | None, str]
_UNVERIFIED: _Fate = (ArrivalState.UNVERIFIED.value, None, "")


@dataclass
class MergeCounts:
    """What a merge did: films that came, films of the target that learned something, the rest.

    ``aliases`` and ``conflicts`` are the part of the films and files that were found to repeat
    or contradict the target's. ``results`` counts results that were copied, ``files`` files
    that are no films, ``left_out`` films whose file is another film's in the target.
    """

    films: int = 0
    completed: int = 0
    unchanged: int = 0
    results: int = 0
    aliases: int = 0
    conflicts: int = 0
    files: int = 0
    left_out: int = 0

    def add(self, other: MergeCounts) -> None:
        """Add the counts of another chunk."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def to_json(self) -> dict[str, int]:
        """As plain values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def merge_files(connection: Connection, writing: Writing, files: Sequence[ShardArrival]) -> MergeCounts:
    """Merge files that belong to no film, in the transaction of the caller."""
    counts = MergeCounts()
    known = known_files(connection, files)
    writing.reserve(0, len(files), 0)
    for file in files:
        before = known.get(file.source) if file.source else None
        if before is not None:
            writing.seen(file, before.arrival_id)
        # Without its place a file could not be recognised the next time.
        elif file.source is not None:
            counts.files += 1
            writing.arrival(file)
    writing.write()
    return counts


def merge_films(connection: Connection, writing: Writing, films: Sequence[ShardFilm]) -> MergeCounts:
    """Merge a chunk of films, in the transaction of the caller."""
    target = Target(connection, films)
    replacing = [film for film in films if _takes_place(target, film)]
    for film in replacing:
        _replace(connection, writing, target, film)
    if replacing:
        target = Target(connection, films)
    chunk = _Chunk(target, writing)
    writing.reserve(
        len(films),
        sum(len(film.arrivals) for film in films),
        sum(len(film.jobs) + len(film.arrivals) + 1 for film in films),
    )
    for film in films:
        chunk.merge(film)
    writing.write()
    return chunk.counts


def _is_free(known: KnownArrival | None) -> bool:
    """Whether a film may have a file: nobody has it, it was at most refused for trouble of a machine."""
    return known is None or (known.instance_id is None and known.state == ArrivalState.REJECTED)


def _takes_place(target: Target, film: ShardFilm) -> bool:
    """Whether a file that the target does not know must take its film's place there."""
    mine, theirs = film.current, target.film(film.row["key"])
    if theirs is None or mine is None or mine.source is None or not _is_free(target.known(mine)):
        return False
    content = film.row["content_hash"]
    if content is None or rank(target.holder(theirs).jobs) == DONE or theirs.content_hash == content:
        return False
    twin = target.of_content(content)
    return rank(film.present_jobs) == DONE or (film.row["alias_of"] is not None and twin not in (None, theirs))


def _replace(connection: Connection, writing: Writing, target: Target, film: ShardFilm) -> None:
    mine, theirs = film.current, target.film(film.row["key"])
    assert mine is not None and theirs is not None
    changes = {"instance_id": theirs.id, "state": ArrivalState.UNVERIFIED.value, "current": False, "code": None}
    known = target.known(mine)
    writing.reserve(0, 1, 0)
    if known is None:
        number = writing.arrival(mine, **changes)
    else:
        number = known.arrival_id
        writing.retell(number, mine, **changes)
    writing.write_arrivals()
    end = _lasting_end(best(theirs.jobs))
    state, code, detail = end or (ArrivalState.CONFLICT.value, None, "")
    replace_file(connection, theirs.id, number, former=ArrivalState(state), code=code, detail=detail)
    if end is None and theirs.current is not None:
        verify_first(connection, theirs.current)


def _lasting_end(row: Row | None) -> _Fate | None:
    """What a film's job says about its file, if that would be the same tomorrow."""
    if row is None or row["state"] not in (JobState.FAILED, JobState.INELIGIBLE):
        return None
    known = CODES.get(row["code"])
    if known is not None and known.kind not in _LASTING:
        return None
    return ArrivalState.REJECTED.value, row["code"], row["detail"]


class _Chunk:
    """Decides the films of one chunk, one after the other, in memory."""

    def __init__(self, target: Target, writing: Writing) -> None:
        self._target = target
        self._writing = writing
        self.counts = MergeCounts()

    def merge(self, film: ShardFilm) -> None:
        theirs = self._target.film(film.row["key"])
        if theirs is not None:
            changed = self._merge_known(film, theirs)
            self.counts.completed += changed
            self.counts.unchanged += not changed
        elif film.current is not None and _is_free(self._target.known(film.current)):
            self._add(film)
        else:
            self.counts.left_out += 1

    def _add(self, film: ShardFilm) -> None:
        """A film that the target does not have."""
        row, target = film.row, self._target
        twin = target.of_content(row["content_hash"])
        # An alias whose film did not make it here is read by itself.
        orphan = row["alias_of"] is not None and twin is None
        content = {"content_hash": None, "file_hash": None} if orphan else {}
        number = self._writing.film(film, alias_of=twin.id if twin else None, **content)
        added = TargetFilm(
            number,
            row["generation"],
            None if orphan else row["content_hash"],
            twin.id if twin else None,
            None,
        )
        numbers: dict[int, int] = {}
        for file in film.arrivals:
            known = target.known(file)
            if not _is_free(known):
                continue
            fate: _Fate = (file.row["state"], file.row["code"], file.row["detail"])
            if file is film.current:
                fate = (ArrivalState.ALIAS.value if twin else ArrivalState.INSTANCE.value, None, "")
            numbers[file.row["id"]] = self._place(file, known, added, fate, current=file is film.current)
        assert film.current is not None
        added.current = numbers[film.current.row["id"]]
        self.counts.films += 1
        if twin is not None:
            self.counts.aliases += 1
            self._add_own_job(film, added, JobState.CANCELLED, _ALIAS_DETAIL)
            self._absorb(film, twin)
        elif orphan:
            self._add_own_job(film, added, JobState.READY, "")
        else:
            for item in film.jobs:
                arrival_id = numbers.get(item["arrival_id"])
                self._bring(item, added, arrival_id=arrival_id, generation=item["generation"])
        target.add(row["key"], added)

    def _add_own_job(self, film: ShardFilm, added: TargetFilm, state: JobState, detail: str) -> None:
        """The one job of a film that has no results of its own."""
        newest = film.jobs[-1]
        finished = newest["finished_at"] if state is JobState.CANCELLED else None
        job = self._writing.job(
            newest, result=False, instance_id=added.id, arrival_id=added.current, generation=added.generation,
            state=state.value, published=True, **UNBOUND, attempts=0, code=None, stage=None, detail=detail,
            finished_at=finished,
        )  # fmt: skip
        added.jobs.append(job)

    def _merge_known(self, film: ShardFilm, theirs: TargetFilm) -> bool:
        """A film that both have; returns whether the target learned something."""
        changed = False
        mine = film.current
        known = self._target.known(mine) if mine else None
        if known is not None and known.arrival_id == theirs.current and not _differ(film, theirs):
            changed |= self._agree(film, theirs)
        elif mine is not None and _is_free(known) and _same(film.row, theirs):
            changed |= self._absorb(film, self._target.holder(theirs))
        for file in film.arrivals:
            changed |= self._merge_file(film, file, theirs)
        return changed

    def _agree(self, film: ShardFilm, theirs: TargetFilm) -> bool:
        """Both read the same file: the shard's content is the film's, its results too."""
        if theirs.content_hash is None and film.row["content_hash"] is not None:
            twin = self._target.of_content(film.row["content_hash"])
            if film.row["alias_of"] is not None and twin is None:
                return False
            assert theirs.current is not None and film.current is not None
            self._writing.describe(theirs.id, film, twin.id if twin else None)
            theirs.content_hash = film.row["content_hash"]
            if twin is not None:
                theirs.alias_of = twin.id
                self.counts.aliases += 1
                self._clear(theirs)
            state = ArrivalState.ALIAS if twin else ArrivalState.INSTANCE
            self._writing.retell(
                theirs.current, film.current, instance_id=theirs.id, state=state.value, current=True, code=None,
                detail="",
            )  # fmt: skip
            self._target.speaks_for(theirs)
            self._absorb(film, self._target.holder(theirs))
            return True
        return self._absorb(film, self._target.holder(theirs))

    def _absorb(self, film: ShardFilm, holder: TargetFilm) -> bool:
        """Let a film of the target have what the shard found out about the same content."""
        jobs = [row for row in film.present_jobs if RANK[row["state"]] > 0]
        known, told = rank(holder.jobs), rank(jobs)
        if told >= FAILED and told > known and _is_news(best(jobs), holder):
            self._clear(holder)
            for row in jobs:
                self._bring(row, holder, arrival_id=holder.current, generation=holder.generation)
            return True
        if told < DONE or known < DONE:
            return False
        changed = False
        for row in jobs:
            if row["state"] == JobState.DONE and self._make_way(holder, row):
                self._bring(row, holder, arrival_id=holder.current, generation=holder.generation)
                changed = True
        return changed

    def _make_way(self, holder: TargetFilm, row: Row) -> bool:
        """Free the place of a job's bundle and revision; False where what is there is final."""
        wanted = (self._writing.bundle_id(row), row["revision"])
        same = [other for other in holder.jobs if (other["bundle_id"], other["revision"]) == wanted]
        if any(other["state"] in (JobState.DONE, JobState.INELIGIBLE) for other in same):
            return False
        for other in same:
            self._writing.cancel(other["id"])
            holder.jobs.remove(other)
        return True

    def _bring(self, row: Row, holder: TargetFilm, *, arrival_id: int | None, generation: int) -> None:
        job = self._writing.job(row, instance_id=holder.id, arrival_id=arrival_id, generation=generation)
        self.counts.results += job["state"] == JobState.DONE
        if generation == holder.generation and job["published"]:
            holder.jobs.append(job)

    def _clear(self, holder: TargetFilm) -> None:
        """End what the target knows and asks about a film that is not done."""
        if any(row["state"] == JobState.INELIGIBLE for row in holder.jobs):
            # That is final: as when another file takes a film's place, it speaks for it no longer.
            holder.generation += 1
            self._writing.new_generation(holder.id, holder.generation, [row["id"] for row in holder.jobs])
        for row in holder.jobs:
            if row["state"] != JobState.INELIGIBLE:
                self._writing.cancel(row["id"])
        holder.jobs.clear()

    def _merge_file(self, film: ShardFilm, file: ShardArrival, theirs: TargetFilm) -> bool:
        """One file of a film that both have; returns whether it is new or was settled."""
        known = self._target.known(file)
        if not _is_free(known):
            assert known is not None
            self._writing.seen(file, known.arrival_id)
            if known.instance_id != theirs.id or known.state != ArrivalState.UNVERIFIED:
                return False
        elif file.source is None:
            return False
        fate = self._fate(film, file, theirs)
        if known is not None and known.instance_id == theirs.id and fate == _UNVERIFIED:
            return False
        self.counts.conflicts += fate[0] == ArrivalState.CONFLICT
        self._place(file, known, theirs, fate, current=False)
        return True

    def _fate(self, film: ShardFilm, file: ShardArrival, theirs: TargetFilm) -> _Fate:
        """What a second file of a film is."""
        if is_rejected(file.row):
            return file.row["state"], file.row["code"], file.row["detail"]
        content = file.row["content_hash"]
        if file is film.current:
            content = content or film.row["content_hash"]
            end = _lasting_end(best(film.present_jobs))
            if content is None and end is not None:
                return end
        if content is None or theirs.content_hash is None or file.row["state"] == ArrivalState.UNVERIFIED:
            return _UNVERIFIED
        if content == theirs.content_hash:
            return ArrivalState.DUPLICATE.value, None, ""
        done = rank(self._target.holder(theirs).jobs) == DONE
        return (ArrivalState.CONFLICT.value, None, "") if done else _UNVERIFIED

    def _place(
        self, file: ShardArrival, known: KnownArrival | None, film: TargetFilm, fate: _Fate, *, current: bool
    ) -> int:
        """Write a file down as one of a film's; returns its id."""
        state, code, detail = fate
        changes = {"instance_id": film.id, "state": state, "current": current, "code": code, "detail": detail}
        if known is not None:
            self._writing.retell(known.arrival_id, file, **changes)
            if known.instance_id is None:
                self._writing.seen(file, known.arrival_id)
            return known.arrival_id
        number = self._writing.arrival(file, **changes)
        # What was found out there about an unverified file was found out about another film's content.
        if file.verification is not None and (fate != _UNVERIFIED or RANK[file.verification["state"]] in _UNSETTLED):
            self._writing.job(file.verification, instance_id=film.id, arrival_id=number, generation=film.generation)
        return number


def _same(row: Row, film: TargetFilm) -> bool:
    return row["content_hash"] is not None and row["content_hash"] == film.content_hash


def _differ(film: ShardFilm, theirs: TargetFilm) -> bool:
    return None not in (film.row["content_hash"], theirs.content_hash) and not _same(film.row, theirs)


def _is_news(row: Row | None, holder: TargetFilm) -> bool:
    """Whether a job tells something that the target has not seen: a result always does."""
    if row is None or RANK[row["state"]] == DONE or holder.last_attempt is None or row["finished_at"] is None:
        return row is not None
    return bool(row["finished_at"] > holder.last_attempt)
