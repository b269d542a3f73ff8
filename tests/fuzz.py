"""Fuzzes what a user writes: recipes, overrides, grids, saved models and the state of a run.

    python tests/fuzz.py                        five minutes with a new seed
    python tests/fuzz.py --seed 7 --case 123    one case again, with its output

Each case changes a few things in a sound recipe, command line or folder, and runs a command on it in a child process
with a limit of time and memory. A command may succeed or refuse. A finding is anything else: a traceback, an end by a
signal, no end, or a message without a code or a place. Each finding is printed once, with its fewest changes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
HOME = Path(tempfile.mkdtemp(prefix="sonoscribe-fuzz-"))
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
    "HOME": str(HOME),
    "XDG_CONFIG_HOME": str(HOME),
    "COLUMNS": "200",
}

import yaml  # noqa: E402

from framework import cli  # noqa: E402
from framework.checkpoint.export import write_manifest  # noqa: E402
from framework.recipe import load_recipe, save  # noqa: E402
from framework.recipe.saved import keys_in  # noqa: E402
from framework.recipe.source import shipped_recipes  # noqa: E402
from framework.registry import catalogue, load  # noqa: E402
from framework.registry.signature import keys_of  # noqa: E402
from framework.runtime import errors  # noqa: E402
from framework.runtime.errors import Stopped, UserError  # noqa: E402
from framework.trainer import Trainer  # noqa: E402

LIMIT_S = 60  # of processor time of a command; a sound one takes less than ten
MEMORY = 4 * 2**30  # bytes of address space of a command, beyond what the imports take
SOUND = (0, errors.USER_ERROR, errors.STOPPED)
TINY = [
    "data.dataset.exams=16", "data.dataset.val_exams=2", "data.dataset.test_exams=2", "train.epochs=1",
    "evaluate.max_length=12", "distiller.topics=2", "evaluate.bootstrap_samples=10",
]  # fmt: skip
# Such values only make a run long, as they say.
PATIENCE = ("epochs", "restarts", "passes", "iterations", "timeout", "bootstrap_samples", "exams", "samples")
# Blocks with a plugin whose numbers are changed, and its kind.
PARTS = {
    "model.encoder": "encoder", "model.decoder": "decoder", "losses": "loss", "distiller": "distiller",
    "data.augment": "augment", "data.tokenizer": "tokenizer", "optimizer": "optimizer", "schedule": "schedule",
}  # fmt: skip
LONG = re.compile(rf"({'|'.join(PATIENCE)})\W+\d{{3,}}")

PLUGINS = sorted({name for _, name in catalogue()})
NUMBERS = (0, -1, 1, 2, 3, 7, 0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))
HUGE = (10**5, 10**6, 999_999_999, 2**31, 2**63, 10**18, 10**30)
TEXTS = (
    "", " ", "auto", "none", "1", "-1", "1e5", "nan", "no", "x" * 20_000, "a.b", "a=b", "超声", "e\u0301", "\u202e",
    "\ufeff", "\x07", "a\x00b", "\x1b[31m", "line\nbreak", "\udcff", "%s {0} {name}", "[bold]", "${train.seed}",
    "${a.b}", "${oc.env:HOME}", "${model}", "${", "~", "~nobody/x", "../..", ".", "/dev/zero", "/proc/self/mem",
    "fifo", "folder", "data.json", "recipe.yaml", "shipped:smoke", "shipped:", "http://[", "val/bleu_4", "val/",
    "encoder", "losses.topic",
)  # fmt: skip
# Scalars and collections as YAML text, which a dump of Python values would quote.
WRITTEN = (
    "0x1F", "010", "1_000", "1e-4", "12:30", "2026-01-01", "=", "<<", "*x", "&x 1", "!!int 3",
    "!!python/name:os.system", "? a", "{a: 1, a: 2}", "{1: 2}", "{null: 2}", "{[a]: 2}", "[1, 2", "{a: ",
    "'", "@", "|", "- - -", "9" * 5000, "[" * 200,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command, and the changes to what it reads.

    Attributes:
        verb: the command, or "run" if it reads a finished run.
        make: writes the files into the current folder and returns the command line.
        changes: what `make` applies, each a callable of the state that it starts from.
    """

    verb: str
    make: Callable[[list[Any]], list[str]]
    changes: list[Any] = field(default_factory=list)


