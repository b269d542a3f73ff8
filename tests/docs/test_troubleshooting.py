"""docs/troubleshooting.md has a row for every message that the code can say, and no row that it cannot say any more.

Messages are read from the source text: what is raised, noted as a problem or a notice, warned of, said during a run. A
message is the list of its literal pieces; what a run fills in stands in the page as a WORD IN CAPITALS.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from harness import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
OURS = ("framework", "plugins")
FOR_AUTHORS = ("framework/testing", "framework/testing/templates")  # what tests of plugins say, not what users meet
SPEAKERS = {
    "note",
    "print0",
    "warn",
    "warning",
    "ExamError",
    "ExamWarning",
    "BadParameter",
    "exit",
    "_refuse",
    "complain",
}
REASON = "reason"  # a value of this name is kept, and told later
LISTS = ("problems", "notices")
NOT_FOR_USERS = {"AssertionError", "KeyError", "Exit", "MainProcessFailed"}
OTHERS = "<!-- not from this code -->"  # closes the part of the page whose messages are ours
HOLE = re.compile(r"%[sdr]|\{\w+\}")  # of logging and of str.format
TEXTS = re.compile(r"\bstr\b|Error\b")  # of what a function returns
WORD = re.compile(r"[A-Za-z]{2,}")
PLAIN_WORD = re.compile(r"\b[a-z]{3,}\b")
# A piece that begins or ends with a letter is no part of a longer word: `is` strikes nothing out of `this`.
WORD_BEGINS, WORD_ENDS = r"(?:(?<![a-z])|(?![A-Za-z]))", r"(?:(?![a-z])|(?<![A-Za-z]))"


@dataclass(frozen=True)
class Message:
    where: str
    pieces: tuple[str, ...]

    @property
    def longest(self) -> str:
        """The words to look for: the piece with the most of them."""
        return max(self.pieces, key=lambda piece: (words_in(piece), len(piece)))


def words_in(text: str) -> int:
    return sum(bool(WORD.search(word)) for word in text.split())


def one_line(text: str) -> str:
    return " ".join(text.replace("`", "").replace(r"\|", "|").split())


def last_name(node: ast.expr | None) -> str:
    return ast.unparse(node).split(".")[-1] if isinstance(node, (ast.Name, ast.Attribute)) else ""


class Reader:
    """One source file: finds its messages, and follows the names in them to the texts they were given."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.path = path.relative_to(ROOT)
        nodes = list(ast.walk(self.tree))
        self.functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}
        self.others: Mapping[str, Reader] = {}  # of the functions of other files, by name

    def messages(self) -> Iterator[Message]:
        for statement in self.tree.body:
            if isinstance(statement, ast.Assign) and last_name(statement.targets[0]) == "EXPECTED":
                yield from self._told(statement, [statement.value], self.tree)
        yield from self._within(self.tree, self.tree)

    def _within(self, node: ast.AST, scope: ast.AST) -> Iterator[Message]:
        for child in ast.iter_child_nodes(node):
            inner = child if isinstance(child, ast.FunctionDef) else scope
            yield from self._told(child, _spoken(child), inner)
            yield from self._within(child, inner)

    def _told(self, node: ast.AST, spoken: list[ast.expr], scope: ast.AST) -> Iterator[Message]:
        for expression in spoken:
            for where, pieces in self._texts(expression, scope, frozenset()):
                yield Message(where, tuple(filter(None, map(one_line, pieces))))

    def _texts(self, node: ast.expr, scope: ast.AST, seen: frozenset[str]) -> Iterator[tuple[str, list[str]]]:
        """The texts that an expression can be, each with its place, cut where something is filled in."""
        where = f"{self.path}:{node.lineno}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield where, HOLE.split(node.value)
        elif isinstance(node, ast.JoinedStr):
            yield where, [str(part.value) for part in node.values if isinstance(part, ast.Constant)]
        parts: list[ast.expr] = []
        if isinstance(node, ast.JoinedStr):
            parts = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
        elif isinstance(node, ast.IfExp):
            parts = [node.body, node.orelse]
        elif isinstance(node, ast.BinOp):
            parts = [node.left, node.right]
        elif isinstance(node, (ast.Tuple, ast.List)):
            parts = node.elts
        elif isinstance(node, ast.Dict):
            parts = node.values
        elif isinstance(node, ast.ListComp):
            parts = [node.elt]
        elif isinstance(node, (ast.Starred, ast.NamedExpr)):
            parts = [node.value]
        elif isinstance(node, ast.Call):
            name = last_name(node.func)
            if name in SPEAKERS or name.endswith(("Error", "Warning")):
                parts = node.args
            elif name == "encode" and isinstance(node.func, ast.Attribute):
                parts = [node.func.value]
            elif name == "items" and isinstance(node.func, ast.Attribute) and last_name(node.func.value).isupper():
                parts = list(_given(last_name(node.func.value), self.tree))  # a table of the file
            elif name in self.functions and name not in seen:
                function = self.functions[name]
                parts = _results(function)
                scope, seen = function, seen | {name}
            elif name in self.others and name not in seen:
                other = self.others[name]
                for value in _results(other.functions[name]):
                    yield from other._texts(value, other.functions[name], seen | {name})
        elif isinstance(node, ast.Name) and node.id not in seen:
            parts, seen = list(_given(node.id, scope)), seen | {node.id}
        for part in parts:
            yield from self._texts(part, scope, seen)


