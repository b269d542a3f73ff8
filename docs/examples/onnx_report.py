"""Writes the report of one exam with onnxruntime and numpy alone: python onnx_report.py PROGRAMS VIEWS.npy

PROGRAMS is the folder of `export --to onnx`; VIEWS.npy has the views, uint8 [views, channels, height, width], prepared
as `images` in programs.json says.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

Arrays = dict[str, np.ndarray]
folder, views = Path(sys.argv[1]), np.load(sys.argv[2])
about = json.loads((folder / "programs.json").read_text(encoding="utf-8"))
vocabulary = json.loads((folder / about["vocabulary"]).read_text(encoding="utf-8"))


def program(name: str) -> Callable[[Arrays], Arrays]:
    """A program that takes its inputs from `values`, and gives its outputs the names that the next program asks for."""
    own = about["programs"][name]
    session = onnxruntime.InferenceSession(folder / own["file"])
    inputs = [each["name"] for each in own["inputs"]]
    outputs = [each["replaces"] or each["name"] for each in own["outputs"]]
    return lambda values: dict(zip(outputs, session.run(None, {each: values[each] for each in inputs})))


encode, prefill, step = program("encoder"), program("prefill"), program("step")
values = prefill(encode({"images": views[None], "view_mask": np.ones((1, len(views)), dtype=bool)}))
words: list[str] = []
while len(words) < about["max_length"]:
    logits = values["logits"][0]
    logits[about["tokens"]["never_generated"]] = -np.inf
    token = int(logits.argmax())
    if token == about["tokens"]["eos"]:
        break
    words.append(vocabulary[token])
    values |= step({**values, "tokens": np.array([token])})
print(" ".join(words))