# Values and changes


def value(rng: random.Random, depth: int = 0) -> Any:
    """A hostile value."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(NUMBERS)
    if kind < 0.4:
        return rng.choice(HUGE) * rng.choice((1, 1, 1, -1))
    if kind < 0.6:
        return rng.choice(TEXTS)
    if kind < 0.7:
        return rng.choice(PLUGINS)
    if kind < 0.78:
        return Written(rng.choice(WRITTEN))
    if kind < 0.86:
        return rng.choice((None, True, False, [], {}, [[]], {"": 1}, {"name": None}, [None], {"name": "words"}))
    if kind < 0.9:
        nested: Any = rng.choice((1, "x"))
        for _ in range(rng.choice((3, 20, 60))):
            nested = rng.choice(([nested], {"a": nested}))
        return nested
    items = [value(rng, depth + 1) for _ in range(rng.randint(1, 3))] if depth < 2 else [1]
    return rng.choice((items, {rng.choice(("name", "a", "1", "超声")): item for item in items}))


class Written(str):
    """YAML text that is written as it is."""


def paths(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, inner in items for path in [(*at, key), *paths(inner, (*at, key))]]


def change_tree(rng: random.Random) -> Callable[[Any], None]:
    """A change at a random place of a tree, in place."""
    kind = rng.choice(("set",) * 8 + ("delete", "rename", "wrap", "copy", "add"))
    place, other, new = rng.random(), rng.random(), value(rng)
    name = rng.choice(
        ("", "nmae", "_base_", "_delete_", "plugins", "name", "超声", "a\x00", "0", "x" * 300, None, 1, 1.5, True)
    )

    def change(tree: Any) -> None:
        known = paths(tree)
        if not known:
            return
        path = known[int(place * len(known))]
        parent = at(tree, path[:-1])
        if kind == "set":
            parent[path[-1]] = new
        elif kind == "delete":
            del parent[path[-1]]
        elif kind == "rename" and isinstance(parent, dict):
            parent[name] = parent.pop(path[-1])
        elif kind == "wrap":
            parent[path[-1]] = [parent[path[-1]]] if other < 0.5 else {"a": parent[path[-1]]}
        elif kind == "copy":
            parent[path[-1]] = deepcopy(at(tree, known[int(other * len(known))]))
        elif isinstance(parent, dict):
            parent[name] = new

    change.__doc__ = f"{kind} at {place:.3f}: {name!r} {new!r:.200}"
    return change


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def change_text(rng: random.Random) -> Callable[[bytes], bytes]:
    """A change of the bytes of a file."""
    place, other = rng.random(), rng.random()
    kind = rng.choice(("insert", "cut", "drop", "twice", "replace", "empty", "bomb"))
    word = rng.choice((
        b"\x00", b"\x07", b"\xff\xfe", b"\xef\xbb\xbf", b"\t", b"\r", b"\n", b"---\n", b"...\n", b"&a ", b"*a",
        b"!!map ", b"%YAML 3\n", b"{", b"]", b": ", b"- ", b"#", b"'", b'"', b"\xc2\x85", b"\xe2\x80\xa8",
        b"NaN", b"1e999", b"-", b"x" * 2_000_000,
    ))  # fmt: skip

    def change(text: bytes) -> bytes:
        where = int(place * len(text))
        lines = text.splitlines(keepends=True) or [b""]
        line = int(place * len(lines))
        if kind == "insert":
            return text[:where] + word + text[where:]
        if kind == "cut":
            return text[:where]
        if kind == "drop":
            return b"".join(lines[:line] + lines[line + 1 :])
        if kind == "twice":
            return b"".join(lines[: line + 1] + lines[line : line + 1 + int(other * 3)] + lines[line + 1 :])
        if kind == "replace":
            return text[:where] + word[:1] + text[where + 1 :]
        if kind == "empty":
            return b""
        return text + b"a: &a [x, x]\n" + b"".join(b"a%d: &a%d [*a, *a]\n" % (n, n) for n in range(30))

    change.__doc__ = f"{kind} at {place:.3f}: {word[:40]!r}"
    return change


def dumped(tree: Any) -> str:
    """A tree as YAML, with `Written` values as they are."""
    written: dict[str, str] = {}

    def marked(value: Any) -> Any:
        if isinstance(value, Written):
            return written.setdefault(f"WRITTEN{len(written)}END", str(value)) and f"WRITTEN{len(written) - 1}END"
        if isinstance(value, dict):
            return {marked(key): marked(inner) for key, inner in value.items()}
        return [marked(inner) for inner in value] if isinstance(value, list) else value

    text = yaml.safe_dump(marked(tree), sort_keys=False, allow_unicode=True, width=10_000)
    for mark, plain in written.items():
        text = text.replace(mark, plain)
    return text


def word_of(rng: random.Random, keys: list[str]) -> str:
    """An override."""
    key = rng.choice(keys)
    key = rng.choice((key,) * 8 + (key + ".x", key[:-1], key.upper(), f"..{key}", "", "a b", "_base_", "plugins"))
    new = value(rng)
    text = new if isinstance(new, str) else dumped_flow(new)
    sign = rng.choice(("",) * 6 + ("+", "~"))
    word = rng.choice((f"{sign}{key}={text}",) * 8 + (f"{sign}{key}", f"{key}=={text}", f"~{key}"))
    return word.replace("\x00", "")  # which no command line can hold


def dumped_flow(tree: Any) -> str:
    return (
        dumped([tree]).strip().removeprefix("- ")
        if not isinstance(tree, (dict, list))
        else json.dumps(tree, default=str)
    )


# Cases


READING = ("validate", "explain", "diff")
QUICK = (*READING, "cp", "grid")  # commands that neither train nor read exams


def action(rng: random.Random, recipe: str, words: list[str], trains: bool) -> list[str]:
    """A command on a recipe."""
    verb = rng.choice((*READING, "distill", "check", "cp", "plan", "train", "train") if trains else READING)
    if verb == "explain":
        return [verb, recipe, rng.choice(("model", "train.seed", "losses", "evaluate.metrics", "a.b", "")), *words]
    if verb == "diff":
        return [verb, "smoke", recipe, *words]
    if verb == "check":
        return ["data", verb, recipe, *words]
    return [verb, recipe, "copy.yaml"] if verb == "cp" else [verb, recipe, *words]


def recipe_case(rng: random.Random) -> Case:
    """A changed recipe file: a shipped one as it is written, or smoke with every default."""
    tiny = rng.random() < 0.6
    shipped = shipped_recipes()
    text = save(load_recipe("smoke", TINY)) if tiny else shipped[rng.choice(sorted(shipped))].read_text()
    tree = yaml.safe_load(
        text.replace("_base_: ", "_base_: shipped:").replace("shipped:../", "shipped:").replace(".yaml", "")
    )
    tree.pop("format", None)
    command = action(rng, "recipe.yaml", TINY if rng.random() < 0.2 and tiny else [], tiny)

    def make(changes: list[Any]) -> list[str]:
        Path("recipe.yaml").write_bytes(changed(tree, changes))
        return command

    return Case(command[0], make, tree_changes(rng))


def changed(tree: Any, changes: list[Any]) -> bytes:
    """The YAML of a tree, after the changes of the tree and then those of its bytes."""
    tree = deepcopy(tree)
    for change in changes:
        if change.__qualname__.startswith("change_tree"):
            change(tree)
    text = dumped(tree).encode("utf-8", "surrogatepass")
    for change in changes:
        if change.__qualname__.startswith("change_text"):
            text = change(text)
    return text


def tree_changes(rng: random.Random) -> list[Any]:
    return [change_text(rng) if rng.random() < 0.1 else change_tree(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]


def override_case(rng: random.Random) -> Case:
    """Overrides of smoke."""
    keys = list(keys_in(load_recipe("smoke")))
    command = action(rng, "smoke", [], True)

    def make(changes: list[Any]) -> list[str]:
        return [*command, *TINY, *changes] if command[0] != "cp" else [*command, *changes]

    return Case(command[0], make, [word_of(rng, keys) for _ in range(rng.choice((1, 1, 2, 3)))])


def number_case(rng: random.Random) -> Case:
    """Numbers out of range, for keys of smoke or of any plugin."""
    part = rng.choice(sorted(PARTS))
    keys = [key for key in keys_in(load_recipe("smoke", TINY)) if key.rpartition(".")[2] not in PATIENCE]
    choose: list[str] = []
    if rng.random() < 0.7:
        plugin = rng.choice([plugin for (kind, _), plugin in sorted(catalogue().items()) if kind == PARTS[part]])
        choose = [f"+losses.{plugin.name}.weight=1" if part == "losses" else f"{part}={plugin.name}"]
        at = f"{part}.{plugin.name}" if part == "losses" else part
        keys = [f"{at}.{key.name}" for key in keys_of(plugin) if key.name not in PATIENCE] or keys
    verb = rng.choice(("plan", "train", "train"))
    numbers = (*HUGE, *HUGE, *NUMBERS, 300, 10**4)

    def make(changes: list[Any]) -> list[str]:
        return [verb, "smoke", *TINY, *choose, *changes]

    return Case(verb, make, [f"{rng.choice(keys)}={rng.choice(numbers)}" for _ in range(rng.choice((1, 1, 2)))])


def cyclic_case(rng: random.Random) -> Case:
    """Recipes that are based on each other, and on things that are no recipes."""
    command = action(rng, "recipe.yaml", [], False)
    beside = ("recipe.yaml", "other.yaml", ["other.yaml", "recipe.yaml"], "link.yaml")
    base = rng.choice((*beside, "fifo", "folder", "/dev/zero", "a\x00"))

    def make(changes: list[Any]) -> list[str]:
        Path("recipe.yaml").write_bytes(changed({"_base_": base, "train": {"seed": 1}}, changes))
        Path("other.yaml").write_text("_base_: recipe.yaml\n")
        Path("link.yaml").symlink_to("link.yaml")
        return command

    return Case(command[0], make, tree_changes(rng) if rng.random() < 0.3 else [])


def grid_case(rng: random.Random) -> Case:
    """A changed grid, which is checked and listed."""
    shipped = sorted((ROOT / "recipes" / "grids").glob("*.yaml"))
    tree = yaml.safe_load(rng.choice(shipped).read_text())
    if rng.random() < 0.3:
        tree["search"] = {
            "method": rng.choice(("random", "tpe")),
            "trials": 3,
            "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}},
        }
        tree.pop("axes", None), tree.pop("ablate", None)
    command = rng.choice(
        (["grid", "run", "grid.yaml", "--dry-run"], ["grid", "status", "grid.yaml"], ["grid", "report", "grid.yaml"])
    )

    def make(changes: list[Any]) -> list[str]:
        Path("grid.yaml").write_bytes(changed(tree, changes))
        return command

    return Case("grid", make, tree_changes(rng))


def json_change(rng: random.Random, file: str) -> Callable[[Path], None]:
    """A change of a JSON, JSON-lines or YAML file of a run: of its values or of its bytes."""
    inner = change_text(rng) if rng.random() < 0.3 else change_tree(rng)

    def change(run: Path) -> None:
        for path in sorted(run.glob(file)):
            text = path.read_bytes()
            if "change_text" in inner.__qualname__:
                path.write_bytes(inner(text))
                continue
            if path.suffix == ".yaml":
                with contextlib.suppress(yaml.YAMLError):  # an earlier change of its bytes stays alone
                    path.write_bytes(changed(yaml.safe_load(text), [inner]))
                continue
            with contextlib.suppress(TypeError, ValueError):  # a key that JSON has not, or no JSON after another change
                rows = (
                    [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
                )
                inner(rows)
                written = [json.dumps(row, ensure_ascii=True, default=str) for row in rows]
                path.write_text("\n".join(written) + "\n")

    change.__doc__ = f"{file}: {inner.__doc__}"
    return change


def run_of(material: Path, changes: list[Any], resigned: bool) -> Path:
    """A copy of the finished run with the changes, whose manifests are written again."""
    run = Path("runs/smoke/first")
    shutil.copytree(material, run)
    for change in changes:
        change(run)
    if resigned:
        for model in [*run.glob("model"), *run.glob("checkpoints/*/model"), *run.glob("checkpoints/step-*")]:
            write_manifest(model)
    return run


def model_case(rng: random.Random) -> Case:
    """A saved model that someone else may have written."""
    files = ["model/recipe.yaml"] * 3 + [
        "model/tokenizer.json",
        "model/patients.json",
        "model/calibration.json",
        "model/manifest.json",
        "scores.json",
    ]
    resigned = rng.random() < 0.8
    command = rng.choice(
        (["predict", "RUN", "view.png"], ["evaluate", "RUN", "--split", "val"], ["validate", "RUN/model/recipe.yaml"])
    )

    def make(changes: list[Any]) -> list[str]:
        run = run_of(MATERIAL, changes, resigned)
        return [word.replace("RUN", str(run)) for word in command]

    return Case("run", make, [json_change(rng, rng.choice(files)) for _ in range(rng.choice((1, 1, 2)))])


def resume_case(rng: random.Random) -> Case:
    """The state of a run, edited before it is resumed."""
    files = [
        "metrics.jsonl",
        "scores.json",
        "topics.json",
        "environment.json",
        "cost.json",
        "checkpoints/*/trainer.json",
    ]
    files += ["checkpoints/*/trainer.json", "checkpoints/*/manifest.json", "checkpoints/*/model/recipe.yaml"]
    files += ["checkpoints/*/model/patients.json", "predictions/val.jsonl", "model/manifest.json"]
    by = rng.choice(("resume=auto", "resume=runs/smoke/first", "init_from=runs/smoke/first"))

    def make(changes: list[Any]) -> list[str]:
        run_of(MATERIAL, changes, resigned=True)
        return ["train", "smoke", *TINY, "run.name=first" if by == "resume=auto" else "run.name=auto", by]

    return Case("run", make, [json_change(rng, rng.choice(files)) for _ in range(rng.choice((1, 1, 2)))])


KINDS = (
    (recipe_case,) * 8
    + (override_case,) * 6
    + (number_case,) * 5
    + (cyclic_case,)
    + (grid_case,) * 3
    + (model_case,) * 3
    + (resume_case,) * 3
)


def case_of(seed: int, number: int) -> Case:
    """The same case each time."""
    rng = random.Random(f"{seed}-{number}")
    return rng.choice(KINDS)(rng)


# Running


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        finding: what is wrong, the same for the same cause; empty if nothing is.
        output: what the command printed.
    """

    finding: str
    output: str
    command: tuple[str, ...] = ()


