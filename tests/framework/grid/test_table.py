"""The table of a grid, in every form: its numbers, what is missing in it, and that no label breaks it."""

from __future__ import annotations

import csv
import html
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hand_made import BLEU, LOSS, cell, result, row, two_axes

from framework.grid.results import Comparison, GridResult, Spread
from framework.grid.table import as_csv, as_latex, as_markdown, cells_csv, header_and_rows, latex
from framework.grid.wording import best_rows, memory_text, notes_below, parameters_text, seeds_text

EVIL = "<script>alert(1)</script> & _a_ 100% $x$ \\end{table} ~ ^ #{} | [1] 乳腺 é --x"


def evil_grid(home: Path) -> GridResult:
    settings = {"a_b": EVIL}
    cells = [
        cell(home / "one", 1, settings, 0.2),
        cell(home / "two", 2, settings, status="failed", error=f"{EVIL}\n{EVIL}"),
    ]
    plain = row("plain", {"a_b": "plain"}, [cell(home / "three", 1, {"a_b": "plain"}, 0.1)])
    versus = {BLEU: Comparison(0.1, 0.05, 0.15, 0.001, 0.001), LOSS: None}
    return result([plain, row(f"a_b={EVIL}", settings, cells, versus)], {"a_b": ["plain", EVIL]})


def parsed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_shows_settings_seeds_scores_differences_and_costs(tmp_path: Path) -> None:
    header, rows = header_and_rows(two_axes(tmp_path))
    assert header == [
        "distiller", "losses.global_semantic.weight", "seeds",
        f"{BLEU} ↑", f"Δ {BLEU}", f"{LOSS} ↓", f"Δ {LOSS}", "time", "memory [GiB]", "parameters [M]",
    ]  # fmt: skip
    assert rows[2] == [
        "lda", "0", "3/3", "0.310 ± 0.004", "+0.030 [+0.018, +0.042] p=0.600",
        "6.900 ± 0.040", "-0.300 [-0.400, -0.200] p=0.200", "10.0 min", "1.25", "2.50",
    ]  # fmt: skip
    assert {len(line) for line in rows} == {len(header)}


def test_the_baseline_is_marked_and_compared_with_nothing(tmp_path: Path) -> None:
    _, rows = header_and_rows(two_axes(tmp_path))
    assert rows[0][0] == "none (baseline)" and rows[0][4] == ""
    assert not any("(baseline)" in line[0] for line in rows[1:])


