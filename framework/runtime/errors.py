"""How a run ends other than by finishing, and with which exit code. Documented in docs/distributed.md."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

MISTAKE = 2  # what the user can mend
STOPPED = 75  # sysexits.h EX_TEMPFAIL: asked to stop, everything saved, to be gone on with
LOST = 76  # another process died, hung or could not be reached; go on from the last checkpoint
DEFECT = 1  # Python's own, of an error that nobody foresaw
# A file that gets exit code and reason, if the environment names one: launchers keep them to themselves.
OUTCOME = "SONOSCRIBE_OUTCOME"


class Stopped(Exception):  # noqa: N818 - not an error
    """A run that ends because it was asked to, with everything saved."""


class ProcessLost(Exception):  # noqa: N818 - what happened
    """Another process died, hung, or could not be reached."""


class MainProcessFailed(Exception):  # noqa: N818 - what happened
    """Raised where the main process could not go on, on all others: the main process tells why."""


def tell_outcome(code: int, reason: object) -> None:
    """Notes how this process ends for whoever started the launcher. Of several processes the first one counts: what
    the others see is what that one has caused.
    """
    path = os.environ.get(OUTCOME)
    if path:
        with contextlib.suppress(OSError), Path(path).open("x", encoding="utf-8") as file:
            json.dump({"code": code, "reason": str(reason)}, file, ensure_ascii=False)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
