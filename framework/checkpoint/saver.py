"""Writes checkpoints in the background while training continues."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from framework.checkpoint.format import CheckpointError, RetentionPolicy, Snapshot, clear_unfinished, write_checkpoint


class AsyncCheckpointer:
    """Hands snapshots to a thread, one at a time. Only the main process has one.

    Args:
        background: False writes while the caller waits.
    """

    def __init__(self, folder: Path, policy: RetentionPolicy, background: bool) -> None:
        self.folder, self.policy, self.background = folder, policy, background
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[None] | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Starts to write, after the previous checkpoint is on disk.

        Raises:
            CheckpointError: the previous checkpoint could not be written, or this one if `background` is false.
        """
        self.finish()
        self.writing = self.thread.submit(self._write, snapshot)
        if not self.background:
            self.finish()

    def _write(self, snapshot: Snapshot) -> None:
        try:
            write_checkpoint(self.folder, snapshot, self.policy)
        except Exception:
            clear_unfinished(self.folder)  # half a checkpoint would keep a full disk full
            raise

    @property
    def failed(self) -> bool:
        return self.writing is not None and self.writing.done() and self.writing.exception() is not None

    def finish(self) -> None:
        """Waits until everything is on disk.

        Raises:
            CheckpointError: a checkpoint could not be written; earlier ones are unchanged.
        """
        if self.writing is None:
            return
        writing, self.writing = self.writing, None
        try:
            writing.result()
        except Exception as error:
            raise CheckpointError(
                "cannot-write",
                f"a checkpoint could not be written ({error}); earlier ones are complete",
                place=str(self.folder),
                hint="Fix the cause, and resume with resume=auto.",
            ) from error

    def close(self) -> None:
        """Ends the thread and ignores its errors: the run ends for another reason."""
        self.thread.shutdown(wait=True)
