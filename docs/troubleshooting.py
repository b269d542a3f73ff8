"""The text of docs/troubleshooting.md: a table of the codes in framework/runtime/codes.py, and what stands around it.

docs/make_reference.py writes the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from framework.runtime import codes
from framework.runtime.codes import CODES

INTRODUCTION = """
# Troubleshooting

## How to read a message

```text
recipes/mine.yaml:6:29: model.encoder.wdth: unknown key. Did you mean 'width'? [unknown-key]
```

| part | in the example |
|---|---|
| place: file with line and column, override as typed, key, exam, or folder | `recipes/mine.yaml:6:29` |
| what was found, and `expected ...` if something else belongs there | `model.encoder.wdth: unknown key` |
| hint: the nearest match, or what to do | `Did you mean 'width'?` |
| code: the row of the tables below | `[unknown-key]` |

All mistakes of a recipe, and all problems of a data set, are reported at once, one per line. Two commands find them
without training: `python launch.py validate RECIPE` (the recipe) and `python launch.py data check RECIPE` (its exams).
`SONOSCRIBE_TRACEBACK=1` before a command also prints where in the code the error was raised.

| other lines | meaning |
|---|---|
| `notice: ...` | Not a mistake: the run continues, but does something that you may not expect. |
| `warning: ...` | The run continues, but a number may not mean what you think. A metric warns once per run. |
| `rank N: ...` | The process that raised the error. An error of all processes is printed by the first one only. |

## Exit codes

| exit code | meaning |
|---|---|
| 0 | Done. |
| 1 | A bug in Sonoscribe, a plugin or a library: please report the traceback. Of `grid run`: some cells are not done. |
| 2 | A mistake in a recipe, a plugin, the data or the command line; the message names it. |
| 75 | Stopped on request, with everything saved: resume with `resume=RUN` ([stopping](distributed.md#stopping)). |
| 76 | Another process died, hangs or cannot be reached: resume from the last checkpoint. |
| 130 | Ctrl-C before training, or in a command that has nothing to save. |

These are the exit codes of `launch.py`. `accelerate launch` and `torchrun` turn every failure into exit code 1 and
print a report of their own after our message: scroll up to the first message.
""".strip()

# Of messages that come from somewhere else: what they say, and what to do.
OTHERS = (
    (
        "no message, and one process runs instead of several",
        "A configuration file of accelerate with `MULTI_CPU` starts **one** process; use `MULTI_GPU` "
        "([cpu.yaml](launch/cpu.yaml)). The line `run ... processes N` shows how many run.",
    ),
    (
        "`The following values were not passed to accelerate launch and had defaults used instead`",
        "Harmless. Run `accelerate config` once, or pass them.",
    ),
    (
        "`You can only use one of --cpu, --multi_gpu, --tpu, --use_deepspeed, --use_fsdp at a time.`",
        "Set `ACCELERATE_USE_CPU=true` instead of `--cpu`.",
    ),
    ("`DeepSpeed is not installed`", "`pip install 'sonoscribe[deepspeed]'`, or remove `--use_deepspeed`."),
    (
        "`subprocess.CalledProcessError: Command ... returned non-zero exit status 2.`",
        "From `accelerate launch` with one process: our message stands above the traceback.",
    ),
    (
        "`ChildFailedError`, `launch.py FAILED`, `Root Cause (first observed failure)`, `exitcode : 2`",
        "From `accelerate launch` with several processes: our message stands above. The first one counts.",
    ),
    ("`Signal 15 (SIGTERM) received by PID`", "Another process failed first, and the launcher ended this one."),
    (
        "`Setting OMP_NUM_THREADS environment variable for each process to be 1`",
        "Harmless. Set the variable if there are more cores than processes.",
    ),
    (
        "`Watchdog caught collective operation timeout`, or a run that hangs",
        "One process waits for another that has ended or is busy. Look for the first message of any process.",
    ),
    (
        "`EADDRINUSE`, `Address already in use`",
        "Another run on this machine uses the port: `--main_process_port 0` takes a free one.",
    ),
    (
        "`torch.OutOfMemoryError: CUDA out of memory`",
        "Lower `train.micro_batch_size` (without batch normalization the losses stay the same), `data.image_size`, or "
        "`evaluate.batch_size` if it happens during validation.",
    ),
    (
        "`Killed`, `exitcode : -9`",
        "The system ran out of memory and ended the process. Lower `data.num_workers` or `train.micro_batch_size`.",
    ),
    (
        "`some batches do not fit into the shared memory of /dev/shm`",
        "The results are the same, loading is slower. Raise the container's `--shm-size`, or lower `data.num_workers`.",
    ),
    (
        "`No space left on device`",
        "A run keeps `checkpoint.keep_last` + `checkpoint.keep_best` checkpoints; caches are in `data.cache_dir`.",
    ),
    (
        "`SafetensorError: Error while deserializing header`",
        "`model.safetensors` or a file of weights is truncated. Copy it again.",
    ),
    (
        "`ModuleNotFoundError: No module named ...`",
        "The wrong environment: use `.venv/bin/python` and `.venv/bin/accelerate`, or activate `.venv`.",
    ),
    ("`expected ',' or '}', but got ...`", "YAML: a bracket is not closed, or a comma is missing."),
    ("`expected <block end>, but found ...`", "YAML: the indentation differs from that of the lines around it."),
    (
        "`mapping values are not allowed here`",
        "YAML: two colons in a line, or the line before lacks its own. Quote texts that contain `: `.",
    ),
    (
        "`found character ... that cannot start any token`",
        "YAML: quote a value that starts with `%`, `@` or a backtick.",
    ),
    ("`found unexpected end of stream`", "YAML: a quote is not closed."),
    (
        "`found unknown escape character`",
        "YAML: in double quotes `\\` starts an escape sequence; use single quotes.",
    ),
    ("`but found another document`", "YAML: remove the line `---`."),
    (
        "`Error: No such option`, `Missing argument`, `No such command`",
        "The command line: `python launch.py VERB --help` shows what a verb takes.",
    ),
)


def sections() -> dict[str, list[str]]:
    """The codes under each heading, which are the comments in framework/runtime/codes.py."""
    found: dict[str, list[str]] = {}
    for heading, code in re.findall(r'(?m)^    (?:# (.+)|"([a-z-]+)": )', Path(codes.__file__).read_text("utf-8")):
        if heading:
            codes_of_section = found.setdefault(heading, [])
        else:
            codes_of_section.append(code)
    read = [code for codes_of_section in found.values() for code in codes_of_section]
    assert read == list(CODES), "framework/runtime/codes.py: a heading per section, and each code on a line of its own"
    return found


def rows(cells: Iterator[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def page() -> str:
    parts = [INTRODUCTION]
    for heading, names in sections().items():
        table = rows((f"`{name}`", *CODES[name]) for name in sorted(names))
        parts += [f"## {heading}", f"| code | meaning | what to do |\n|---|---|---|\n{table}"]
    parts += ["## Messages of other libraries", f"| message | what to do |\n|---|---|\n{rows(iter(OTHERS))}"]
    return "\n\n".join(parts) + "\n"
