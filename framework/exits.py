"""How a run ends other than by finishing, and with which exit code. Documented in docs/distributed.md."""

from __future__ import annotations

MISTAKE = 2  # what the user can mend
STOPPED = 75  # sysexits.h EX_TEMPFAIL: asked to stop, everything saved, to be gone on with
LOST = 76  # another process died, hung or could not be reached; go on from the last checkpoint


class Stopped(Exception):  # noqa: N818 - not an error
    """A run that ends because it was asked to, with everything saved."""


class ProcessLost(Exception):  # noqa: N818 - what happened
    """Another process died, hung, or could not be reached."""


class MainProcessFailed(Exception):  # noqa: N818 - what happened
    """Raised where the main process could not go on, on all others: the main process tells why."""
