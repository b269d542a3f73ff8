"""`train.compile`: the task by torch.compile."""

from __future__ import annotations

from torch import nn

from framework.runtime.errors import UserError, first_line


def compile_task(task: nn.Module, mode: bool | str) -> None:
    """Compiles the call of a task at its first steps. Generation does not call it, and stays as it is."""
    if mode:
        task.compile(mode=None if mode is True else mode)


def compile_error(error: Exception) -> UserError | None:
    """The error of a task that does not compile on this machine; None for another error."""
    from torch._dynamo.exc import TorchDynamoException

    if not isinstance(error, TorchDynamoException):
        return None
    return UserError(
        "unsupported",
        f"torch.compile fails ({first_line(error)})",
        place="train.compile",
        expected="false",
        hint="On a CPU it needs a C++ compiler: g++, or the one in the variable CXX.",
    )
