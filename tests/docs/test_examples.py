"""Every command, recipe, program and JSON text of the documentation is run, loaded or parsed as it stands there."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
import yaml
from harness import ROOT
from PIL import Image

from framework.grid.file import GridFile, read_grid, shipped_grids
from framework.grid.make import make_grid
from framework.recipe import load_recipe
from framework.registry import find
from framework.registry.signature import model_of

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("examples/**/README.md"), *ROOT.glob("docs/**/*.md")]
PAGES = sorted(file.relative_to(ROOT).as_posix() for file in FILES)
LANGUAGES = {"bash", "yaml", "python", "json", "ini", "text"}
SECONDS = 240  # a command that takes longer hangs

# Blocks that another test holds.
ELSEWHERE = {
    ("docs/reference/plugins.md", "yaml"): "tests/framework/cli/test_cli.py: test_the_piece_of_recipe_is_good",
    ("docs/guide.md", "python"): "tests/docs/test_guide.py",
    ("docs/guide.md", "yaml"): "tests/docs/test_guide.py",
}
EIGHT_GPUS = "accelerate launch --config_file docs/launch/eight_gpus.yaml"
NEEDS_GPUS = "needs eight GPUs; tests/docs/test_launch_files.py reads its file as accelerate does"
IN_TESTS_OF_STRATEGIES = "tests/framework/distributed/test_strategies.py launches so"
IN_FRESH_ENVIRONMENT = "`make package` does it in an environment of its own"
NOT_RUN = {
    "make train": "makes an environment and trains for minutes; `python launch.py breast` is run here, shortened",
    "make test": "is this",
    "make test-long": "takes minutes, and is the rest of this",
    "make two-hosts": "takes minutes, and needs root",
    "make env": "makes the environment that this runs in",
    "make lint": "changes files",
    "make docs": "changes files; tests/docs/test_reference.py holds what it writes",
    "make site": "tests/docs/test_site.py builds it elsewhere",
    "make package": "makes an environment and needs a package index",
    "make bench": "measures for minutes, and nothing holds a speed",
    "python launch.py plan breast --probe": "docs/recipes.md does the same with a smaller recipe",
    "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 launch.py "
    "recipes/smoke.yaml": IN_TESTS_OF_STRATEGIES,
    "torchrun --standalone --nproc_per_node 2 launch.py recipes/smoke.yaml distributed.strategy=fsdp "
    "train.ema_decay=0.99": IN_TESTS_OF_STRATEGIES,
    "deepspeed --num_gpus 2 --master_port 29501 launch.py recipes/smoke.yaml "
    "distributed.strategy=zero2": f"{IN_TESTS_OF_STRATEGIES}, on a free port",
    "accelerate launch --config_file docs/launch/cpu.yaml launch.py recipes/smoke.yaml "
    "distributed.strategy=zero3": f"{IN_TESTS_OF_STRATEGIES}; tests/docs/test_launch_files.py reads the file",
    f"{EIGHT_GPUS} launch.py recipes/breast.yaml train.batch_size=64": NEEDS_GPUS,
    f"{EIGHT_GPUS} --max_restarts 3 launch.py recipes/breast.yaml checkpoint.every_steps=50": NEEDS_GPUS,
    "torchrun --standalone --nproc_per_node 8 --max_restarts 3 launch.py recipes/breast.yaml "
    "checkpoint.every_steps=50": "eight processes; tests/framework/distributed/test_dying.py restarts two",
    **{
        "accelerate launch --config_file docs/launch/two_machines.yaml --main_process_ip 10.0.0.1 "
        f"--machine_rank {rank} launch.py recipes/breast.yaml": "two machines; framework/distributed/two_hosts.sh"
        for rank in (0, 1)
    },
    "sbatch docs/launch/slurm.sbatch recipes/breast.yaml train.batch_size=64": "needs Slurm",
    "source .venv/bin/activate": "the environment is active here",
    "pip install .": IN_FRESH_ENVIRONMENT,
    "sonoscribe ls encoder": IN_FRESH_ENVIRONMENT,
    "sonoscribe describe encoder/acme/wavelet": IN_FRESH_ENVIRONMENT,
    "sonoscribe validate recipes/wavelet.yaml": IN_FRESH_ENVIRONMENT,
    "accelerate launch -m framework.cli recipes/wavelet.yaml": IN_FRESH_ENVIRONMENT,
    "pytest tests": IN_FRESH_ENVIRONMENT,
    "accelerate launch launch.py recipes/busbra.yaml data.dataset.root=data/BUSBRA": "the archive is not here",
}
# What a text in a command gives way to, so that it ends in seconds. Values that the page types stand behind, and win.
# 48 exams, since 18 topics need 18 reports that differ.
SMALL = "data.dataset.exams=48 data.dataset.val_exams=4 data.dataset.test_exams=4 data.image_size=32 train.epochs=1"
SHORTENED = {
    **{
        f"{verb} {recipe}": f"{verb} {recipe} {SMALL}"
        for verb, recipe in (
            ("launch.py", "recipes/smoke.yaml"),
            ("launch.py", "recipes/breast.yaml"),
            ("launch.py", "docs/examples/short_reports.yaml"),
            ("launch.py", "smoke"),
            ("launch.py", "breast"),
            ("launch.py", "self_critical"),
            ("distill", "breast"),
        )
    },
    "train.epochs=20": "train.epochs=1",
    "grid run": "grid run --dry-run",  # tests/framework/grid/test_running.py runs one whole
}
OWN = re.compile(r"\b(mine|my_)")  # names of files that a page writes itself


@dataclass(frozen=True)
class Block:
    """Fenced text of a page; `line` is that of its first line."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> Iterator[Block]:
    opened: tuple[int, str, str] | None = None
    kept: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r" *(`{3,}|~{3,})\s*(\S*)", line)
        if opened is None and fence:
            opened, kept = (number + 1, fence[1], fence[2]), []
        elif opened and fence and fence[1].startswith(opened[1]) and not fence[2]:
            yield Block(page, opened[0], opened[2], "\n".join(kept))
            opened = None
        elif opened:
            kept.append(line)
    assert opened is None, f"{page}:{opened[0]}: a fence is left open"


