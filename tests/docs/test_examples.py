"""Every command, recipe, program and JSON text of the documentation is valid as written.

Quick commands run in this process, page by page, each page in its own folder. For a training, the launcher's own
parser reads the options and `validate` checks recipe and overrides. For other slow verbs, Typer reads the options.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from accelerate.commands.launch import launch_command_parser
from harness import ROOT, launch
from PIL import Image
from torch.distributed.run import get_args_parser

from benchmarks.catalog import benchmarks
from framework import cli
from framework.grid.file import GridFile, read_grid, shipped_grids
from framework.grid.make import make_grid
from framework.recipe import load_recipe
from framework.registry import find
from framework.registry.signature import model_of

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("examples/**/README.md"), *ROOT.glob("docs/**/*.md")]
PAGES = sorted(file.relative_to(ROOT).as_posix() for file in FILES)
LANGUAGES = {"bash", "yaml", "python", "json", "ini", "text"}

# Blocks that another test checks.
ELSEWHERE = {
    ("docs/reference/plugins.md", "yaml"): "tests/framework/cli/test_cli.py: test_the_piece_of_recipe_is_good",
    ("docs/guide.md", "python"): "tests/docs/test_guide.py",
    ("docs/guide.md", "yaml"): "tests/docs/test_guide.py",
}
RUN = {"ls", "describe", "new", "cp", "validate", "explain", "diff", "plan", "schema", "grid"}  # quick verbs
SLOW_OPTIONS = {"--probe"}
NO_RECIPE_HERE = "examples/plugin-package/README.md"  # `make package` runs it, where its plugins are installed
SHELL = {"source", "pip", "diff"}  # programs of others, whose words are not checked


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
    for fence in re.finditer(r"(?ms)^ *(`{3,})(\S*)\n(.*?)^ *\1$", text):
        yield Block(page, text.count("\n", 0, fence.start(3)) + 1, fence[2], fence[3].rstrip("\n"))


def commands(block: Block) -> Iterator[Block]:
    """The lines of a block without comments; a backslash at the end continues a line."""
    text = re.sub(r"\\\n\s*", lambda found: " " * len(found[0]), block.text)
    for number, line in enumerate(text.splitlines(), block.line):
        if command := re.sub(r"(^|\s+)#\s.*$", "", line).strip():
            yield Block(block.page, number, "bash", command)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


ALL = [block for page in PAGES for block in blocks(page, read(page))]
HERE = [block for block in ALL if (block.page, block.language) not in ELSEWHERE]
TYPED = [command for block in HERE if block.language == "bash" for command in commands(block)]


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grey_HW = np.random.default_rng(seed).integers(0, 255, (40, 48), dtype=np.uint8)
    Image.fromarray(grey_HW).save(path)


def write_clinic(folder: Path) -> None:
    """The folder that docs/data.md shows: a table from Excel, in Latin-1, and images."""
    rows = ["Untersuchung;Patient;Ort;Datei;Befund"]
    for number in range(1, 21):
        for view in (1, 2):
            picture(folder / "Bilder" / f"{number}_{view}.png", 2 * number + view)
            text = f"Ovale, glatt begrenzte Läsion, {number} mm." if view == 1 else ""
            rows.append(
                f"{1000 + number}.0;{16 + (number + 1) // 2}.0;Köln;D:\\Export\\Bilder\\{number}_{view}.png;{text}"
            )
    (folder / "Befunde.csv").write_text("\n".join([*rows, "NaN;;;;", ""]), encoding="cp1252")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: what commands read is there, and what they write stays in it."""
    for name in ("launch.py", "framework", "plugins", "recipes", "docs", "examples", "tests", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    exams: dict[str, list[dict[str, object]]] = {}
    for number, split in enumerate(["train"] * 24 + ["val"] * 4 + ["test"] * 4):
        picture(tmp_path / "data" / "images" / f"{number}.png", number)
        finding = f"A mass of {number} mm, {number % 7} cysts."
        exams.setdefault(split, []).append({"uid": number, "finding": finding, "image_path": f"{number}.png"})
    (tmp_path / "data" / "annotation.json").write_text(json.dumps(exams), encoding="utf-8")
    write_clinic(tmp_path / "clinic")
    (tmp_path / "first" / "model").mkdir(parents=True)
    (tmp_path / "first" / "model" / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def launched(words: list[str]) -> list[str]:
    """The arguments of launch.py, without those that the parser of the launcher reads.

    Raises:
        SystemExit: the launcher does not know an option.
        AssertionError: it is not a launcher, or its file is missing.
    """
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    program, *rest = words
    if program == "sonoscribe":
        return rest
    if program == "python":
        assert rest[0] == "launch.py"
        return rest[1:]
    if program == "sbatch":
        assert Path(rest[0]).is_file()
        return rest[1:]
    if program == "deepspeed":
        from deepspeed.launcher.runner import parse_args

        read = parse_args(rest)
        return [str(word) for word in read.user_args]
    if program == "torchrun":
        read = get_args_parser().parse_args(rest)
    else:
        assert [program, rest[0]] == ["accelerate", "launch"], f"unknown program {program}"
        read = launch_command_parser().parse_args(rest[1:])
        assert read.config_file is None or Path(read.config_file).is_file(), read.config_file
    assert read.training_script in ("launch.py", "framework.cli")
    return list(read.training_script_args)


def understood(words: list[str]) -> dict[str, Any]:
    """The arguments and options of a verb, as Typer reads them."""
    command: Any = typer.main.get_command(cli.app)
    words = cli.with_verb(words)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"no verb {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command.make_context("launch.py", list(words)).params


def call(words: list[str]) -> None:
    """Runs a command line of launch.py in this process; an exit code other than 0 fails with what it printed."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code in (0, None), text.getvalue()[-3000:]


def check(command: Block) -> None:
    text = command.text.partition(" > ")[0]
    program, *rest = words = shlex.split(text)
    if program in SHELL:
        return
    if program == "make":
        assert re.search(rf"(?m)^{rest[0]}:", read("Makefile")), f"Makefile has no target {rest[0]}"
        return
    if program == "bash" or words[:3] == ["python", "-m", "pytest"]:
        assert Path(rest[-1]).exists() or command.page == NO_RECIPE_HERE, f"there is no {rest[-1]}"
        return
    if program == ".venv/bin/python":
        assert rest[1].removeprefix("benchmarks.") in benchmarks() or (
            rest[1] == "benchmarks" and rest[2] in benchmarks()
        )
        return
    words = launched(words)
    params = understood(words)
    if command.page == NO_RECIPE_HERE:
        return
    if (words[0] in RUN or words[:2] == ["data", "init"]) and not SLOW_OPTIONS & set(words):
        call([*words, "--dry-run"] if words[:2] == ["grid", "run"] and "--dry-run" not in words else words)
    elif "recipe" in params:
        # The folder of a run that an earlier command of the page makes: here any folder with a model.
        overrides = [re.sub(r"^init_from=.*", "init_from=first", each) for each in params.get("overrides") or ()]
        call(["validate", str(params["recipe"]), *overrides])


@pytest.mark.parametrize("page", sorted({command.page for command in TYPED}))
def test_the_commands_on_a_page_are_valid(page: str, clone: Path) -> None:
    failed = []
    for command in dict.fromkeys(command for command in TYPED if command.page == page):
        try:
            check(command)
        except (Exception, SystemExit) as error:
            failed.append(f"{command}: {command.text}\n    {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


def test_the_program_that_checks_a_plugin_runs(clone: Path) -> None:
    shown, checked = (block for block in HERE if block.page == "docs/plugins.md" and block.language == "python")
    assert read("docs/examples/short_reports.py").endswith(f"\n\n{shown.text}\n"), "shown is not the file that trains"
    exec(compile(checked.text, str(checked), "exec"), {})


@pytest.mark.long
def test_the_example_of_a_clinic_trains_in_two_commands(clone: Path) -> None:
    shown = [block.text for block in HERE if block.page == "docs/data.md" and "data init" in block.text]
    first, second = (command.text for command in commands(Block("docs/data.md", 1, "bash", shown[0])))
    launch(*launched(shlex.split(first)), cwd=clone)
    drafted = (clone / "clinic.yaml").read_text(encoding="utf-8").replace(str(clone), "/home/me")
    recipes = [block.text for block in HERE if block.page == "docs/data.md" and block.language == "yaml"]
    assert yaml.safe_load(drafted) in map(yaml.safe_load, recipes)
    done = launch(*launched(shlex.split(second)), "train.epochs=1", cwd=clone)
    assert "epoch 1/1" in done.stdout


def write_image_folder(folder: Path) -> None:
    """The folder that docs/data.md shows: images with a table in each split."""
    for split, numbers in {"train": range(1, 17), "validation": range(17, 20), "test": range(20, 23)}.items():
        rows = ["file_name,report,pid"]
        for number in numbers:
            picture(folder / split / f"{number}.png", number)
            shape = "An oval" if number % 2 else "A round"
            rows.append(f'{number}.png,"{shape}, circumscribed mass of {number} mm.",{number}')
        (folder / split / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")


def part_of(section: str, language: str) -> str:
    """The first block of a section of docs/data.md."""
    text = read("docs/data.md").partition(f"## {section}\n")[2].partition("\n## ")[0]
    return next(block.text for block in blocks("docs/data.md", text) if block.language == language)


@pytest.mark.long
def test_the_example_of_a_hugging_face_folder_trains(clone: Path) -> None:
    pytest.importorskip("datasets")
    write_image_folder(clone / "exams")
    (clone / "mine.yaml").write_text(part_of("Hugging Face data sets: `hf`", "yaml"), encoding="utf-8")
    done = launch("mine.yaml", "train.epochs=1", cwd=clone)
    assert "train 16, val 3, test 3" in done.stdout and "epoch 1/1" in done.stdout


@pytest.mark.long
def test_the_example_of_shards_writes_and_trains(clone: Path) -> None:
    section = "Many exams: `data shard` and `webdataset`"
    launch(*launched(shlex.split(part_of(section, "bash"))), cwd=clone)
    text = f"_base_: shipped:smoke.yaml\n{part_of(section, 'yaml')}"
    (clone / "mine.yaml").write_text(f"{text}\ndistiller: {{topics: 2}}", encoding="utf-8")
    done = launch("mine.yaml", "train.epochs=1", "data.num_workers=1", cwd=clone)
    assert "epoch 1/1" in done.stdout


@pytest.mark.parametrize("block", [block for block in HERE if block.language == "yaml"], ids=str)
def test_a_recipe_or_a_part_of_one_loads(block: Block, tmp_path: Path) -> None:
    for file in (ROOT / "docs" / "examples").iterdir():
        (tmp_path / file.name).symlink_to(file)
    content = yaml.safe_load(block.text)
    assert isinstance(content, dict), f"{block}: not a recipe; use another language: {', '.join(sorted(LANGUAGES))}"
    if content.keys() <= GridFile.model_fields.keys():
        check_grid(block.text, whole="recipe" in content, path=tmp_path / "grid.yaml")
        return
    whole = "_base_" in content or {"data", "model", "losses"} <= content.keys()
    text = block.text if whole else f"_base_: shipped:smoke.yaml\n{block.text}"
    (tmp_path / "part.yaml").write_text(text, encoding="utf-8")
    load_recipe(tmp_path / "part.yaml")


def check_grid(text: str, whole: bool, path: Path) -> None:
    """Checks a grid file, or a part of one: its cells, and the keys of its executor."""
    path.write_text(text if whole else f"recipe: shipped:smoke\n{text}", encoding="utf-8")
    grid = make_grid(read_grid(path))
    executor = dict(grid.file.spec.executor)
    plugin = find("executor", executor.pop("name"), grid.file.plugin_files)
    model_of(plugin).model_validate(executor, strict=True)  # not built: its cluster is not here


@pytest.mark.parametrize("block", [block for block in HERE if block.language == "json"], ids=str)
def test_the_json_parses(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_code_names_its_language(page: str) -> None:
    unknown = [f"{b}: {b.language or 'no language'}" for b in ALL if b.page == page and b.language not in LANGUAGES]
    assert not unknown, f"{unknown}; known: {', '.join(sorted(LANGUAGES))}"
    assert read(page).count("```") == 2 * sum(block.page == page for block in ALL), "a fence is not closed"


def test_the_page_of_grids_names_every_shipped_grid() -> None:
    named = re.findall(r"(?m)^\| \[`(\w+)`\]\(\.\./recipes/grids/\1\.yaml\)", read("docs/grids.md"))
    assert sorted(named) == sorted(shipped_grids())


def test_continued_lines_are_joined_and_comments_removed() -> None:
    text = "a\n\n```bash\nls \\\n  -l  # long\n# nothing\necho a#b\n```\n"
    (block,) = blocks("p", text)
    assert [" ".join(c.text.split()) for c in commands(block)] == ["ls -l", "echo a#b"]


@pytest.mark.parametrize(
    "text",
    [
        "accelerate launch --no_such_flag launch.py smoke",
        "python launch.py smoke train.epoch=3",
        "python launch.py evaluate RUN --no-such-option",
        "python launch.py no_such_verb RUN",
        "make no-such-target",
    ],
)
def test_a_wrong_command_fails(text: str, clone: Path) -> None:
    with pytest.raises((Exception, SystemExit)):
        check(Block("README.md", 1, "bash", text))