def judged(command: list[str]) -> str:
    """Runs a command line in this process. Returns what is wrong with its end."""
    shown: list[BaseException] = []
    cli._print_error, printed = lambda error: (shown.append(error), printed(error)), cli._print_error
    try:
        cli.main(command)
    except SystemExit as end:
        code = end.code
    except BaseException as error:  # a traceback for the user
        traceback.print_exc()
        return f"{type(error).__name__} at {where(error)}"
    else:
        code = 0
    if code not in SOUND:
        return f"exit code {code}"
    for error in shown:
        if not isinstance(error, UserError):
            traceback.print_exception(error)
            return f"{type(error).__name__} without a code at {where(error)}"
        for problem in error.problems:
            if not problem.place:
                return f"no place: {problem.code} at {where(error)}"
    return ""


def where(error: BaseException) -> str:
    """The innermost line of ours in a traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(ROOT))]
    frames = [frame for frame in frames if "/.venv/" not in frame.filename]
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "?"


def one_epoch(trainer: Trainer) -> None:
    """An epoch in place of the whole run."""
    epoch(trainer)
    raise Stopped("fuzz: one epoch is enough")


epoch = Trainer.epoch


def run_case(case: Case, changes: list[Any]) -> Outcome:
    """Runs a case in a child process, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(dir=HOME))
    child = os.fork()
    if not child:
        run_child(case, changes, folder)
    ends = time.monotonic() + 2 * LIMIT_S
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        time.sleep(0.005)
        if time.monotonic() > ends:
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    status = ended[1] if ended[0] else os.waitpid(child, 0)[1]
    read = lambda name: (folder / name).read_text(errors="replace") if (folder / name).exists() else ""  # noqa: E731
    output, finding, command = read("output"), read("finding"), read("command")
    if not (folder / "finding").exists():
        over = "Timeout (" in output or (
            os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
        )
        finding = "no end: " + last_line_of_ours(output) if over else f"ended with status {status}"
        read_files = command + "".join(path.read_text(errors="replace") for path in (folder / "work").glob("*.yaml"))
        if over and LONG.search(read_files):
            finding = ""
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(finding, output, tuple(json.loads(command or "[]")))


