"""Who takes one destination's outbox there?

A courier looks into the outbox, claims a batch, opens the way, makes each film's outputs and sends
them. What goes wrong with an output is that output's; what goes wrong with the destination lets it
rest and costs no attempt. Every destination has a courier of its own, so one that hangs holds up nobody.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import attrgetter
from types import TracebackType
from typing import Self

from pydicom import Dataset
from sqlalchemy.exc import DBAPIError

from schema.database import Database
from schema.outputs import OutputKind
from schema.tables import DeliveryState
from worker.errors import CarinaError, FilmError, Kind
from worker.film.pictures import PictureReader
from worker.peers.configuration import Destination
from worker.peers.trouble import TROUBLES, PeerError, Whose, sentence
from worker.queue.patience import Patience, Value
from worker.results.delivery.outbox import Claimed, Ended, Outbox
from worker.results.delivery.senders import Sender, sender_to
from worker.settings import Settings

log = logging.getLogger(__name__)

#: Outputs claimed together: about as many films as a worker's batch.
BATCH = 32
#: Passing troubles in a row after which it is the destination that is in trouble.
TROUBLES_IN_A_ROW = 3


@dataclass
class Tally:
    """What a courier did since it started: outputs by what became of them."""

    sent: int = 0
    failed: int = 0
    delayed: int = 0
    abandoned: int = 0
    codes: Counter[str] = field(default_factory=Counter)


class Courier:
    """Delivers to one destination, in one thread; a context manager around its decoder, if it needs one.

    Parameters
    ----------
    outbox
        Of this destination.
    stop
        Set it, and the courier ends after the output in hand.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        destination: Destination,
        outbox: Outbox,
        stop: threading.Event,
    ) -> None:
        self.tally = Tally()
        self._database = database
        self._settings = settings
        self._destination = destination
        self._outbox = outbox
        self._stop = stop
        self._patience = Patience(wait=stop.wait)
        self._in_a_row = 0
        self._said = ""
        self._pictures: PictureReader | None = None

    def __enter__(self) -> Self:
        from worker.results.outputs.capture import LONGEST_SIDE
        from worker.results.outputs.objects import PICTURES

        if PICTURES.intersection(self._destination.outputs):
            self._pictures = PictureReader(self._settings, LONGEST_SIDE).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pictures is not None:
            self._pictures.__exit__(kind, error, trace)

    def run(self) -> None:
        """Deliver until told to stop."""
        while not self._stop.is_set():
            if not self.step():
                self._stop.wait(self._settings.poll_seconds)

    def drain(self) -> None:
        """Deliver what can be delivered now, and end. A destination that rests is tried once."""
        resting = True
        while not self._stop.is_set():
            if self.step(even_resting=resting):
                resting = False
            elif self._until_done(self._outbox.look).ready and self._until_done(self._outbox.full):
                self._stop.wait(1.0)
            else:
                return

    def step(self, *, even_resting: bool = False) -> bool:
        """Claim and deliver one batch; False if there was nothing to do, or the destination rests."""
        self._until_done(self._outbox.fill)
        look = self._until_done(self._outbox.look)
        if look.returning:
            self._until_done(self._outbox.bring_back)
        elif not look.ready:
            return False
        if look.resting and not even_resting:
            return False
        lease_id = str(uuid.uuid4())
        # One is enough to find out whether a destination is well again.
        limit = 1 if look.failures else BATCH
        claimed = self._until_done(lambda: self._outbox.claim(lease_id, limit))
        try:
            superseded = [each for each in claimed if each.superseded]
            if superseded:
                self._until_done(lambda: self._outbox.replace(superseded, lease_id))
                self.tally.abandoned += len(superseded)
            films = [each for each in claimed if not each.superseded]
            if films:
                self._deliver(films, lease_id)
        except PeerError as trouble:
            self._rest(trouble)
            return True
        finally:
            if claimed:
                self._until_done(lambda: self._outbox.give_back(lease_id))
        return bool(claimed)

    def _deliver(self, claimed: Sequence[Claimed], lease_id: str) -> None:
        with sender_to(self._destination.peer) as sender:
            for _, of_film in groupby(claimed, key=attrgetter("job_id")):
                if self._stop.is_set() or not self._until_done(lambda: self._outbox.renew(lease_id)):
                    return
                if not self._deliver_film(sender, list(of_film), lease_id):
                    return

    def _deliver_film(self, sender: Sender, outputs: Sequence[Claimed], lease_id: str) -> bool:
        """Make and send the outputs of one film; False if the way is broken."""
        made = self._make(outputs)
        for each in outputs:
            if isinstance(made, FilmError):
                ended = Ended(each, made.code, made.detail, final=made.kind is not Kind.TRANSIENT)
            elif isinstance(made, PeerError):
                ended = Ended(each, made.code, made.detail, final=True)
            else:
                ended = self._send(sender, each, made.get(each.output, []))
            self._until_done(partial(self._outbox.record, lease_id, [ended]))
            self._count(ended)
            if ended.code in TROUBLES and self._in_a_row >= TROUBLES_IN_A_ROW:
                self._in_a_row = 0
                raise PeerError(ended.code, ended.detail)
            if ended.code == "NO_ANSWER":
                return False
        return True

    def _make(self, outputs: Sequence[Claimed]) -> dict[OutputKind, list[Dataset]] | FilmError | PeerError:
        from worker.results.outputs.objects import build_objects

        kinds = [each.output for each in outputs]
        build = partial(
            build_objects, self._database, self._settings, outputs[0].job_id, kinds, pictures=self._pictures
        )
        try:
            return self._until_done(build)
        except FilmError as error:
            return error
        except DBAPIError:
            raise
        except CarinaError:
            return PeerError("OUTPUT_FAILED", "the stored result cannot be used")
        except Exception as error:
            # A fault of ours over one film must not stop the others; its words may hold identity.
            log.error("%s: an output of job %d could not be made: %s", self._destination.name, outputs[0].job_id,
                      type(error).__name__)  # fmt: skip
            return PeerError("OUTPUT_FAILED", type(error).__name__)

    def _send(self, sender: Sender, each: Claimed, objects: Sequence[Dataset]) -> Ended:
        if not objects:
            return Ended(each, "NOTHING_TO_SEND", state=DeliveryState.ABANDONED)
        try:
            sender.send(objects)
        except PeerError as trouble:
            if trouble.whose is Whose.PEER:
                raise
            return Ended(each, trouble.code, trouble.detail, final=trouble.whose is Whose.LASTING)
        return Ended(each)

    def _count(self, ended: Ended) -> None:
        tally = self.tally
        if ended.code is None:
            tally.sent += 1
            self._in_a_row = 0
            self._say("")
            return
        tally.codes[ended.code] += 1
        if ended.state is DeliveryState.ABANDONED:
            tally.abandoned += 1
        elif ended.final:
            tally.failed += 1
            log.warning("%s: an output of job %d is given up. %s", self._destination.name, ended.claimed.job_id,
                        sentence(ended.code, ended.detail))  # fmt: skip
        else:
            tally.delayed += 1
            # A film that cannot be read just now says nothing about the destination.
            self._in_a_row += ended.code in TROUBLES

    def _rest(self, trouble: PeerError) -> None:
        seconds = self._until_done(lambda: self._outbox.rest(trouble))
        self.tally.codes[trouble.code] += 1
        self._say(str(trouble))
        log.info("%s is tried again in %.0f s", self._destination.name, seconds)

    def _say(self, trouble: str) -> None:
        """Say once what is wrong with the destination, and that it is over."""
        if trouble == self._said:
            return
        self._said = trouble
        if trouble:
            log.warning("%s: %s Nothing is lost; it is tried again.", self._destination.name, trouble)
        else:
            log.warning("%s takes what we send again.", self._destination.name)

    def _until_done(self, operation: Callable[[], Value]) -> Value:
        return self._patience.until_done(operation, give_up=self._stop.is_set)
