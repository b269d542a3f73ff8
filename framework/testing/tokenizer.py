"""The contract of a tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.exam import BOS, EOS, PAD, UNK
from framework.testing.contract import Make, build_plugin, require, runs

REPORTS = (
    "Left breast: an oval hypoechoic mass of 18 x 12 mm at 10 o'clock. The margin is circumscribed. BI-RADS 3.",
    "Right breast: no focal lesion. Homogeneous glandular tissue.",
    "An irregular hypoechoic mass with a spiculated margin and posterior shadow. BI-RADS 5.",
    "A round anechoic cyst of 1.8 cm, with posterior enhancement.",
)
UNHEARD = "Zyqqx wvkjh ξδω 鑫 123456789"


def check_tokenizer(make: Make, *, reports: Sequence[str] = REPORTS) -> None:
    """Checks a tokenizer against its contract.

    Args:
        make: The class, or a function that builds one.
        reports: Its training reports: some in the language that it is for.

    Raises:
        ContractError: the first rule that it breaks.
    """
    _segments(build_plugin(make), reports)
    tokenizer, other = build_plugin(make), build_plugin(make)
    for each in (tokenizer, other):
        with runs("fit(reports) succeeds", expected="no error", fix="accept any list of texts"):
            each.fit(list(reports))
    _vocabulary(tokenizer, other)
    for text in (*reports, UNHEARD, ""):
        _ids(tokenizer, text)
    _decoding(tokenizer, reports)
    _saving(tokenizer, reports)


def _segments(tokenizer: Any, reports: Sequence[str]) -> None:
    """Topics and scores use these words."""
    rule, expected = "segment(text) returns words, also before fit", "a list of texts"
    fix = "do not use the vocabulary"
    with runs(rule, expected=expected, fix=fix):
        words = [tokenizer.segment(text) for text in reports]
    right = all(isinstance(row, list) and row and all(isinstance(word, str) and word for word in row) for row in words)
    require(right, rule, found=words[0], expected=expected, fix=fix)


def _vocabulary(tokenizer: Any, other: Any) -> None:
    words = list(tokenizer.vocabulary)
    rule = "the vocabulary is a list of distinct tokens that starts with PAD, BOS, EOS and UNK (ids 0 to 3)"
    fix = "put framework.exam.SPECIAL_TOKENS before the words"
    require(len(set(words)) == len(words) > UNK + 1, rule, found=words[:8], expected="no token twice", fix=fix)
    require(
        len(tokenizer) == len(words),
        "len(tokenizer) is the size of its vocabulary",
        found=len(tokenizer),
        expected=len(words),
        fix="def __len__(self): return len(self.vocabulary)",
    )
    require(
        words == list(other.vocabulary),
        "the same reports give the same vocabulary",
        found="another order or other words",
        expected="equal lists",
        fix="sort sets before numbering",
    )
    for name in ("segmentation", "language"):
        value = getattr(tokenizer, name, None)
        require(
            isinstance(value, str) and value,
            f"`{name}` is set, since scores depend on it",
            found=value,
            expected="a text",
            fix="segmentation: a description of the words; language: en, zh ...",
        )


def _ids(tokenizer: Any, text: str) -> None:
    rule = "encode returns ids from BOS to EOS"
    fix = "return [BOS, *words, EOS], with UNK for unknown words"
    with runs(rule, expected="a list of ints", fix=fix):
        ids = list(tokenizer.encode(text))
        inner = ids[1:-1]
    right = ids[:1] == [BOS] and ids[-1:] == [EOS] and len(ids) >= 2
    right = right and all(type(i) is int and UNK <= i < len(tokenizer) for i in inner)
    require(right, rule, found=f"{ids} of {text!r}", expected=f"{BOS}, ids from {UNK}, {EOS}", fix=fix)
    for most in (2, 5):
        rule, fix = "encode(text, max_length) returns at most max_length ids", "words[: max_length - 2]"
        with runs(rule, expected=f"at most {most} ids", fix=fix):
            cut = list(tokenizer.encode(text, most))
        expected = [*ids[: min(most, len(ids)) - 1], EOS]
        require(cut == expected, rule, found=cut, expected=expected, fix=fix)


def _decoding(tokenizer: Any, reports: Sequence[str]) -> None:
    for text in reports:
        ids = list(tokenizer.encode(text))
        rule, fix = "decoded text encodes to the same ids", "join words so that they segment unchanged"
        with runs(rule, expected="a text", fix=fix):
            written = tokenizer.decode(ids)
            again = list(tokenizer.encode(written))
        if UNK in ids:
            continue  # an unknown word cannot be decoded
        require(again == ids, rule, found=f"{written!r} of {text!r}", expected=ids, fix=fix)
        words, expected = tokenizer.segment(written), tokenizer.segment(text)
        rule = "a decoded reference has the words of the reference"
        require(words == expected, rule, found=words, expected=expected, fix=fix)
    ids = list(tokenizer.encode(reports[0]))
    whole = tokenizer.decode(ids)
    for name, other in (
        ("decode stops at the first EOS", [*ids, ids[1], EOS]),
        ("decode skips PAD", [*ids[:2], PAD, *ids[2:], PAD]),
        ("decode needs neither BOS nor EOS", ids[1:-1]),
    ):
        with runs(name, expected=repr(whole), fix="stop at EOS; decode only words"):
            found = tokenizer.decode(other)
        require(found == whole, name, found=repr(found), expected=repr(whole), fix="stop at EOS; decode only words")
    require(
        tokenizer.decode([]) == "",
        "no ids give an empty text",
        found=tokenizer.decode([]),
        expected="''",
        fix="join words",
    )


def _saving(tokenizer: Any, reports: Sequence[str]) -> None:
    rule, expected = "load restores what save wrote", "an equal tokenizer"
    fix = "save vocabulary and settings as JSON; make load a classmethod"
    with tempfile.TemporaryDirectory() as folder, runs(rule, expected=expected, fix=fix):
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        copy = type(tokenizer).load(path)
        for name in ("vocabulary", "segmentation", "language"):
            one, two = getattr(copy, name), getattr(tokenizer, name)
            require(one == two, rule, found=f"{name} {str(one)[:80]}", expected=str(two)[:80], fix=fix)
        for text in (*reports, UNHEARD):
            ids = list(tokenizer.encode(text))
            same = list(copy.encode(text)) == ids and copy.decode(ids) == tokenizer.decode(ids)
            require(same, rule, found=f"other ids or text of {text!r}", expected=expected, fix=fix)
            require(
                copy.segment(text) == tokenizer.segment(text), rule, found="other words", expected=expected, fix=fix
            )
