"""What is known of runs of trials elsewhere, and when patience with them ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sthyper.backend._memory import OomKills
from sthyper.backend._messages import ChannelMessage, ClientBye, ClientGone, ClientHello
from sthyper.backend._runs import RunState, classify_end
from sthyper.backend.base import EndEvent
from sthyper.trial import Status

__all__ = ["LOST", "RemoteRun", "Step"]

logger = logging.getLogger(__name__)

LOST = "lost"
"""End reason of a run that was not heard of for ``reconnect_grace`` seconds, or that has ended unheard; it is run
again."""
KILL_AFTER = 2.0
"""Seconds between the order to end and force."""
GIVE_UP_AFTER = 10.0
"""Seconds after force at which a run counts as ended whatever the other side says."""

Step = str


@dataclass(eq=False)
class RemoteRun:
    """A run that is not over.

    Args:
        state: What is known of any run.
        place: Where it runs, for the backend; ``None`` if nobody knows.
        reattached: Whether an earlier tuner has started it.
        silent_since: ``time.monotonic()`` since when none of its processes is connected; ``None`` while one is, and
            before the first one was.
        clients: Its connected processes.
        said_bye: Whether one of them has announced its end.
        end_at: ``time.monotonic()`` at which it is asked to end, from outside.
        force_at: The same for force.
        give_up_at: The same for taking it for ended.
    """

    state: RunState
    place: dict[str, Any] | None = None
    reattached: bool = False
    silent_since: float | None = None
    clients: set[str] = field(default_factory=set)
    said_bye: bool = False
    end_at: float | None = None
    force_at: float | None = None
    give_up_at: float | None = None

    @property
    def trial_id(self) -> int:
        return self.state.spec.trial_id

    def order(self, status: Status, at_once: bool, grace: float) -> None:
        """Note that the run has to end; an earlier time than noted before comes first."""
        if self.state.ordered is None:
            self.state.ordered = status
        now = time.monotonic()
        soft, hard = (now, now + grace) if at_once else (now + grace, now + grace + KILL_AFTER)
        if self.force_at is None and self.give_up_at is None:
            self.end_at, self.force_at = soft, hard
        elif self.force_at is not None and hard < self.force_at:
            self.end_at = soft if self.end_at is not None else None
            self.force_at = hard

    def hear(self, message: ChannelMessage) -> None:
        """Note what the channel tells of the run's processes."""
        if isinstance(message, ClientHello):
            self.clients.add(message.client)
            self.silent_since = None
        elif isinstance(message, ClientGone):
            self.clients.discard(message.client)
            if not self.clients:
                self.silent_since = time.monotonic()
        elif isinstance(message, ClientBye):
            self.said_bye = True
            self.state.ok = self.state.ok and message.ok
            if not message.ok and message.reason is not None and self.state.ordered is None:
                self.state.reason = message.reason

    def lost_at(self, grace: float) -> float | None:
        """Return the ``time.monotonic()`` at which it counts as lost, ``None`` if it does not."""
        if self.silent_since is None:
            return None
        if self.said_bye:
            # Its last process may work on without a connection, if the backend is able to tell when it ends.
            return None if self.place is not None else self.silent_since
        return self.silent_since + grace

    def due(self, grace: float) -> float | None:
        """Return the next ``time.monotonic()`` at which :meth:`steps` has something to say."""
        times = (self.end_at, self.force_at, self.give_up_at, self.lost_at(grace))
        return None if self.state.gone else min((t for t in times if t is not None), default=None)

    def steps(self, now: float, grace: float) -> Iterator[Step]:
        """Yield what is to be done now: ``"end"`` it, ``"force"`` it to end, take it for ``"gone"``."""
        if self.state.gone:
            return
        if self.end_at is not None and now >= self.end_at:
            self.end_at = None
            yield "end"
        if self.force_at is not None and now >= self.force_at:
            self.force_at, self.give_up_at = None, now + (0.0 if self.place is None else GIVE_UP_AFTER)
            yield "force"
        if self.give_up_at is not None and now >= self.give_up_at:
            logger.warning("trial %d: nobody knows whether it has ended; it counts as ended", self.trial_id)
            yield "gone"
            return
        lost_at = self.lost_at(grace)
        if lost_at is not None and now >= lost_at:
            if not self.said_bye and self.state.ordered is None:
                logger.warning("trial %d was not heard of for %.0f s and counts as lost", self.trial_id, grace)
                self.state.reason = LOST
            yield "force"
            yield "gone"

    def end_event(self, kills: OomKills) -> EndEvent:
        """Return how the run has ended.

        Args:
            kills: The kernel's counts.
        """
        state = self.state
        if state.code is None and self.said_bye and state.reason is None:
            # Nobody knows the exit code; its own word has to do.
            if state.ok:
                state.code = 0
            else:
                state.reason = "exit after a failure"
        elif state.code is None and self.reattached and state.reason is None and state.ordered is None:
            # It may have ended in order while there was nobody to tell; if so it does again at once.
            state.reason = LOST
        status, reason, tail = classify_end(state, kills)
        return EndEvent(state.spec.trial_id, state.spec.run, status, reason, state.code, tail)
