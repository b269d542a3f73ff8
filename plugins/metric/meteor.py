"""METEOR: agreement of words, of their stems, synonyms and paraphrases, in order; by its authors' own program."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from framework.exam import Pair
from framework.registry import register
from framework.scoring.counts import share
from framework.scoring.dependencies import package_folder, require_english

JAR = "meteor/meteor-1.5.jar"
MEMORY = "-Xmx2G"  # what its table of paraphrases takes
# The program's settings for English: Denkowski and Lavie 2014, table 1, and its documentation.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MATCHES = np.array((1.0, 0.6, 0.8, 0.6))  # worth of an exact match, a stem, a synonym, a paraphrase
START_S = 60  # s that `java -version` may take
ANSWER_S = 600  # s that an answer may take; the first waits for the tables, half a minute on an idle machine
COUNTS = 23  # what the program tells of a pair: lengths, content and function words matched in each way, chunks


@register("metric", "meteor")
class Meteor:
    """Agreement of words, stems, synonyms and paraphrases with the reference; less where their order differs. 0 to 1.

    METEOR 1.5 for English, by the Java program in the package pycocoevalcap: equal to what the COCO captions' scorer
    prints. The program counts what matches; the score is of counts summed over the split. It looks at the texts, with
    words cut its own way. Starting it takes half a minute and 2 GB, so it starts with the first report and ends with
    the run.

    Source:
        Denkowski and Lavie 2014, WMT, "Meteor Universal", section 3.

    Raises:
        ValueError: Java or the package is missing, or the reports are not in English.
    """

    names = ("meteor",)
    by_words = False
    higher_is_better = True

    def __init__(self, *, language: str) -> None:
        require_english("meteor", language)
        self.jar = package_folder("meteor", "pycocoevalcap", "meteor") / JAR
        self.java = _java()
        if not self.jar.is_file():
            raise ValueError(f"metric meteor: {self.jar} is missing; install pycocoevalcap anew")
        self._program: Program | None = None
        self._known: dict[tuple[str, str], np.ndarray] = {}  # of the last call: intervals ask for the same pairs

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Raises `ValueError` for no pairs, an empty reference, or a program that fails."""
        sums_S = self.per_exam_stats(pairs).sum(0)
        if empty := sum(not pair.prediction.strip() for pair in pairs):
            warnings.warn(
                f"METEOR: {empty} of {len(pairs)} predictions are empty; they count, and lower the score", stacklevel=2
            )
        return {name: float(value) for name, value in self.compute(sums_S).items()}

    def per_exam_stats(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Of each report: the program's counts."""
        if not pairs:
            raise ValueError("METEOR of no reports: the split is empty")
        asked = []
        for pair in pairs:
            if not _line(pair.reference):
                raise ValueError(f"METEOR: the reference of exam {pair.exam_id} is empty")
            asked.append((_line(pair.prediction), _line(pair.reference)))
        self._known = {key: self._known[key] for key in set(asked) & self._known.keys()}
        for key in asked:
            if key not in self._known:
                self._program = self._program or Program(self.java, self.jar)
                self._known[key] = self._program.counts(*key)
        return np.stack([self._known[key] for key in asked])

    def compute(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The value of sums over exams, [..., 23]."""
        words, true_words, function, true_function = np.moveaxis(sums[..., :4], -1, 0)
        matched = np.moveaxis(sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4), -1, 0)
        content, true_content, functional, true_functional = (each @ MATCHES for each in matched)
        precision = share(
            DELTA * content + (1 - DELTA) * functional, DELTA * (words - function) + (1 - DELTA) * function
        )
        recall = share(
            DELTA * true_content + (1 - DELTA) * true_functional,
            DELTA * (true_words - true_function) + (1 - DELTA) * true_function,
        )
        mean = share(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
        breaks = share(sums[..., 20], (sums[..., 21] + sums[..., 22]) / 2)
        return {"meteor": mean * (1 - GAMMA * breaks**BETA)}


class Program:
    """The Java program, spoken to by lines: it ends when this object does, and no later than Python.

    Args:
        java: the command.
        jar: the program's file; its tables lie beside it.
    """

    def __init__(self, java: str, jar: Path) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads would fill up
        self._process = subprocess.Popen(
            [java, MEMORY, "-Dfile.encoding=UTF-8", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        weakref.finalize(self, _end, self._process, self._said)

    def counts(self, prediction: str, reference: str) -> np.ndarray:
        """Of a pair, each one line without `|||`.

        Raises:
            ValueError: the program ended, hangs, or answers something else.
        """
        process, answer, hung = self._process, "", threading.Event()
        assert process.stdin and process.stdout

        def end() -> None:
            hung.set()
            process.kill()  # so that what is waited for below ends

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
            raise ValueError(f"metric meteor: its Java program gave no answer in {ANSWER_S} s, and was ended")
        if counts.shape != (COUNTS,):
            self._said.seek(0)
            last = self._said.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            heard = answer or "".join(last) or "it ended without a word"
            raise ValueError(f"metric meteor: its Java program failed ({heard}). It needs 2 GB of memory")
        # The program takes a perfect report for one without breaks when it sums.
        perfect = counts[20] == 1 and counts[21] == counts[0] and counts[22] == counts[1]
        counts[20] = 0 if perfect else counts[20]
        return counts


def _end(process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    process.kill()
    process.communicate()  # waits, and closes its pipes
    said.close()


def _java() -> str:
    found = shutil.which("java")
    if found is None:
        raise ValueError(
            "metric meteor: no java on this machine's PATH. Install a Java runtime (such as openjdk-17-jre-headless), "
            "or take meteor out of evaluate.metrics"
        )
    try:
        tried = subprocess.run([found, "-version"], capture_output=True, timeout=START_S, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"metric meteor: {found} does not run (no answer in {START_S} s)") from None
    except OSError as error:
        raise ValueError(f"metric meteor: {found} does not run ({error.strerror or error})") from None
    if tried.returncode:
        told = tried.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ValueError(f"metric meteor: {found} does not run ({told[0] if told else tried.returncode})")
    return found


def _line(text: str) -> str:
    """A text on one line, without the sign between texts: either would end what the program reads."""
    return " ".join(text.replace("|||", " ").split())
