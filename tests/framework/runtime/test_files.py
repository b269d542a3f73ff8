"""Locks and atomic writes."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import ROOT, problem

from framework.data.image_file import FileView
from framework.recipe import load_recipe
from framework.runtime.errors import UserError
from framework.runtime.files import atomic_write, read_bounded, read_lines, read_object, reading
from plugins.dataset.manifest import Manifest
from plugins.tokenizer.hf import Hf
from plugins.tokenizer.words import Words

MAKES = """
import sys, time
from pathlib import Path
from framework.runtime.files import file_lock
folder = Path(sys.argv[1])
with file_lock(folder / "work.lock", "topics"):
    if not (folder / "made").exists():
        time.sleep(1.0)
        with (folder / "made").open("a") as file:
            file.write("once\\n")
"""


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", MAKES, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_lock_lets_one_process_work_and_the_others_report_that_they_wait(tmp_path):
    makers = [start(tmp_path) for _ in range(3)]
    outputs = [maker.communicate(timeout=60)[0] for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0, 0]
    assert (tmp_path / "made").read_text() == "once\n"
    assert sorted(outputs)[0] == "" and sorted(outputs)[-1] == "waiting for another run that makes the same topics\n"


def test_a_lock_is_released_when_its_process_ends(tmp_path):
    dies = "import os, sys; from pathlib import Path; from framework.runtime.files import atomic_write, file_lock\n"
    dies += "with file_lock(Path(sys.argv[1]) / 'work.lock', 'topics'): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", dies, str(tmp_path)], cwd=ROOT).returncode == 9
    maker = start(tmp_path)
    assert maker.communicate(timeout=60)[0] == "" and (tmp_path / "made").exists()


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "\ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_json_lines_end_at_line_feeds_only(tmp_path):
    rows = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x1cc"]
    atomic_write(tmp_path / "rows.jsonl", "\n".join(rows))
    assert [line.rstrip("\n") for line in read_lines(tmp_path / "rows.jsonl")] == rows


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def bound_socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def zeros(path: Path) -> Path:
    """A link to a device without an end."""
    path.symlink_to("/dev/zero")
    return path


SPECIAL = [fifo, bound_socket, folder, zeros]


@pytest.mark.parametrize("make", SPECIAL)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """A FIFO waited for a writer that never came, and /dev/zero filled the memory."""
    with problem("unreadable-file", str(tmp_path / "it")) as found:
        read_bounded(make(tmp_path / "it"), 100)
    assert found[0].found == "not a regular file"


def test_a_file_above_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(b"x" * 11)
    assert len(read_bounded(tmp_path / "it", 11)) == 11
    with problem("unreadable-file", "it"):
        read_bounded(tmp_path / "it", 10)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "other", 10)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\udcff", ""])
def test_a_damaged_object_names_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "it.json").write_bytes(text.encode(errors="surrogateescape"))
    with problem("damaged-file", "it.json"):
        read_object(tmp_path / "it.json", "Delete it.")


@pytest.mark.parametrize("make", SPECIAL)
def test_whatever_a_recipe_opens_is_a_regular_file(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """Recipe, `_base_`, plugin file, manifest, tokenizer, image."""
    special = make(tmp_path / "it")
    if make is not folder:
        with problem("unreadable-file", "it"):
            load_recipe(special)
    (tmp_path / "r.yaml").write_text("_base_: it\n")
    with problem("unreadable-file", "it"):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(UserError):
        load_recipe("smoke", [f"plugins=[{special}]"])
    with problem("unreadable-file", "it"):
        Manifest(file=str(special), images=str(tmp_path)).splits()
    for tokenizer in (Words, Hf):
        with problem("unreadable-file", "it"):
            tokenizer.load(special)
    with pytest.raises(OSError, match="not a regular file"):
        FileView(str(special), "it").load()


def test_a_file_of_another_form_is_damaged_and_its_value_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, NaN]}')
    assert len(read_object(path, "", dict[str, list[float]])["a"]) == 2
    with problem("damaged-file", str(path)) as found:
        read_object(path, "Delete it.", dict[str, list[int]])
    assert found[0].found.startswith("a.1:") and found[0].hint == "Delete it."


def test_an_error_while_a_file_is_read_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with problem("damaged-file", str(path)), reading(path, "Delete it."):
        {}["test"]
    with problem("no-model"), reading(path, "Delete it."):
        raise UserError("no-model", "another problem")