def last_line_of_ours(output: str) -> str:
    """Where a command was when its time was over, in the dump of `faulthandler`."""
    lines = [line.strip() for line in output.splitlines() if line.strip().startswith('File "') and str(ROOT) in line]
    lines = [line for line in lines if "/.venv/" not in line and "tests/fuzz.py" not in line]
    return lines[0].replace(str(ROOT) + "/", "") if lines else "?"


def run_child(case: Case, changes: list[Any], folder: Path) -> None:
    """Ends the process."""
    try:
        os.setsid()
        work = folder / "work"
        work.mkdir()
        os.chdir(work)
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        import faulthandler

        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S + 5, LIMIT_S + 5))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        os.mkfifo("fifo")
        Path("folder").mkdir()
        Path("data.json").write_text("[]")
        shutil.copy(HOME / "view.png", "view.png")
        Trainer.epoch = one_epoch  # type: ignore[method-assign]
        command = case.make(changes)
        (folder / "command").write_text(json.dumps(command))
        finding = judged(command)
        (folder / "finding").write_text(finding)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def smallest(case: Case, finding: str) -> list[Any]:
    """The fewest changes that still give the finding."""
    changes = list(case.changes)
    for change in list(changes):
        fewer = [other for other in changes if other is not change]
        if run_case(case, fewer).finding == finding:
            changes = fewer
    return changes


