"""METEOR: matches of words, stems, synonyms and paraphrases, by the authors' Java program."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.runtime.errors import UserError
from framework.scoring.counts import safe_divide
from framework.scoring.dependencies import package_folder, require_english
from framework.scoring.pairs import require_references, warn_empty_predictions

JAR = "meteor/meteor-1.5.jar"
MEMORY = "-Xmx2G"  # for its table of paraphrases
# Settings for English: Denkowski and Lavie 2014, table 1, and its documentation.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MATCHES = np.array((1.0, 0.6, 0.8, 0.6))  # weights of exact, stem, synonym and paraphrase matches
START_S = 60  # timeout of `java -version` [s]
ANSWER_S = 600  # timeout of an answer; the first one loads tables for half a minute on an idle machine [s]
COUNTS = 23  # numbers per pair: lengths, content and function words matched by each matcher, chunks


@register("metric", "meteor")
class Meteor:
    """Matches of words, stems, synonyms and paraphrases with the reference, with a penalty for word order. 0 to 1.

    METEOR 1.5 for English, by the Java program in the package pycocoevalcap; equal to the COCO captions' scorer. The
    program counts matches; the score is computed from counts summed over the split. It tokenizes texts itself. It takes
    half a minute and 2 GB to start, starts with the first report, and ends with the run.

    Source:
        Denkowski and Lavie 2014, WMT, "Meteor Universal", section 3.

    Raises:
        UserError: Java or the package is missing, or the reports are not in English.
    """

    names = ("meteor",)
    by_words = False
    higher_is_better = True

    def __init__(self, *, language: str) -> None:
        require_english("meteor", language)
        self.jar = package_folder("meteor", "pycocoevalcap", "meteor") / JAR
        self.java = _java()
        if not self.jar.is_file():
            raise UserError(
                "missing-package", f"{self.jar} is missing", place="metric meteor", hint="Install pycocoevalcap again."
            )
        self._program: Program | None = None
        self._known: dict[tuple[str, str], np.ndarray] = {}  # of the last call: the bootstrap scores the same pairs

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `empty-split`, `empty-report`, or `external-program` if the program fails."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        warn_empty_predictions("METEOR", pairs, by_words=False)
        return {name: float(value) for name, value in self.compute(sums_S).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Per report: the program's counts."""
        lines = [replace(p, prediction=_line(p.prediction), reference=_line(p.reference)) for p in pairs]
        require_references("METEOR", lines, by_words=False)
        asked = [(pair.prediction, pair.reference) for pair in lines]
        self._known = {key: self._known[key] for key in set(asked) & self._known.keys()}
        for key in asked:
            if key not in self._known:
                self._program = self._program or Program(self.java, self.jar)
                self._known[key] = self._program.counts(*key)
        return np.stack([self._known[key] for key in asked])

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """METEOR from sums over exams, [..., 23]."""
        words, true_words, function, true_function = np.moveaxis(sums[..., :4], -1, 0)
        matched = np.moveaxis(sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4), -1, 0)
        content, true_content, functional, true_functional = (each @ MATCHES for each in matched)
        precision = safe_divide(
            DELTA * content + (1 - DELTA) * functional, DELTA * (words - function) + (1 - DELTA) * function
        )
        recall = safe_divide(
            DELTA * true_content + (1 - DELTA) * true_functional,
            DELTA * (true_words - true_function) + (1 - DELTA) * true_function,
        )
        mean = safe_divide(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
        breaks = safe_divide(sums[..., 20], (sums[..., 21] + sums[..., 22]) / 2)
        return {"meteor": mean * (1 - GAMMA * breaks**BETA)}


class Program:
    """The Java process, which reads and writes lines. It ends with this object, at the latest with Python.

    Args:
        java: path of the java executable.
        jar: the program; its tables are in the same folder.
    """

    def __init__(self, java: str, jar: Path) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - an unread pipe would fill up
        self._process = subprocess.Popen(
            [java, MEMORY, "-Dfile.encoding=UTF-8", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        weakref.finalize(self, _end, self._process, self._stderr)

    def counts(self, prediction: str, reference: str) -> np.ndarray:
        """The counts of a pair; both texts are one line without `|||`.

        Raises:
            UserError: `external-program` if the program ended, hangs, or answers something else.
        """
        process, answer, hung = self._process, "", threading.Event()
        assert process.stdin and process.stdout

        def end() -> None:
            hung.set()
            process.kill()  # unblocks readline below

        timer = threading.Timer(ANSWER_S, end)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(f"SCORE ||| {reference} ||| {prediction}\n".encode())
            process.stdin.flush()
            answer = process.stdout.readline().decode("utf-8", "replace").strip()
            counts = np.array(answer.split(), dtype=np.float64)
        except (OSError, ValueError):
            counts = np.zeros(0)
        finally:
            timer.cancel()
        if hung.is_set():
            raise _failed(f"the Java program gave no answer in {ANSWER_S} s and was killed")
        if counts.shape != (COUNTS,):
            self._stderr.seek(0)
            last = self._stderr.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            reason = answer or "".join(last) or "it ended without a message"
            raise _failed(f"the Java program failed ({reason})")
        # The program counts no chunk of a perfect report when it aggregates.
        perfect = counts[20] == 1 and counts[21] == counts[0] and counts[22] == counts[1]
        counts[20] = 0 if perfect else counts[20]
        return counts


def _failed(found: str) -> UserError:
    return UserError("external-program", found, place="metric meteor", hint="It needs 2 GB of memory.")


def _end(process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
    process.kill()
    process.communicate()  # waits, and closes the pipes
    stderr.close()


def _java() -> str:
    found = shutil.which("java")
    if found is None:
        raise UserError(
            "missing-package",
            "no java on the PATH",
            place="metric meteor",
            hint="Install a Java runtime such as openjdk-17-jre-headless, or remove meteor from evaluate.metrics.",
        )
    try:
        tried = subprocess.run([found, "-version"], capture_output=True, timeout=START_S, check=False)
    except subprocess.TimeoutExpired:
        raise _does_not_run(found, f"no answer in {START_S} s") from None
    except OSError as error:
        raise _does_not_run(found, str(error.strerror or error)) from None
    if tried.returncode:
        lines = tried.stderr.decode("utf-8", "replace").strip().splitlines()
        raise _does_not_run(found, lines[0] if lines else str(tried.returncode))
    return found


def _does_not_run(java: str, reason: str) -> UserError:
    return UserError("external-program", f"{java} does not run ({reason})", place="metric meteor")


def _line(text: str) -> str:
    """A text on one line without `|||`, the program's separator."""
    return " ".join(text.replace("|||", " ").split())