def test_significance_uses_the_corrected_p(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    close = Comparison(0.02, 0.001, 0.04, p=0.02, p_corrected=0.06)
    grid = replace(grid, rows=(*grid.rows[:1], replace(grid.rows[1], versus={BLEU: close}), *grid.rows[2:]))
    _, rows = header_and_rows(grid)
    assert rows[1][4].endswith("p=0.060") and rows[3][4].endswith("p=0.012 *")
    assert any("* p < 0.05" in note for note in notes_below(grid))


def test_missing_seeds_are_shown_in_the_row_and_in_a_footnote(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    _, rows = header_and_rows(grid)
    assert rows[3][2] == "1/3, 1 failed, 1 queued [1]" and rows[2][2] == "3/3"
    assert notes_below(grid)[-1] == "[1] distiller=lda, weight=0.3: seed 2 failed: CUDA out of memory; seed 3 queued"


def test_a_row_without_a_done_seed_shows_dashes_and_the_reason(tmp_path: Path) -> None:
    lost = row("lost", {"a": "x"}, [cell(tmp_path / "x", 7, {"a": "x"}, status="failed", error="disk full")])
    kept = row("kept", {"a": "y"}, [cell(tmp_path / "y", 7, {"a": "y"}, 0.3)])
    grid = result([kept, lost], {"a": ["y", "x"]}, notices=("one row is missing",))
    _, rows = header_and_rows(grid)
    assert rows[1] == ["x", "0/1, 1 failed [1]", "-", "-", "-", "-", "-", "-", "-"]
    assert notes_below(grid)[-2:] == ["one row is missing", "[1] lost: seed 7 failed: disk full"]
    assert parsed(as_csv(grid))[1]["missing"] == "seed 7 failed: disk full"
    assert "seed 7 failed: disk full" in as_markdown(grid) and "seed 7 failed: disk full" in as_latex(grid)


def test_a_done_cell_that_lacks_a_metric_has_a_notice(tmp_path: Path) -> None:
    half = cell(tmp_path / "x", 4, {}, 0.3)
    half = replace(half, scores={BLEU: 0.3})
    grid = result([row("r", {}, [half])], {})
    assert f"seed 4 is done, but has no {LOSS}" in notes_below(grid)[-1]


def test_a_row_without_cells_has_a_notice(tmp_path: Path) -> None:
    grid = result([row("none yet", {"a": "x"}, [])], {"a": ["x"]})
    assert header_and_rows(grid)[1][0][1] == "0/0 [1]" and notes_below(grid)[-1] == "[1] none yet: it has no cell"


def test_a_grid_without_axes_shows_its_labels(tmp_path: Path) -> None:
    grid = result([row("as it is", {}, [cell(tmp_path / "x", 1, {}, 0.3)])], {}, baseline=None)
    header, rows = header_and_rows(grid)
    assert header[:3] == ["setting", "seeds", f"{BLEU} ↑"] and rows[0][:3] == ["as it is", "1/1", "0.300"]
    assert not any(name.startswith("Δ") for name in header)
    assert "A mean without ± is of one seed." in notes_below(grid)
    assert not any("Δ" in note for note in notes_below(grid))


def test_csv_has_numbers_at_full_precision(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    third = 1 / 3
    odd = replace(grid.rows[2], values={BLEU: Spread(third, 1e-17, 3), LOSS: None}, seconds=Spread(5400.25, None, 1))
    lines = parsed(as_csv(replace(grid, rows=(*grid.rows[:2], odd, grid.rows[3]))))
    assert len(lines) == 4
    line = lines[2]
    assert float(line[f"{BLEU} mean"]) == third and float(line[f"{BLEU} deviation"]) == 1e-17
    assert (line[f"{BLEU} seeds"], line[f"{LOSS} mean"], line[f"{LOSS} seeds"]) == ("3", "", "0")
    versus = odd.versus[BLEU]
    assert versus is not None
    numbers = [float(line[f"{BLEU} {word}"]) for word in ("difference", "low", "high", "p", "p_holm")]
    assert numbers == [versus.difference, versus.low, versus.high, versus.p, versus.p_corrected]
    costs = [line[name] for name in ("seconds", "seconds deviation", "memory_gib", "parameters")]
    assert costs == ["5400.25", "", "1.25", "2500000"]
    assert [line["baseline"] for line in lines] == ["yes", "no", "no", "no"]
    assert (lines[3]["seeds_done"], lines[3]["seeds"]) == ("1", "3")
    assert lines[0][f"{BLEU} difference"] == ""


def test_cells_csv_has_one_line_per_seed(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    lines = parsed(cells_csv(grid))
    assert len(lines) == 12
    first, failed = lines[0], lines[10]
    assert (first["distiller"], first["seed"], first["status"]) == ("none", "1", "done")
    assert float(first[BLEU]) == grid.rows[0].cells[0].scores[BLEU]
    assert (failed["status"], failed["error"], failed[BLEU]) == ("failed", "CUDA out of memory", "")
    assert failed["run"] == str(tmp_path / "lda0.3-2") and failed["digest"] == grid.rows[3].cells[1].digest


def test_labels_survive_csv(tmp_path: Path) -> None:
    grid = evil_grid(tmp_path)
    assert parsed(as_csv(grid))[1]["a_b"] == EVIL
    assert parsed(cells_csv(grid))[2]["error"] == f"{EVIL}\n{EVIL}"


def test_the_best_row_is_bold_for_either_direction(tmp_path: Path) -> None:
    grid = two_axes(tmp_path)
    assert grid.rows[3].values[LOSS].mean < grid.rows[0].values[LOSS].mean  # type: ignore[union-attr]
    assert best_rows(grid, BLEU) == {3} and best_rows(grid, LOSS) == {3}
    bold = re.findall(r"\\mathbf\{(.*?)\}", as_latex(grid))
    assert bold == ["0.326", "6.740"] and re.findall(r"\*\*(.*?)\*\*", as_markdown(grid)) == bold
    worse = replace(grid, higher_is_better={BLEU: False, LOSS: True})
    assert re.findall(r"\\mathbf\{(.*?)\}", as_latex(worse)) == ["0.280", "7.200"]


def test_equal_rounded_scores_are_all_bold_and_nan_is_not(tmp_path: Path) -> None:
    values = {"a": 0.30001, "b": 0.30002, "c": float("nan"), "d": 0.2}
    rows = [row(name, {"x": name}, [cell(tmp_path / name, 1, {"x": name}, value)]) for name, value in values.items()]
    grid = result(rows, {"x": list(values)})
    assert best_rows(grid, BLEU) == {0, 1}
    assert as_latex(grid).count(r"\mathbf{0.300}") == 2


def test_small_scores_have_three_significant_digits(tmp_path: Path) -> None:
    grid = result([row("r", {}, [cell(tmp_path / "x", 1, {}, 0.001234)])], {}, metrics=(BLEU,))
    assert header_and_rows(grid)[1][0][2] == "0.00123"


def test_latex_escapes_what_labels_hold() -> None:
    assert latex(r"50% & $a_b$ #1 {x}") == r"50\% \& \$a\_b\$ \#1 \{x\}"
    assert (
        latex("\\input~^<|>")
        == r"\textbackslash{}input\textasciitilde{}\textasciicircum{}\textless{}\textbar{}\textgreater{}"
    )
    assert latex("[1]* --lr λ ± 乳腺") == r"{[}1{]}{*} -{}-lr $\lambda$ $\pm$ 乳腺"
    assert latex("two\nlines\x00") == "two lines"


def test_latex_has_the_structure_of_a_table(tmp_path: Path) -> None:
    for grid in (two_axes(tmp_path), evil_grid(tmp_path)):
        text = as_latex(grid)
        assert re.findall(r"\\(?:begin|end)\{.*?\}", text) == [
            r"\begin{table}", r"\begin{tabular}", r"\end{tabular}",
            r"\begin{minipage}", r"\end{minipage}", r"\end{table}",
        ]  # fmt: skip
        columns = len(re.search(r"\{@\{\}([lr]+)@\{\}\}", text)[1])  # type: ignore[index]
        body = text[text.index(r"\toprule") : text.index(r"\bottomrule")].splitlines()
        lines = [line for line in body if not line.startswith((r"\toprule", r"\midrule", r"\addlinespace"))]
        assert len(lines) == 2 + 2 * len(grid.rows) - 1  # the baseline has no second line
        for line in lines:
            assert line.endswith(r" \\") and len(re.findall(r"(?<!\\)&", line)) == columns - 1, line
        plain = re.sub(r"\\[\\{}$&#_%]", "", text)
        assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0


def test_latex_has_deviation_interval_mark_and_its_meaning(tmp_path: Path) -> None:
    text = as_latex(two_axes(tmp_path))
    assert r"$0.310 \pm 0.004$" in text and r"none (baseline) & 0 & 3/3" in text
    assert r"\scriptsize $+0.050^{*}$ $[+0.038, +0.062]$" in text
    assert r"\scriptsize $+0.030$ $[+0.018, +0.042]$" in text
    assert r"{*} p \textless{} 0.05" in text and "Holm" in text
    assert "1/3, 1 failed, 1 queued\\textsuperscript{1}" in text
    assert r"\textsuperscript{1} distiller=lda, weight=0.3: seed 2 failed: CUDA out of memory; seed 3 queued" in text


def test_latex_with_chinese_characters_names_the_font_that_it_needs(tmp_path: Path) -> None:
    assert as_latex(evil_grid(tmp_path)).startswith("% pdflatex has no font for")
    assert as_latex(two_axes(tmp_path)).startswith(r"\begin{table}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_latex_compiles_with_booktabs_alone(tmp_path: Path) -> None:
    head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    tables = as_latex(two_axes(tmp_path)) + as_latex(evil_grid(tmp_path)).replace("乳腺", "")
    (tmp_path / "paper.tex").write_text(f"{head}{tables}\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_markdown_escapes_labels(tmp_path: Path) -> None:
    text = as_markdown(evil_grid(tmp_path))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4 and {line.count("|") for line in table} == {10}
    assert "<" not in text and "&lt;" not in re.sub(r"p&lt;0\.001", "", text)
    assert r"&#60;script&#62;alert(1)&#60;/script&#62; &#38; \_a\_ 100% &#36;x&#36;" in text


def test_markdown_parses_back_to_the_same_cells(tmp_path: Path) -> None:
    markdown = pytest.importorskip("markdown")
    text = markdown.markdown(as_markdown(evil_grid(tmp_path)), extensions=["tables"])
    cells = re.findall(r"<td.*?>(.*?)</td>", text)
    assert html.unescape(cells[9]) == EVIL
    assert len(cells) == 18 and "<script" not in text


def test_costs_have_units() -> None:
    assert [parameters_text(count) for count in (123_456_789, 2_500_000, 12_345)] == ["123.46", "2.50", "0.0123"]
    assert memory_text(0.734) == "0.73" and {memory_text(None), parameters_text(None)} == {"-"}


def test_seeds_are_counted_by_status(tmp_path: Path) -> None:
    cells = [cell(tmp_path / str(i), i, {}, status=status) for i, status in enumerate(["failed", "running", "failed"])]
    assert seeds_text(row("r", {}, [*cells, cell(tmp_path / "d", 9, {}, 0.1)])) == "1/4, 2 failed, 1 running"


def test_the_same_result_gives_the_same_text(tmp_path: Path) -> None:
    for form in (as_csv, cells_csv, as_markdown, as_latex):
        assert form(two_axes(tmp_path)) == form(two_axes(tmp_path))