def make_material() -> Path:
    """A finished run of smoke, and an image."""
    run = HOME / "runs" / "smoke" / "first"
    child = os.fork()
    if not child:
        os.chdir(HOME)
        log = os.open("material.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        with contextlib.suppress(BaseException):
            cli.main(["train", "smoke", *TINY, "run.name=first"])
        os._exit(0)
    os.waitpid(child, 0)
    assert (run / "scores.json").is_file(), (HOME / "material.log").read_text()
    from PIL import Image

    Image.effect_noise((64, 64), 40).convert("L").save(HOME / "view.png")
    return run


MATERIAL = HOME / "runs" / "smoke" / "first"


def describe(change: Any) -> str:
    return repr(change)[:300] if isinstance(change, str) else f"{change.__doc__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="when to stop; default: 300")
    parser.add_argument("--cases", type=int, help="run this number of cases instead")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: a new one")
    parser.add_argument("--quick", action="store_true", help="only those that neither train nor read exams")
    parser.add_argument("--case", type=int, help="run one case, and show its output")
    args = parser.parse_args()
    if not args.quick:
        for plugin in catalogue().values():
            with contextlib.suppress(ImportError, ValueError):  # imported once, not in every child
                load(plugin)
        make_material()
    (HOME / "view.png").touch()
    if args.case is not None:
        case = case_of(args.seed, args.case)
        outcome = run_case(case, case.changes)
        print(outcome.output, *map(describe, case.changes), outcome.command, sep="\n")
        print(f"finding: {outcome.finding or 'none'}")
        sys.exit(bool(outcome.finding))
    started, found, number = time.monotonic(), {}, 0
    for number in itertools.count():
        if number == args.cases or (args.cases is None and time.monotonic() - started > args.seconds):
            break
        case = case_of(args.seed, number)
        if args.quick and case.verb not in QUICK:
            continue
        outcome = run_case(case, case.changes)
        if outcome.finding and outcome.finding not in found:
            changes = smallest(case, outcome.finding)
            found[outcome.finding] = number
            print(f"\n{outcome.finding}\n  python tests/fuzz.py --seed {args.seed} --case {number}")
            print(
                f"  {' '.join(map(repr, outcome.command))[:1500]}",
                *(f"  {describe(each)}" for each in changes),
                sep="\n",
            )
            print("\n".join(f"  | {line[:300]}" for line in outcome.output.splitlines()[-6:]), flush=True)
        if sys.stdout.isatty():
            print(
                f"\r{number + 1} cases, {len(found)} findings, {time.monotonic() - started:.0f} s ", end="", flush=True
            )
    print(f"\nseed {args.seed}: {number} cases in {time.monotonic() - started:.0f} s, {len(found)} findings")
    sys.exit(bool(found))


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