def indented_blocks(page: str, text: str) -> Iterator[str]:
    """Places where Markdown reads an indent as code, whose language nobody knows."""
    inside = {number for block in blocks(page, text) for number in _lines(block)}
    blank, in_list = True, False
    for number, line in enumerate(text.splitlines(), 1):
        if number in inside:
            continue
        if line.strip() and not line.startswith(" "):
            in_list = re.match(r"([-*+]|\d+\.) ", line) is not None
        if blank and line.startswith("    ") and line.strip() and not in_list:
            yield f"{page}:{number}"
        blank = not line.strip()


def _lines(block: Block) -> range:
    return range(block.line - 1, block.line + len(block.text.splitlines()) + 1)


def commands(block: Block) -> Iterator[Block]:
    """The lines of a block, each with those that it goes on in, without comments."""
    begun, start = "", block.line
    for number, line in enumerate(block.text.splitlines(), block.line):
        start = start if begun else number
        begun += re.sub(r"(^|\s+)#\s.*$", "", line)
        if begun.endswith("\\"):
            begun = begun[:-1]
            continue
        if begun.strip():
            yield Block(block.page, start, "bash", " ".join(begun.split()))
        begun = ""


def shortened(command: str) -> str:
    for pattern, instead in SHORTENED.items():
        command = command.replace(pattern, instead)
    return command


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


ALL = [block for page in PAGES for block in blocks(page, read(page))]
HERE = [block for block in ALL if (block.page, block.language) not in ELSEWHERE]
TYPED = [command for block in HERE if block.language == "bash" for command in commands(block)]


def steps() -> list[Block]:
    """What is run: commands and programs. What an earlier page has typed alike is not run twice."""
    found, seen = [], set()
    for block in HERE:
        for step in commands(block) if block.language == "bash" else [block] * (block.language == "python"):
            again = step.text in seen and not OWN.search(step.text)
            if step.text not in NOT_RUN and not again:
                found.append(step)
            seen.add(step.text)
    return found


STEPS = steps()


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grey_HW = np.random.default_rng(seed).integers(0, 255, (40, 48), dtype=np.uint8)
    Image.fromarray(grey_HW).save(path)


