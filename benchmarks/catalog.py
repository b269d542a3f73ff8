"""Finds the benchmarks without importing them, since they import what they compare with."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"


@dataclass(frozen=True)
class Benchmark:
    """A module of this folder with a `main` that measures by `benchmarks.rounds`."""

    name: str
    about: str  # its docstring
    devices: tuple[str, ...]

    def result(self, device: str, folder: Path = RESULTS) -> Path:
        """The file of its figures on a device."""
        return folder / (f"{self.name}.json" if device == "cpu" else f"{self.name}-{device}.json")


def benchmarks() -> dict[str, Benchmark]:
    """All benchmarks by name."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        imports = {node.module for node in module.body if isinstance(node, ast.ImportFrom)}
        functions = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
        if "main" in functions and "benchmarks.rounds" in imports:
            found[path.stem] = Benchmark(path.stem, ast.get_docstring(module) or "", _devices(module))
    return found


def _devices(module: ast.Module) -> tuple[str, ...]:
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DEVICES":
            return tuple(ast.literal_eval(node.value))
    return ("cpu",)
