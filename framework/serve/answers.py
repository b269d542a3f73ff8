"""The JSON of answers, from which FastAPI writes the OpenAPI schema."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from framework.evaluation.predict import GeneratedReport
from framework.evaluation.predict_exams import finding_rows
from framework.pages.exam_card import word_rows
from framework.runtime.errors import Problem


class WordAnswer(BaseModel):
    text: str
    start: int = Field(description="Place of the word in the report's text.")
    confidence: float = Field(description="Probability of the word after those before it, 0 to 1.")
    heat: str = Field(description="Where the decoder looked: 8-bit maps of `grid` in base64; empty without attention.")


class AlternativeAnswer(BaseModel):
    text: str
    logprob: float


class FindingAnswer(BaseModel):
    finding: str = Field(description="Attribute and value.")
    confidence: float | None = Field(description="0 to 1; null where no words state it.")
    words: str | None


class NearExamAnswer(BaseModel):
    id: str
    report: str
    distance: float


class ReportAnswer(BaseModel):
    """The report of an exam. Research software, not for diagnosis."""

    model: str
    text: str
    warnings: list[str] = Field(description="Reasons not to take the report as it is.")
    words: list[WordAnswer]
    grid: list[int] | None = Field(description="[views, rows, columns] of each word's maps.")
    findings: list[FindingAnswer] = Field(description="What the lexicon reads in the report.")
    calibrated: bool = Field(description="Whether confidences were calibrated on validation.")
    topic: str | None = Field(description="Told from the images by the topic head; null without one.")
    logprob: float = Field(description="Logarithm of the report's probability.")
    alternatives: list[AlternativeAnswer] = Field(description="Other reports of the beam, in the order of the search.")
    distances: list[float] = Field(description="Of each view to the training images; above 1 a view is unlike them.")
    nearest: list[NearExamAnswer] = Field(description="Training exams with the most similar features.")


class ProblemAnswer(BaseModel):
    code: str = Field(description="As in docs/troubleshooting.md.")
    place: str
    found: str
    expected: str
    hint: str


class ErrorAnswer(BaseModel):
    errors: list[ProblemAnswer]


class ExamAnswer(BaseModel):
    """An exam of a batch: its report, or why there is none."""

    id: str
    report: ReportAnswer | None
    errors: list[ProblemAnswer] = []


class ModelAnswer(BaseModel):
    name: str
    training_data: str = Field(description="What the model was trained on, from its card.")
    image_size: int
    channels: int
    max_views: int | None = Field(description="Of an exam; null without a limit of the model.")
    num_beams: int
    compares_images: bool = Field(description="Whether images that are unlike the training images get a warning.")
    finds_nearest: bool = Field(description="Whether reports name the nearest training exams.")


class HealthAnswer(BaseModel):
    status: str
    requests: int = Field(description="Requests that are read, wait or are answered now.")
    limit: int = Field(description="Requests beyond this number get 429 with Retry-After.")
    waiting: int = Field(description="Exams that wait for the model.")


def report_answer(model: str, report: GeneratedReport) -> ReportAnswer:
    fields: dict[str, Any] = {
        "model": model,
        "text": report.text,
        "warnings": list(report.warnings),
        **word_rows(report.words),
        "findings": finding_rows(report.findings),
        "calibrated": report.calibrated,
        "topic": report.predicted_topic,
        "logprob": report.logprob,
        "alternatives": [each._asdict() for each in report.alternatives],
        "distances": [round(distance, 4) for distance in report.distances],
        "nearest": [exam._asdict() for exam in report.nearest],
    }
    return ReportAnswer.model_validate(fields)


def problem_answers(problems: tuple[Problem, ...]) -> list[ProblemAnswer]:
    return [ProblemAnswer.model_validate(asdict(problem)) for problem in problems]
