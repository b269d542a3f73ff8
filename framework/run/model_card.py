"""The card of an exported model, README.md beside its weights: its data, scores and limits, how to load and cite it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from framework.checkpoint.export import CARD, MANIFEST, WEIGHTS
from framework.data.leakage import PATIENTS_FILE, Patients
from framework.data.loading import ExamSet
from framework.models.external_weights import read_metadata
from framework.recipe import Recipe, load_saved_recipe
from framework.runtime.files import atomic_write, read_bounded, read_object
from framework.runtime.packages import package_versions
from framework.scoring.table import HIGH, LOW, SHORT, VERSUS, Scores, describe_reports, table_columns, verdict

LARGEST = 1_000_000  # bytes of a card that is shown
PLACEHOLDER = "THIS_FOLDER"  # where the lines of use name the model
TEMPLATE = """\
# Ultrasound reports: {encoder} and {decoder}, trained on {dataset}

{use}

{needs}

## Training data

{data}

`recipe.yaml` has every setting of the training.

## Scores

{scores}

## Limits

- It is no medical device. No report may be used for a patient without a physician who reads the images.
- It invents findings and omits findings, in fluent sentences. Words and form are those of its training reports.
- Scores hold for exams like those of the test split. On images of other scanners, hospitals or organs they are lower.
  A report carries a warning if an image is farther from the training images than 99 % of the validation exams; an image
  without the warning can still be of another kind.

## Files

SHA-256 of `{weights}`: `{sha256}`

`manifest.json` has size and SHA-256 of every file that is read; they are checked when the model is loaded.

## Licence and citation

The code of Sonoscribe is under Apache-2.0. The terms of the training data may restrict the use of the weights.

```bibtex
@article{{li2024ultrasound,
  title = {{Ultrasound Report Generation with Cross-Modality Feature Alignment via Unsupervised Guidance}},
  author = {{Li, Jun and Su, Tongkun and Zhao, Baoliang and Lv, Faqin and Wang, Qiong and Navab, Nassir and Hu, Ying and
    Jiang, Zhongliang}},
  journal = {{IEEE Transactions on Medical Imaging}},
  volume = {{44}}, number = {{1}}, pages = {{19--30}}, year = {{2025}},
  doi = {{10.1109/TMI.2024.3424978}}, eprint = {{2406.00644}}, archiveprefix = {{arXiv}}
}}
@software{{sonoscribe,
  title = {{Sonoscribe: training of models that write ultrasound reports}},{version}
  license = {{Apache-2.0}}
}}
```
"""

WRITES = """\
Writes the findings of an ultrasound exam from its images. **Research software, not for diagnosis.**

## Use

```python
import sonoscribe

model = sonoscribe.load("THIS_FOLDER")
print(model.report(["left.png", "right.png"]))  # the views of one exam, in the order of the training data
```

On the command line: `sonoscribe predict THIS_FOLDER left.png right.png`."""
ENCODES = """\
Encodes ultrasound images; the decoder was not trained. **Research software, not for diagnosis.**

## Use

```bash
accelerate launch launch.py RECIPE init_from=THIS_FOLDER  # trains reports from this encoder
```"""


def model_card(
    recipe: Recipe, exams: Mapping[str, int], datasets: Sequence[str], sha256: str, scores: Mapping[str, Scores] = {}
) -> str:
    """The card as Markdown.

    Args:
        exams: number of exams by split.
        datasets: names of the data sets of this and earlier stages of training.
        sha256: of the weights.
        scores: by split; empty before the best model is scored.
    """
    versions = package_versions(["sonoscribe"])
    return TEMPLATE.format(
        encoder=recipe.model.encoder.name,
        decoder=recipe.model.decoder.name,
        dataset=recipe.data.dataset.name,
        use=ENCODES if recipe.has_random_decoder else WRITES,
        needs=_needs(recipe),
        data=_data(recipe, exams, datasets),
        scores=next((_scores(split, scores[split]) for split in ("test", "val") if split in scores), "Not scored yet."),
        weights=WEIGHTS,
        sha256=sha256,
        version="".join(f"\n  version = {{{version}}}," for version in versions.values()),
    )


def write_model_card(run: Path, exams: Mapping[str, ExamSet]) -> None:
    """Writes the card of a run's model again, with the scores of the run."""
    model = run / "model"
    manifest = read_object(model / MANIFEST, "Copy the run's model/ again.")
    datasets = read_metadata(model, PATIENTS_FILE, Patients).get("datasets", ())
    scores = read_object(run / "scores.json", "Delete it; `launch.py evaluate RUN` writes it again.")
    recipe, counts = load_saved_recipe(model / "recipe.yaml"), {split: len(each) for split, each in exams.items()}
    atomic_write(model / CARD, model_card(recipe, counts, datasets, manifest[WEIGHTS][1], scores))


def read_model_card(model: Path) -> str:
    """The text of a model's card; empty if it has none."""
    path = model / CARD
    return read_bounded(path, LARGEST).decode("utf-8", "replace") if path.is_file() else ""


def training_data(card: str) -> str:
    """What a card says of the training data."""
    section = card.partition("\n## Training data\n")[2].partition("\n## ")[0].strip()
    return section.partition("\n\n")[0].replace("`", "") or "unknown data: the model has no card"


def _needs(recipe: Recipe) -> str:
    data = recipe.data
    colour = "grey levels" if data.channels == 1 else "colours"
    lines = [f"Images of any size are scaled to {data.image_size} x {data.image_size} pixels of {colour}."]
    if recipe.plugin_files:
        files = ", ".join(f"`{path.parent.name}/{path.name}`" for path in recipe.plugin_files)
        lines.append(f"The model comes with code: read {files}, then pass `trust=True` to `load`, or `--trust`.")
    external = [part for part in ("encoder", "decoder") if getattr(recipe.model, part).keys.get("weights") is not None]
    if external:
        lines.append(f"Weights of the {' and '.join(external)} that did not train may be elsewhere: see `recipe.yaml`.")
    return " ".join(lines)


def _data(recipe: Recipe, exams: Mapping[str, int], datasets: Sequence[str]) -> str:
    counts = ", ".join(f"{count} exams in `{split}`" for split, count in exams.items())
    text = f"Data set `{recipe.data.dataset.name}`: {counts}. Patients are in one split only, as far as the data tell."
    earlier = [name for name in datasets if name != recipe.data.dataset.name]
    return f"{text} Earlier stages: {', '.join(earlier)}." if earlier else text


def _scores(split: str, scores: Scores) -> str:
    """A table of the scores with their intervals beside the strongest baseline, and what the model writes."""
    rows = []
    for name in table_columns(scores):
        low, high = (scores.get(end, {}).get(name) for end in (LOW, HIGH))
        interval = "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        row = scores.get(VERSUS, {}).get(name, {}).get("baseline")
        baseline = "-" if row is None else f"{scores[row][name]:.3f} ({SHORT[row]})"
        rows.append(f"| `{name}` | {scores['model'][name]:.3f} | {interval} | {baseline} |")
    head = [line.partition(". Difference")[0] + "." for line in verdict(scores)[:1]]
    return "\n".join(
        [
            f"On the {int(scores['model']['exams'])} exams of `{split}`, beside reports made without the model:",
            "",
            "| score | model | 95 % interval | strongest baseline |",
            "|---|---|---|---|",
            *rows,
            "",
            " ".join([*head, *describe_reports(scores)]),
        ]
    )
