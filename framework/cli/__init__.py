"""The command line: all verbs, and the handling of errors. Slow imports are inside the verbs that need them.

launch.py RECIPE [key=value ...]     train (under `accelerate launch` as well)
launch.py VERB ...                   everything else, in runs.py, models.py, recipes.py, plugins.py, data.py, grids.py
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from framework.cli import data, grids, models, plugins, recipes, runs
from framework.runtime import errors
from framework.runtime.errors import UserError
from framework.runtime.home import provide_home
from framework.runtime.packages import PACKAGES, package_versions

TRACEBACK = "SONOSCRIBE_TRACEBACK"
UNDER_ACCELERATE = "accelerate launch launch.py"
ROOT = Path(__file__).resolve().parents[2]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in help texts are not markup
    subcommand_metavar="RECIPE [KEY=VALUE]... | VERB ...",
    help="Report generation for ultrasound. A recipe alone is trained; the verbs do everything else.",
)
VERBS = (
    runs.train,
    plugins.ls,
    plugins.describe,
    plugins.new,
    recipes.cp,
    recipes.validate,
    recipes.explain,
    recipes.diff,
    recipes.plan,
    recipes.schema,
    runs.distill,
    runs.evaluate,
    runs.predict,
    runs.report,
    runs.serve,
    models.export,
    models.push,
    models.pull,
)
for _verb in VERBS:
    app.command()(_verb)
app.command("runs")(runs.list_runs)
# Its flags are those of accelerate's launcher.
app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(runs.launch)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: begin with your own, check or export one.")
data_app.command()(data.init)
data_app.command()(data.check)
data_app.command()(data.make)
data_app.command()(data.shard)
app.add_typer(data_app, name="data")
grid_app = typer.Typer(no_args_is_help=True, help="Ablations: train the cells of a grid, watch them, show their table.")
grid_app.command()(grids.run)
grid_app.command()(grids.status)
grid_app.command()(grids.report)
grid_app.command()(grids.cancel)
app.add_typer(grid_app, name="grid")


def _print_versions(asked: bool) -> None:
    if asked:
        print("\n".join(f"{name} {version}" for name, version in package_versions(PACKAGES).items()))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the versions of Sonoscribe and its libraries.",
            is_eager=True,
            callback=_print_versions,
        ),
    ] = False,
) -> None:
    pass


def several() -> bool:
    """Whether a launcher connects this process with others."""
    return (os.environ.get("WORLD_SIZE") or "1") != "1"


def rank() -> int:
    """Of this process among those that a launcher connects; 0 without a launcher, whatever the variables contain."""
    word = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    return int(word) if several() and word.isdecimal() else 0


def door() -> str:
    """What the user typed before the verb, for usage and help."""
    installed = {"sonoscribe": "sonoscribe", "__main__.py": "python -m framework.cli"}
    if (program := Path(sys.argv[0]).name) in installed:
        return installed[program]
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # only `accelerate launch` exports it
        return UNDER_ACCELERATE
    return "torchrun launch.py" if "TORCHELASTIC_RUN_ID" in os.environ else "python launch.py"


def with_verb(args: Sequence[str]) -> list[str]:
    """Puts `train` before arguments that begin with a recipe, and removes what DeepSpeed's launcher adds.

    Raises:
        UserError: the first word looks like a misspelled verb.
    """
    verbs = [*(verb.__name__ for verb in VERBS), "runs", "launch", "data", "grid"]
    args = [arg for arg in args if not arg.startswith("--local_rank=")]  # also in the environment
    if not args or args[0] in verbs or args[0].startswith("-"):
        return list(args)
    from framework.recipe.source import shipped_recipes
    from framework.registry import did_you_mean

    first, guess = args[0], did_you_mean(args[0], verbs)
    is_verb = bool(guess) and guess == did_you_mean(first, [*verbs, *shipped_recipes()])  # not a recipe's name
    if is_verb and first.isalpha() and first not in shipped_recipes() and not Path(first).exists():
        hint = f"{guess} Verbs: {', '.join(verbs)}".strip()
        raise UserError("unknown-name", f"'{first}' is neither a verb nor a recipe", hint=hint)
    return ["train", *args]


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command line. Errors that a user can fix end in a short message and exit code 2."""
    args = sys.argv[1:] if args is None else args
    provide_home()
    try:
        with _hooks():
            _run(args)
    except KeyboardInterrupt:  # outside of a command, which ends with the same code
        sys.exit(errors.INTERRUPTED)


@contextlib.contextmanager
def _hooks() -> Iterator[None]:
    """Within, Ctrl-C raises KeyboardInterrupt, so that a command can clean up, and threads do not report a full disk.
    If launch.py has let the system handle Ctrl-C before, it does so again after, while Python shuts down.
    """
    excepthook, threading.excepthook = threading.excepthook, _thread_failed
    by_system = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    try:
        if by_system:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        threading.excepthook = excepthook
        if by_system:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(args: Sequence[str]) -> None:
    try:
        app(args=with_verb(args), prog_name=door())
    except (ValueError, OSError) as error:
        errors.write_outcome(errors.USER_ERROR, error)
        if os.environ.get(TRACEBACK):
            raise
        _print_error(_with_code(error))
        _exit(errors.USER_ERROR)
    except errors.Stopped as stopped:
        errors.write_outcome(errors.STOPPED, stopped)
        if not rank():
            print(stopped, flush=True)
        _exit(errors.STOPPED)
    except errors.ProcessLost as error:
        errors.write_outcome(errors.LOST, error)
        print(f"{f'rank {rank()}: ' if several() else ''}{error}", file=sys.stderr)
        _exit(errors.LOST)
    except errors.MainProcessFailed:
        _exit(errors.USER_ERROR)
    except Exception as error:
        errors.write_outcome(errors.BUG, f"{type(error).__name__}: {error}")
        raise


def _exit(code: int) -> NoReturn:
    """Ends this process. Of several, at once: the shutdown of a process group would wait for lost processes."""
    torch = sys.modules.get("torch")
    grouped = torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()
    if torch is not None and grouped and torch.distributed.get_world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _with_code(error: ValueError | OSError) -> ValueError | OSError:
    """A full disk as an error with a code and, if known, the file and how much is free."""
    if not isinstance(error, OSError) or not _is_full(error):
        return error
    found, file = (error.strerror or str(error)).lower(), error.filename2 or error.filename or ""
    with contextlib.suppress(OSError, TypeError):
        found += f" ({shutil.disk_usage(Path(file).parent).free / 2**20:,.1f} MiB are free)" if file else ""
    return UserError("cannot-write", found, place=file)


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """Prints the error of a thread, except that a disk is full: the main thread fails at the same disk, and says so."""
    if not _is_full(failed.exc_value):
        threading.__excepthook__(failed)


def _print_error(error: ValueError | OSError) -> None:
    """Prints an error. Errors that every rank finds are printed by rank 0 alone."""
    from framework.recipe.source import RecipeError
    from framework.registry import PluginError

    if rank() and isinstance(error, (RecipeError, PluginError)):
        return
    who = f"rank {rank()}: " if rank() else ""
    print(f"{who}{errors.printable(str(error))}", file=sys.stderr)
    if error.__traceback__ is not None and not _is_ours(error):
        print(f"({TRACEBACK}=1 shows where in the code)", file=sys.stderr)
    if door() == UNDER_ACCELERATE and not rank():
        print("(the traceback below is of the launcher; `launch.py launch ...` prints none)", file=sys.stderr)


def _is_ours(error: BaseException) -> bool:
    """Whether our code raised the error. An error of a library may need the traceback to be understood."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).is_relative_to(ROOT)