def _spoken(node: ast.AST) -> list[ast.expr]:
    """The expressions in which a statement or call tells something to a person."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        name = last_name(node.exc.func)
        if name in NOT_FOR_USERS:
            return []
        return [node.exc] if name.islower() else node.exc.args + [k.value for k in node.exc.keywords]
    if isinstance(node, ast.AugAssign) and last_name(node.target) in LISTS:
        return [node.value]
    if isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        return [value for key, value in zip(keys, node.values) if key == REASON]
    if not isinstance(node, ast.Call):
        return []
    name, kept = last_name(node.func), [word.value for word in node.keywords if word.arg == REASON]
    on_list = name == "append" and isinstance(node.func, ast.Attribute) and last_name(node.func.value) in LISTS
    # What is flushed goes into a log that people follow.
    to_person = name == "print" and any(ast.unparse(k) in ("file=sys.stderr", "flush=True") for k in node.keywords)
    in_a_signal = ast.unparse(node.func) == "os.write" and ast.unparse(node.args[0]) == "2"
    return kept + (node.args if name in SPEAKERS or on_list or to_person or in_a_signal else [])


def _results(function: ast.FunctionDef) -> list[ast.expr]:
    gives = (ast.Return, ast.Yield, ast.YieldFrom)
    return [node.value for node in ast.walk(function) if isinstance(node, gives) and node.value]


def _given(name: str, scope: ast.AST) -> Iterator[ast.expr]:
    """What a name is given in a function, by = or += or as a loop's item."""
    for node in ast.walk(scope):
        if isinstance(node, (ast.Assign, ast.For)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
            if name in names:
                yield node.value if isinstance(node, ast.Assign) else node.iter
        elif isinstance(node, (ast.AugAssign, ast.NamedExpr)) and last_name(node.target) == name:
            yield node.value


@cache
def messages() -> tuple[Message, ...]:
    paths = sorted(path for folder in OURS for path in (ROOT / folder).rglob("*.py"))
    readers = [Reader(path) for path in paths if not path.relative_to(ROOT).as_posix().startswith(FOR_AUTHORS)]
    return tuple(dict.fromkeys(read_together(readers)))


def read_together(readers: list[Reader]) -> Iterator[Message]:
    """Messages of all files, where one may say what a function of another returns."""
    named = Counter(name for reader in readers for name in reader.functions)
    # A name that several files have may be any of them; and what gives no text says nothing.
    others = {
        name: reader
        for reader in readers
        for name, function in reader.functions.items()
        if named[name] == 1 and function.returns is not None and TEXTS.search(ast.unparse(function.returns))
    }
    for reader in readers:
        reader.others = others
        yield from (message for message in reader.messages() if message.pieces)


@cache
def quoted() -> tuple[str, ...]:
    """The first cells of the page's tables: the messages that it says this code has."""
    ours, closed, _ = PAGE.read_text(encoding="utf-8").partition(OTHERS)
    assert closed, f"{PAGE}: no line {OTHERS} before the messages of other libraries"
    rows = re.findall(r"(?m)^\| (.*?[^\\]) \| .*\w.* \|$", ours)  # a row that says nothing of its message is none
    return tuple(one_line(row) for row in rows if "`" in row)


def needs_a_row(message: Message) -> bool:
    """Whether it has words of its own; the rest passes on what another message says."""
    return words_in(message.longest) >= 2


def missing(told: tuple[Message, ...], rows: tuple[str, ...]) -> list[str]:
    lacking = [m for m in told if needs_a_row(m) and not any(m.longest in row for row in rows)]
    return [f"{m.where}: {' ... '.join(m.pieces)}" for m in lacking]


def stale(told: tuple[Message, ...], rows: tuple[str, ...]) -> list[str]:
    """Rows with words that no message has: every piece is struck out wherever it stands, and pieces may overlap."""
    pieces = {piece for m in told for piece in m.pieces if WORD.search(piece)}
    found = []
    for row in rows:
        left = list(row)
        for piece in pieces:
            if piece in row:
                for stands in re.finditer(WORD_BEGINS + re.escape(piece) + WORD_ENDS, row):
                    left[slice(*stands.span())] = " " * len(piece)
        if words := PLAIN_WORD.findall("".join(left)):
            found.append(f"{row}\n    (no message says: {' '.join(words)})")
    return found


def test_every_message_has_a_row() -> None:
    lines = missing(messages(), quoted())
    assert not lines, (
        f"{len(lines)} messages have no row in docs/troubleshooting.md. Add for each, to the table of the place where "
        "a person meets it, | `message, WORDS IN CAPITALS for what is filled in` | what it means, what to do |:\n  "
        + "\n  ".join(lines)
    )


def test_no_row_tells_of_a_message_that_is_gone() -> None:
    lines = stale(messages(), quoted())
    assert not lines, (
        f"{len(lines)} rows of docs/troubleshooting.md quote what no message in framework/ or plugins/ says. Mend or "
        "take out (messages of other libraries stand below the line " + OTHERS + "):\n  " + "\n  ".join(lines)
    )


def test_no_message_has_two_rows() -> None:
    rows = quoted()
    assert sorted(rows) == sorted(set(rows))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('raise ValueError(f"{path}: no such {what}, look again")', [": no such", ", look again"]),
        ('raise ValueError("one line " "after another")', ["one line after another"]),
        ('def f():\n    what = "is gone"\n    problems.append(f"{x}: {what}")', ["is gone"]),
        ('def g():\n    return "is no list"\n\ndef f():\n    note = g()\n    say(f"it {note}")', ["it", "is no list"]),
        ('for key, text in h():\n    say(text)\n\ndef h():\n    yield 1, "which is wrong"', ["which is wrong"]),
        ('log.warning("%s is damaged (%s)", a, b)', ["is damaged (", ")"]),
        ('notices += [f"{x}: dropped keys"]', [": dropped keys"]),
        ('raise AssertionError("ours to mend")', []),
        (
            'def f():\n    raise too_large(3)\n\ndef too_large(n):\n    return MyError(f"{n} is too large")',
            ["is too large"],
        ),
        ('problems = [*f()]\nraise MyError(*problems)\n\ndef f():\n    yield "two are wrong"', ["two are wrong"]),
        (
            'raise MyError(*f())\n\ndef f():\n    yield from g()\n\ndef g():\n    yield "both are wrong"',
            ["both are wrong"],
        ),
        ('A = {"b": "is of C"}\n\ndef f():\n    for x, y in A.items():\n        say(f"{x} {y}")', ["is of C"]),
        ('if note := g():\n    say(f"{note}")\n\ndef g():\n    return "three are left"', ["three are left"]),
        ('os.write(2, f"{name}: is heard".encode())', [": is heard"]),
        ('print("done")', []),
        ('print(f"{name}: is taken over", flush=True)', [": is taken over"]),
        ('complain((key,), "is no list")', ["is no list"]),
        ('replace(state, reason="it was killed")', ["it was killed"]),
        ('told = {"code": 3, "reason": "it did not say why"}', ["it did not say why"]),
    ],
)
def test_messages_are_found_however_they_are_put_together(
    source: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "one.py"
    file.write_text(source, encoding="utf-8")
    pieces = [piece for message in Reader(file).messages() for piece in message.pieces]
    assert set(expected) <= set(pieces)
    assert expected or not pieces


def test_a_message_that_another_file_returns_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "one.py").write_text("raise MyError(verify_checkpoint(x))", encoding="utf-8")
    (tmp_path / "two.py").write_text('def verify_checkpoint(x) -> str:\n    return f"{x} is broken"', encoding="utf-8")
    told = read_together([Reader(tmp_path / name) for name in ("one.py", "two.py")])
    assert list(told) == [Message("two.py:2", ("is broken",))]


def test_a_changed_message_is_missing_and_its_old_row_stale() -> None:
    told = (Message("a.py:1", ("the folder", "holds nothing at all")),)
    assert missing(told, ("the folder FOLDER holds nothing at all",)) == []
    assert stale(told, ("the folder FOLDER holds nothing at all",)) == []
    old = ("the folder FOLDER is empty",)
    assert missing(told, old) == ["a.py:1: the folder ... holds nothing at all"]
    assert "no message says: empty" in stale(told, old)[0]
