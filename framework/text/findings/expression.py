"""Regular expressions that look for their own words first: most expressions of a lexicon match in few clauses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product

# The parser of `re`, which a test pins: its trees tell which words every match contains.
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MOST = 64  # words of an expression; more would cost as much as the expression

DIGITS = frozenset("0123456789")

Words = frozenset[str]
Span = tuple[int, int]


class Expression:
    """A compiled expression without flags.

    Attributes:
        text: the expression.
        words: one of these is in every text with a match; empty if the expression has no such words.
        reads_digits: whether a match can depend on which digit a digit is.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        re.compile(text)  # its errors name places in the text itself
        first = _first_characters(parser.parse(text))
        # A look ahead saves trying every branch at places where none can begin.
        self.pattern = re.compile(f"(?=[{re.escape(''.join(sorted(first)))}])(?:{text})" if first else text)
        self.words = tuple(sorted(required_words(text)))
        self.reads_digits = reads_digits(text)

    def may_match(self, text: str) -> bool:
        """False only if no place of the text matches."""
        for word in self.words:  # a loop, since any() over a generator takes twice as long
            if word in text:
                return True
        return not self.words

    def finditer(self, text: str) -> Iterable[re.Match[str]]:
        return self.pattern.finditer(text) if self.may_match(text) else ()

    def spans(self, text: str) -> tuple[Span, ...]:
        """Start and end of each match."""
        return tuple([match.span() for match in self.pattern.finditer(text)]) if self.may_match(text) else ()

    def places(self, text: str) -> list[tuple[Span, str | None]]:
        """Start and end of each match, and its last group."""
        return [(match.span(), match.lastgroup) for match in self.finditer(text)]

    def found_in(self, text: str) -> bool:
        return self.may_match(text) and self.pattern.search(text) is not None

    def begins(self, text: str) -> bool:
        """Whether the start of the text matches."""
        return self.pattern.match(text) is not None

    def replace(self, text: str, by: str) -> str:
        return self.pattern.sub(by, text) if self.may_match(text) else text


def reads_digits(text: str) -> bool:
    """False only if every digit in place of another one leaves the matches of an expression where they are."""
    return _tells_digits_apart(parser.parse(text))


def _tells_digits_apart(tree: Any) -> bool:
    if isinstance(tree, tuple) and len(tree) == 2:
        code, argument = tree
        if code is op.LITERAL or code is op.NOT_LITERAL:
            return chr(argument) in DIGITS
        if code is op.IN:
            named = {chr(value) for each, value in argument if each is op.LITERAL}
            ranges = [value for each, value in argument if each is op.RANGE]
            named |= {digit for digit in DIGITS for first, last in ranges if first <= ord(digit) <= last}
            return 0 < len(named & DIGITS) < len(DIGITS)
        if code is op.GROUPREF:
            return True
    if isinstance(tree, (tuple, list, parser.SubPattern)):
        return any(map(_tells_digits_apart, tree))
    return False


def required_words(text: str) -> Words:
    """One of these is in every match of an expression; none if there are no such words."""
    words = _of_sequence(parser.parse(text))[1]
    if "" in words:
        return frozenset()
    return frozenset(word for word in words if not any(other in word for other in words if other != word))


def _of_sequence(items: Iterable[Any]) -> tuple[Words | None, Words]:
    """All strings that a sequence matches, None if they are many or any; and the words that it requires."""
    whole = True
    run: Words = frozenset({""})
    candidates: list[Words] = []
    for code, argument in items:
        exact, words = _of_item(code, argument)
        if exact is not None and len(run) * len(exact) <= MOST:
            run = frozenset(map("".join, product(run, exact)))
            continue
        whole = False
        candidates += [run, words]
        run = frozenset({""}) if exact is None else exact
    candidates.append(run)
    return run if whole else None, max(candidates, key=_strength)


def _of_item(code: Any, argument: Any) -> tuple[Words | None, Words]:
    nothing: Words = frozenset()
    if code is op.LITERAL:
        exact = frozenset({chr(argument)})
        return exact, exact
    if code is op.IN and all(each is op.LITERAL for each, _ in argument):
        exact = frozenset(chr(value) for _, value in argument)
        return exact, exact
    if code in (op.AT, op.ASSERT, op.ASSERT_NOT):
        return frozenset({""}), nothing
    if code is op.SUBPATTERN:
        return _of_sequence(argument[-1])
    if code is op.BRANCH:
        return _of_branches([_of_sequence(branch) for branch in argument[1]])
    if code is op.MAX_REPEAT:
        least, most, repeated = argument
        exact_once, words = _of_sequence(repeated)
        if exact_once is not None and (least, most) == (0, 1):
            return exact_once | {""}, nothing
        return None, words if least else nothing
    return None, nothing


def _of_branches(branches: list[tuple[Words | None, Words]]) -> tuple[Words | None, Words]:
    exact: Words | None = frozenset()
    words: Words | None = frozenset()
    for exact_one, words_one in branches:
        exact = None if exact is None or exact_one is None else exact | exact_one
        words = None if words is None or not _strength(words_one)[0] else words | words_one
    return (exact if exact is not None and len(exact) <= MOST else None), words or frozenset()


def _strength(words: Words) -> tuple[int, int]:
    """Longer words first, since fewer texts have them, then fewer words."""
    return min(map(len, words), default=0), -len(words)


def _first_characters(items: Iterable[Any]) -> Words | None:
    """What a match begins with; None if it is empty or can begin with many characters."""
    first: Words = frozenset()
    for code, argument in items:
        if code in (op.AT, op.ASSERT, op.ASSERT_NOT):
            continue
        if code is op.MAX_REPEAT and argument[0] == 0:
            found = _first_characters(argument[2])
            if found is None:
                return None
            first |= found
            continue
        if code is op.SUBPATTERN:
            found = _first_characters(argument[-1])
        elif code is op.BRANCH:
            branches = [_first_characters(branch) for branch in argument[1]]
            found = None if None in branches else frozenset().union(*(each for each in branches if each))
        elif code is op.MAX_REPEAT:
            found = _first_characters(argument[2])
        else:
            found = _of_item(code, argument)[0]
        return None if found is None else first | found
    return None
