"""What several tests build on: small parts, and a run of the smoke recipe that is trained once."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from harness import EXACT, ROOT, launch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: threads that wait for one another only cost time
os.environ["ACCELERATE_USE_CPU"] = os.environ.get("ACCELERATE_USE_CPU", "true")


os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="sonoscribe-config-")  # not the user's list of trusted code
AT_FIRST = dict(os.environ)


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """What a test, or a library in it, sets in the environment ends with it: DeepSpeed's rank would mislead others."""
    yield
    for name in os.environ.keys() - AT_FIRST.keys():
        if not name.startswith("PYTEST_"):
            del os.environ[name]


@pytest.fixture(autouse=True, scope="module")
def _no_group_left() -> Iterator[None]:
    """A process group that a module's tests began ends with them: libraries behave otherwise where there is one."""
    yield
    groups = sys.modules.get("torch.distributed")
    if groups is not None and groups.is_initialized():
        groups.destroy_process_group()


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run in; its image cache serves all tests."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def smoke_run(work: Path) -> Path:
    """The folder of a finished run of recipes/smoke.yaml."""
    launch(str(ROOT / "recipes" / "smoke.yaml"), "run.name=first", cwd=work)
    return work / "runs" / "smoke" / "first"


@pytest.fixture(scope="session")
def exact_run(work: Path) -> Callable[..., Path]:
    """Trains recipes/smoke.yaml with EXACT, once for each set of arguments; on one process by default."""
    done: dict[str, Path] = {}
    numbers = itertools.count()  # also of a run that failed, whose name is taken

    def trained(*words: str, processes: int = 1, by: str | None = None, flags: Sequence[str] = ()) -> Path:
        asked = repr((words, processes, by, flags))
        if asked not in done:
            name = f"exact-{next(numbers)}"
            recipe = str(ROOT / "recipes" / "smoke.yaml")
            launch(recipe, *EXACT, *words, f"run.name={name}", cwd=work, processes=processes, by=by, flags=flags)
            done[asked] = work / "runs" / "smoke" / name
        return done[asked]

    return trained