def make_folder(folder: Path, cache: Path) -> None:
    """A clone as far as commands see it: what they read is there, and what they write stays in it or in the cache."""
    folder.mkdir(parents=True)
    (folder / ".cache").symlink_to(cache)
    for name in ("launch.py", "framework", "plugins", "recipes", "docs", "examples", "tests", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    for number, name in enumerate(("left.png", "right.png")):
        picture(folder / name, number)
    exams: dict[str, list[dict[str, object]]] = {}
    for split, first, last in (("train", 0, 24), ("val", 24, 28), ("test", 28, 32)):
        for number in range(first, last):
            picture(folder / "data" / "images" / f"{number}.png", number)
            finding = f"A mass of {number} mm, {number % 7} cysts."
            exams.setdefault(split, []).append({"uid": number, "finding": finding, "image_path": f"{number}.png"})
    (folder / "data" / "annotation.json").write_text(json.dumps(exams), encoding="utf-8")


def run_page(folder: Path, cache: Path, run: Path, page: list[Block]) -> dict[Block, subprocess.CompletedProcess[str]]:
    """Runs a page from its top, as a reader would: what one step writes, a later one finds."""
    make_folder(folder, cache)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = {}
    for step in page:
        if step.language == "python":
            file = folder / f"line_{step.line}.py"
            file.write_text(step.text, encoding="utf-8")
            words = [sys.executable, str(file)]
        else:
            words = ["bash", "-c", re.sub(r"\bRUN\b", str(run), shortened(step.text))]
        try:
            done[step] = subprocess.run(
                words, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            done[step] = subprocess.CompletedProcess(words, 124, "", f"not done after {SECONDS} s")
    return done


Results = dict[str, Future[dict[Block, subprocess.CompletedProcess[str]]]]


def take_a_core(cores: SimpleQueue[int]) -> None:
    """For this thread and what it starts: threads of two runs that wait for one another only cost time."""
    os.sched_setaffinity(0, {cores.get()})


@pytest.fixture(scope="session")
def results(
    request: pytest.FixtureRequest, smoke_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Results]:
    """Runs the pages of the tests that were chosen, two at a time."""
    root = tmp_path_factory.mktemp("pages")
    run = Path(shutil.copytree(smoke_run, root / "RUN"))  # commands write into it
    cache = root / "cache"
    cache.mkdir()
    chosen = {item.callspec.params["step"].page for item in request.session.items if "results" in item.fixturenames}
    cores: SimpleQueue[int] = SimpleQueue()
    for core in itertools.islice(itertools.cycle(sorted(os.sched_getaffinity(0))), 2):
        cores.put(core)
    with ThreadPoolExecutor(2, initializer=take_a_core, initargs=(cores,)) as pool:
        yield {
            page: pool.submit(run_page, root / page, cache, run, [step for step in STEPS if step.page == page])
            for page in sorted(chosen)
        }
        pool.shutdown(cancel_futures=True)


# The README is what everybody types; the other pages take minutes together.
QUICK = "README.md"
MARKED = [step if step.page == QUICK else pytest.param(step, marks=pytest.mark.long) for step in STEPS]


@pytest.mark.parametrize("step", MARKED, ids=str)
def test_it_runs(step: Block, results: Results) -> None:
    done = results[step.page].result()[step]
    assert done.returncode == 0, f"{step}: {step.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("block", [block for block in HERE if block.language == "yaml"], ids=str)
def test_the_recipe_or_its_piece_loads(block: Block, tmp_path: Path) -> None:
    for file in (ROOT / "docs" / "examples").iterdir():
        (tmp_path / file.name).symlink_to(file)
    said = yaml.safe_load(block.text)
    assert isinstance(said, dict), f"{block}: no recipe; name another language: {', '.join(sorted(LANGUAGES))}"
    if said.keys() <= GridFile.model_fields.keys():
        hold_a_grid(block.text, whole="recipe" in said, path=tmp_path / "grid.yaml")
        return
    whole = "_base_" in said or {"data", "model", "losses"} <= said.keys()
    (tmp_path / "piece.yaml").write_text("" if whole else "_base_: shipped:smoke.yaml\n", encoding="utf-8")
    with (tmp_path / "piece.yaml").open("a", encoding="utf-8") as file:
        file.write(block.text)
    load_recipe(tmp_path / "piece.yaml")


def hold_a_grid(text: str, whole: bool, path: Path) -> None:
    """A grid file, or a piece of one: its cells are good, and so are the keys of its executor."""
    path.write_text(text if whole else f"recipe: shipped:smoke\n{text}", encoding="utf-8")
    grid = make_grid(read_grid(path))
    executor = dict(grid.read.said.executor)
    plugin = find("executor", executor.pop("name"), grid.read.plugin_files)
    model_of(plugin).model_validate(executor, strict=True)  # not built: the cluster that it is for is not here


@pytest.mark.parametrize("block", [block for block in HERE if block.language == "json"], ids=str)
def test_the_json_parses(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("page", PAGES)
def test_every_piece_of_code_says_its_language(page: str) -> None:
    unknown = [f"{b}: {b.language or 'no language'}" for b in ALL if b.page == page and b.language not in LANGUAGES]
    assert not unknown, f"{unknown}; known: {', '.join(sorted(LANGUAGES))}"
    indented = list(indented_blocks(page, read(page)))
    assert not indented, f"{indented}: an indented block is never run; use a fence: ```bash, ```yaml, ... or ```text"


def test_the_plugin_that_is_shown_is_the_file_that_trains() -> None:
    shown = next(block for block in HERE if block.page == "docs/plugins.md" and block.language == "python")
    assert read("docs/examples/short_reports.py").endswith(f"\n\n{shown.text}\n")


def test_no_exception_is_left_over() -> None:
    """Whatever no page types any more leaves the tables above."""
    typed = {command.text for command in TYPED}
    assert not NOT_RUN.keys() - typed
    assert not [pattern for pattern in SHORTENED if not any(pattern in text for text in typed - NOT_RUN.keys())]
    assert not ELSEWHERE.keys() - {(block.page, block.language) for block in ALL}


def test_the_page_of_grids_names_every_shipped_grid() -> None:
    named = re.findall(r"(?m)^\| \[`(\w+)`\]\(\.\./recipes/grids/\1\.yaml\)", read("docs/grids.md"))
    assert sorted(named) == sorted(shipped_grids())


def test_lines_go_on_comments_end_and_fences_hold() -> None:
    text = "a\n\n```bash\nls \\\n  -l  # long\n# nothing\necho a#b\n```\n\n1. one\n\n    of it\n\nb\n\n    lost\n"
    (block,) = blocks("p", text)
    assert [(c.line, c.text) for c in commands(block)] == [(4, "ls -l"), (7, "echo a#b")]
    assert list(indented_blocks("p", text)) == ["p:16"]
