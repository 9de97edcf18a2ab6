"""How a launcher takes runs from a store that others share: one claim a run, and every end of it
recorded.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_jax.config import Config
from lora_jax.io.contents import contents
from lora_jax.sweeps.store import RunConflict, RunDone, RunLocked, RunStore, StoreError
from lora_jax.training.result import RunResult

MOST_ATTEMPTS = 3  # processes that may die on one run, without a word, before it counts as failed


@dataclass
class Leases:
    """Leases of one launcher and what became of them, by id. `elsewhere` are being run by another
    process.

    With `since`, a run that failed after that time (seconds since 1970) is not tried again: of
    several launchers that started together, one failure is enough. With `score_test`, a run that
    was not scored on the test split is not done.
    """

    store: RunStore
    environment: Mapping[str, Any]
    say: Callable[[str], None]
    since: float | None = None
    score_test: bool = True
    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def claim(self, name: str, run: Config, title: str) -> Path | None:
        """The run's folder, claimed for this process; None if it is not ours to run now, which is
        said and counted.

        Raises:
            StoreVersionError: nothing can be run in this store.
        """
        if self.is_over(name, run, title):
            return None

        try:
            made_of = {"contents": contents(run.names, run.model.revision)}
            surroundings = {**self.environment, **made_of}
            folder = self.store.start(name, run, surroundings, score_test=self.score_test)
        except RunDone:  # by another launcher, since we looked
            self._end(self.kept, name, f"{title}: done before, kept", alone=True)
        except RunLocked:
            said = f"{title}: another process is running it"
            self._end(self.elsewhere, name, said, alone=True)
        except (RunConflict, StoreError) as error:
            # Not written into the folder: what is there belongs to another run, or cannot be written.
            self._end(self.failed, name, f"{title}: failed: {error}")
        else:
            deaths = self.store.state(name).attempts - 1
            if deaths < MOST_ATTEMPTS:
                return folder
            self.fail(
                name,
                RuntimeError(
                    f"{deaths} processes in a row were killed while they ran it: out of memory? "
                    "See log.txt."
                ),
                title,
            )
        return None

    def is_over(self, name: str, run: Config, title: str) -> bool:
        """Whether there is nothing to run: it is done, it failed since the launch, or its id stands
        for another run; said and counted.
        """
        try:
            self.store.check_content(name, run, contents(run.names, run.model.revision))
        except RunConflict as conflict:
            self._end(self.failed, name, f"{title}: failed: {conflict}")
            return True
        before = self.store.state(name)
        if self.store.is_done(name, score_test=self.score_test):
            self._end(self.kept, name, f"{title}: done before, kept", alone=True)
            return True
        since = math.inf if self.since is None else self.since
        if before.status == "failed" and (before.updated or 0) >= since:
            self.failed.append(name)
            return True
        return False

    def _end(self, among: list[str], name: str, text: str, *, alone: bool = False) -> None:
        among.append(name)
        # What is said `alone` goes without saying among workers that share a sweep.
        if not alone or self.since is None:
            self.say(text)

    def finish(
        self,
        name: str,
        result: RunResult,
        summary: str,
        made_of: Mapping[str, str] | None = None,
    ) -> None:
        """Records the result of a claimed run, with what its data and model were when they were
        read, and says `summary`.
        """
        try:
            self.store.finish(name, result, made_of)
        except RunLocked as lost:
            self._end(self.elsewhere, name, str(lost))
        except FileNotFoundError as removed:
            self._end(self.failed, name, f"{name}: failed: {removed}")
        else:
            self._end(self.done, name, summary)

    def fail(self, name: str, error: BaseException, title: str) -> None:
        """Records the failure of a claimed run; the rest can go on. On a disk that takes nothing
        more, at least it is said. A run that another process has taken over is that one's to record.
        """
        if isinstance(error, RunLocked):
            self._end(self.elsewhere, name, str(error))
            return
        self._end(self.failed, name, f"{title}: failed: {error}")
        try:
            self.store.fail(name, error)
        except StoreError as unwritten:
            self.say(f"{title}: and the failure could not be recorded: {unwritten}")

    def release(self, name: str) -> None:
        """Gives a claimed run back, to be gone on with by the next launcher."""
        # Without a word on the disk it reads as interrupted all the same.
        with contextlib.suppress(StoreError):
            self.store.release(name)
