"""Writes checkpoints while training goes on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from framework.checkpoint.format import RetentionPolicy, Snapshot, clear_unfinished, write_checkpoint


class SaveError(ValueError):
    """A checkpoint that could not be written; those before it are as they were."""


class AsyncCheckpointer:
    """Hands snapshots to a thread, one at a time. Only the main process has one.

    Args:
        background: False writes while the caller waits.
    """

    def __init__(self, folder: Path, keep: RetentionPolicy, background: bool) -> None:
        self.folder, self.keep, self.background = folder, keep, background
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self.writing: Future[None] | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Starts to write. The one before must be finished, or it is waited for.

        Raises:
            SaveError: the one before could not be written, or this one, in the foreground.
        """
        self.finish()
        self.writing = self.thread.submit(self._write, snapshot)
        if not self.background:
            self.finish()

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_checkpoint(self.folder, snapshot, self.keep)
        except Exception:
            clear_unfinished(self.folder)  # half a checkpoint would keep a full disk full
            raise

    @property
    def failed(self) -> bool:
        return self.writing is not None and self.writing.done() and self.writing.exception() is not None

    def finish(self) -> None:
        """Waits until everything is on the disk. Raises SaveError if something is not."""
        if self.writing is None:
            return
        writing, self.writing = self.writing, None
        try:
            writing.result()
        except Exception as error:
            raise SaveError(
                f"{self.folder}: a checkpoint could not be written ({error}). Those before it are whole: mend that, "
                "and go on with resume=auto"
            ) from error

    def close(self) -> None:
        """Lets the thread end, whatever it says: for a run that ends by another error."""
        self.thread.shutdown(wait=True)
