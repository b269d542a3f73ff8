"""What a tokenizer promises."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.exam import BOS, EOS, PAD, UNK
from framework.testing.promise import Make, hold, made, promised

REPORTS = (
    "Left breast: an oval hypoechoic mass of 18 x 12 mm at 10 o'clock. The margin is circumscribed. BI-RADS 3.",
    "Right breast: no focal lesion. Homogeneous glandular tissue.",
    "An irregular hypoechoic mass with a spiculated margin and posterior shadow. BI-RADS 5.",
    "A round anechoic cyst of 1.8 cm, with posterior enhancement.",
)
UNHEARD = "Zyqqx wvkjh ξδω 鑫 123456789"


def check_tokenizer(make: Make, *, reports: Sequence[str] = REPORTS) -> None:
    """Holds a tokenizer to its contract.

    Args:
        make: The class, or what makes one.
        reports: Its training reports: some in the language that it is for.

    Raises:
        BrokenPromise: the first promise that it does not keep.
    """
    _segments(made(make), reports)
    tokenizer, other = made(make), made(make)
    for each in (tokenizer, other):
        with promised("fit(reports) learns a vocabulary", expected="no error", fix="fit on any list of texts"):
            each.fit(list(reports))
    _vocabulary(tokenizer, other)
    for text in (*reports, UNHEARD, ""):
        _ids(tokenizer, text)
    _decoding(tokenizer, reports)
    _saving(tokenizer, reports)


def _segments(tokenizer: Any, reports: Sequence[str]) -> None:
    """Topics and scores are found on these words."""
    promise, expected = "segment(text) gives the words of a text, before any fit", "a list of texts"
    fix = "split the text alone, without the vocabulary"
    with promised(promise, expected=expected, fix=fix):
        words = [tokenizer.segment(text) for text in reports]
    right = all(isinstance(row, list) and row and all(isinstance(word, str) and word for word in row) for row in words)
    hold(right, promise, found=words[0], expected=expected, fix=fix)


def _vocabulary(tokenizer: Any, other: Any) -> None:
    words = list(tokenizer.vocabulary)
    promise = "the vocabulary is a list of different texts, PAD, BOS, EOS and UNK (ids 0 to 3) first"
    fix = "put four signs that no text segments into before the words (framework.exam)"
    hold(len(set(words)) == len(words) > UNK + 1, promise, found=words[:8], expected="no text twice", fix=fix)
    hold(
        len(tokenizer) == len(words),
        "len(tokenizer) is the size of its vocabulary",
        found=len(tokenizer),
        expected=len(words),
        fix="def __len__(self): return len(self.vocabulary)",
    )
    hold(
        words == list(other.vocabulary),
        "the same reports give the same vocabulary",
        found="another order or other words",
        expected="equal lists",
        fix="sort sets before numbering them",
    )
    for name in ("segmentation", "language"):
        value = getattr(tokenizer, name, None)
        hold(
            isinstance(value, str) and value,
            f"`{name}` tells what scores depend on",
            found=value,
            expected="a text",
            fix="segmentation: what the words are; language: en, zh ...",
        )


def _ids(tokenizer: Any, text: str) -> None:
    promise = "encode gives ids from BOS to EOS"
    fix = "[BOS, *words, EOS]; a word that is not known is UNK"
    with promised(promise, expected="a list of ints", fix=fix):
        ids = list(tokenizer.encode(text))
        inner = ids[1:-1]
    right = ids[:1] == [BOS] and ids[-1:] == [EOS] and len(ids) >= 2
    right = right and all(type(i) is int and UNK <= i < len(tokenizer) for i in inner)
    hold(right, promise, found=f"{ids} of {text!r}", expected=f"{BOS}, ids from {UNK}, {EOS}", fix=fix)
    for most in (2, 5):
        promise, fix = "encode(text, max_length) keeps the limit, BOS and EOS included", "words[: max_length - 2]"
        with promised(promise, expected=f"at most {most} ids", fix=fix):
            cut = list(tokenizer.encode(text, most))
        expected = [*ids[: min(most, len(ids)) - 1], EOS]
        hold(cut == expected, promise, found=cut, expected=expected, fix=fix)


def _decoding(tokenizer: Any, reports: Sequence[str]) -> None:
    for text in reports:
        ids = list(tokenizer.encode(text))
        promise, fix = "what decode writes encodes to the same ids", "join words so that they segment as before"
        with promised(promise, expected="a text", fix=fix):
            written = tokenizer.decode(ids)
            again = list(tokenizer.encode(written))
        if UNK in ids:
            continue  # an unknown word is not written, and cannot come back
        hold(again == ids, promise, found=f"{written!r} of {text!r}", expected=ids, fix=fix)
        words, expected = tokenizer.segment(written), tokenizer.segment(text)
        promise = "a report written word for word has the reference's words, so that it scores full marks"
        hold(words == expected, promise, found=words, expected=expected, fix=fix)
    ids = list(tokenizer.encode(reports[0]))
    whole = tokenizer.decode(ids)
    for name, other in (
        ("decode ends at the first EOS", [*ids, ids[1], EOS]),
        ("decode leaves out PAD", [*ids[:2], PAD, *ids[2:], PAD]),
        ("decode needs neither BOS nor EOS", ids[1:-1]),
    ):
        with promised(name, expected=repr(whole), fix="stop at EOS; write only words"):
            found = tokenizer.decode(other)
        hold(found == whole, name, found=repr(found), expected=repr(whole), fix="stop at EOS; write only words")
    hold(tokenizer.decode([]) == "", "no ids are no text", found=tokenizer.decode([]), expected="''", fix="join words")


def _saving(tokenizer: Any, reports: Sequence[str]) -> None:
    promise, expected = "load gives back what save wrote", "an equal tokenizer"
    fix = "save vocabulary and settings as JSON; load is a classmethod"
    with tempfile.TemporaryDirectory() as folder, promised(promise, expected=expected, fix=fix):
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        copy = type(tokenizer).load(path)
        for name in ("vocabulary", "segmentation", "language"):
            one, two = getattr(copy, name), getattr(tokenizer, name)
            hold(one == two, promise, found=f"{name} {str(one)[:80]}", expected=str(two)[:80], fix=fix)
        for text in (*reports, UNHEARD):
            ids = list(tokenizer.encode(text))
            same = list(copy.encode(text)) == ids and copy.decode(ids) == tokenizer.decode(ids)
            hold(same, promise, found=f"other ids or text of {text!r}", expected=expected, fix=fix)
            hold(
                copy.segment(text) == tokenizer.segment(text), promise, found="other words", expected=expected, fix=fix
            )
