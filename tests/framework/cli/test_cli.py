"""The command line: verbs, exit codes and errors."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT, TOYS, problem
from PIL import Image
from small_disk import fill, small_disk

from framework import cli
from framework.cli.options import is_override
from framework.recipe import load_recipe
from framework.recipe.describe import snippet, stands_in
from framework.registry import catalogue
from framework.registry.signature import class_texts
from framework.runtime import errors, files


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)

    def call(*words):
        with pytest.raises(SystemExit) as done:
            cli.main(words)
        out, err = capsys.readouterr()
        return done.value.code, out, err

    return call


def test_quick_verbs_import_nothing_slow():
    code = """
import sys
from framework.cli import main
for words in ("ls", "describe encoder/resnet", "validate breast train.epochs=1", "explain smoke train", "runs recipes"):
    try:
        main(words.split())
    except SystemExit as ended:
        assert not ended.code, words
    slow = {"torch", "transformers", "accelerate", "sklearn", "numpy", "faiss", "matplotlib"} & set(sys.modules)
    assert not slow, (words, slow)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version_lists_sonoscribe_and_its_libraries(run):
    code, out, _ = run("--version")
    assert code == 0 and {"sonoscribe", "torch", "accelerate"} <= {line.split()[0] for line in out.splitlines()}


def test_predict_lists_the_findings_that_the_model_is_unsure_of(run, smoke_run, tmp_path):
    image = tmp_path / "view.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)).save(image)
    code, out, _ = run("predict", str(smoke_run), str(image), "--unsure", "1", "--json")
    found = json.loads(out)
    assert code == 0 and found["calibrated"] is True and 0 < found["confidence"] < 1
    assert found["unsure"] == [each for each in found["findings"] if each["confidence"] < 1]
    code, out, _ = run("predict", str(smoke_run), str(image), "--unsure", "1")
    assert code == 0 and out.splitlines()[0] == found["report"]
    assert len([line for line in out.splitlines() if line.startswith("unsure: ")]) == len(found["unsure"])


@pytest.mark.parametrize(
    ("program", "variables", "door"),
    [
        ("launch.py", {}, "python launch.py"),
        ("there/launch.py", {"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch launch.py"),
        ("launch.py", {"TORCHELASTIC_RUN_ID": "none"}, "torchrun launch.py"),
        ("bin/sonoscribe", {}, "sonoscribe"),
        ("framework/cli/__main__.py", {"ACCELERATE_MIXED_PRECISION": "no"}, "python -m framework.cli"),
    ],
)
def test_help_begins_with_what_the_user_typed(run, monkeypatch, program, variables, door):
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [program])
    assert run("--help")[1].startswith(f"Usage: {door} [OPTIONS] RECIPE")
    assert run("predict", "--help")[1].startswith(f"Usage: {door} predict ")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_error_under_accelerates_launcher_says_whose_traceback_follows(monkeypatch, capsys, rank):
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "WORLD_SIZE": "2", "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    for program, says in (("launch.py", rank == "0"), ("framework/cli/__main__.py", False)):
        monkeypatch.setattr(sys, "argv", [program])
        with pytest.raises(SystemExit):
            cli.main(["validate", "no_such_recipe.yaml"])
        assert ("launch.py launch" in capsys.readouterr().err) == says


@pytest.mark.parametrize(
    ("words", "with_verb"),
    [
        (["breast", "a=1"], ["train", "breast", "a=1"]),
        (["train", "breast"], ["train", "breast"]),
        (["ls"], ["ls"]),
        (["data", "check", "x"], ["data", "check", "x"]),
        (["--help"], ["--help"]),
        ([], []),
    ],
)
def test_a_recipe_alone_means_train(words, with_verb):
    assert cli.with_verb(words) == with_verb


def test_ls_names_plugins_and_recipes_in_plain_columns(run):
    code, out, _ = run("ls")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["encoder", "tiny_cnn"] in [row[:2] for row in rows]
    assert ["recipe", "breast"] in [row[:2] for row in rows]
    assert ["grid", "smoke"] in [row[:2] for row in rows]
    assert not set(out) & set("│┃─━"), "lines are for terminals"


def test_ls_of_a_kind_shows_that_kind_and_plugins_of_a_file(run):
    _, out, _ = run("ls", "encoders", "--plugins", str(TOYS))
    assert {line.split()[0] for line in out.splitlines()[1:]} == {"encoder"}
    assert "toy_eyes" in out


@pytest.mark.parametrize("word", ["recipe", "recipes", "grid", "grids"])
def test_ls_of_recipes_or_grids_shows_those_alone(run, word):
    _, out, _ = run("ls", word)
    assert {line.split()[0] for line in out.splitlines()[1:]} == {word.removesuffix("s")}


def test_ls_refuses_an_unknown_kind(run):
    code, _, err = run("ls", "encodr")
    assert (code, err.splitlines()) == (2, [err.strip()])
    assert "Did you mean 'encoder'?" in err and "[unknown-name]" in err


def test_describe_shows_keys_docs_and_a_snippet(run):
    _, out, _ = run("describe", "dataset/toy_exams", "--plugins", str(TOYS))
    assert "dataset/toy_exams: Exams that are not there." in out
    assert "ToyExams(*, organ: Literal['breast', 'liver']='breast', exams: PositiveInt=8)" in out
    (row,) = [line.split(maxsplit=1) for line in out.splitlines() if line.startswith("exams ")]
    assert row[1].split("  ")[0] == "whole number above 0" and row[1].endswith("how many, in all splits.")
    assert "\nMore about them.\n" in out and "Args:" not in out
    assert out.endswith("data:\n  dataset: {name: toy_exams, organ: breast, exams: 8}\n")


def test_the_block_of_an_executor_is_for_a_grid_file(run, tmp_path):
    assert run("describe", "executor/local")[1].endswith("\nIn a grid file:\n\nexecutor: {name: local, processes: 1}\n")
    _, out, _ = run("new", "executor", "mine", str(tmp_path))
    file = tmp_path / "mine.py"
    assert out.endswith(f"In a grid file:\n\nplugins: [{file}]\nexecutor: {{name: mine, processes: 1, niceness: 10}}\n")
    assert "\nIn a recipe:\n" in run("describe", "encoder/resnet")[1]


def test_describe_reads_a_text_with_a_metric_that_explains_it(run):
    code, out, _ = run("describe", "metric/findings_f1", "--read", "左乳见一低回声结节。")
    assert code == 0 and "side: left" in out and "低回声" in out and "Needs" not in out
    _, out, _ = run("describe", "metric/findings_f1", "--read", "No mass.", "--json")
    assert json.loads(out) == [{"finding": "lesion: absent", "words": "mass"}]
    assert "no findings" in run("describe", "metric/findings_f1", "--read", "Hello.")[1]
    code, _, err = run("describe", "metric/bleu", "--read", "No mass.")
    assert code == 2 and "[unsupported]" in err


def test_describe_shows_source_needs_and_injected_parameters(run):
    _, out, _ = run("describe", "decoder/transformer")
    assert "\nNeeds: patches\nGives: logits\nSource: Vaswani et al. 2017, arXiv 1706.03762" in out
    assert "Set by the run: feature_width, width of the encoder's features" in out


@pytest.mark.parametrize(
    "words",
    [
        ["ls"],
        ["ls", "recipe"],
        ["ls", "--broken"],
        ["describe", "encoder/resnet"],
        ["describe", "metric/bleu"],
        ["explain", "breast", "train"],
        ["diff", "breast", "smoke"],
        ["plan", "smoke", "--processes", "2"],
    ],
    ids=" ".join,
)
def test_json_output_is_valid(run, words):
    code, out, err = run(*words, "--json")
    assert code == 0, err
    assert json.loads(out) or words[1] == "--broken"


def test_ls_broken_gives_the_reason(run):
    _, out, _ = run("ls", "--broken", "--plugins", str(TOYS))
    assert "No module named 'a_module_that_is_not_there'" in out
    assert run("ls", "--broken")[1] == "no broken plugins\n"


def test_diff_shows_both_values(run):
    _, out, _ = run("diff", "breast", "breast", "train.epochs=3")
    assert out.splitlines()[0].split()[:3] == ["key", "breast", "breast"]
    assert out.splitlines()[1].split()[:3] == ["train.epochs", "8", "3"] and len(out.splitlines()) == 2
    assert run("diff", "breast", "recipes/breast.yaml")[1] == "no difference\n"


def test_cp_writes_a_recipe_that_validates(run, tmp_path):
    code, out, _ = run("cp", "thyroid", str(tmp_path / "mine.yaml"))
    assert code == 0 and out.strip().endswith("mine.yaml")
    assert run("validate", str(tmp_path / "mine.yaml"))[0] == 0
    code, _, err = run("cp", "thyroid", str(tmp_path / "mine.yaml"))
    assert code == 2 and "[file-exists]" in err


def test_new_writes_a_plugin_that_describe_knows(run, tmp_path):
    code, out, _ = run("new", "loss", "mine", str(tmp_path))
    assert code == 0 and (tmp_path / "test_mine.py").is_file()
    assert f"plugins: [{tmp_path / 'mine.py'}]\nlosses:\n  mine: {{weight: 1.0" in out
    assert run("describe", "mine", "--plugins", str(tmp_path / "mine.py"))[0] == 0


def test_the_committed_schema_is_current(run):
    command = "run: python launch.py schema > recipes/sonoscribe.schema.json"
    assert run("schema")[1] == (ROOT / "recipes" / "sonoscribe.schema.json").read_text(encoding="utf-8"), command


def test_plan_shows_sizes_and_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the repository may hold runs already
    _, out, _ = run("plan", "smoke")
    assert "global batch" in out and "losses.topic" in out and "zero3" in out
    assert list(tmp_path.iterdir()) == []


def test_describe_finds_a_name_without_its_kind(run):
    _, out, _ = run("describe", "toy_topic", "--plugins", str(TOYS))
    assert out.startswith("loss/toy_topic: Of topics.") and "losses:\n  toy_topic: {weight: 1.0}" in out


def of(*, recipes):
    return [p for p in catalogue().values() if (stands_in(p.kind) == "a recipe") == recipes]


@pytest.mark.parametrize("plugin", of(recipes=False), ids=lambda p: f"{p.kind}/{p.name}")
def test_the_snippet_of_a_grid_file_loads(plugin, tmp_path):
    from framework.grid.file import read_grid
    from framework.registry.signature import model_of

    (tmp_path / "g.yaml").write_text(f"recipe: shipped:smoke\n{snippet(plugin)}\n")
    block = dict(read_grid(tmp_path / "g.yaml").spec.executor)
    assert block.pop("name") == plugin.name
    assert model_of(plugin).model_validate(block, strict=True).model_fields_set


@pytest.mark.parametrize("plugin", of(recipes=True), ids=lambda p: f"{p.kind}/{p.name}")
def test_the_snippet_of_a_recipe_loads(plugin, tmp_path):
    from framework.recipe import load_recipe, save

    text = snippet(plugin)
    for key, value in {"attributes": "[shape]", "columns": "{image: a, report: b}", "file": "x.jsonl"}.items():
        text = text.replace(f" {key}: ???", f" {key}: {value}")
    text = text.replace("???", "x")
    if plugin.kind == "metric":
        text += f"\n  monitor: val/{class_texts(plugin, 'names')[0]}"
    if plugin.name == "vicreg":  # compares augmentations
        text += "\ndata: {augment: {name: jitter}}"
    (tmp_path / "r.yaml").write_text(f"_base_: {ROOT}/recipes/smoke.yaml\n{text}\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert f"name: {plugin.name}" in save(recipe) or plugin.name in recipe.losses


def test_validate_reports_the_mistakes_of_all_recipes_once(run):
    code, out, err = run("validate", "breast", "thyroid", "model.encoder.dpth=3")
    assert code == 2 and out == ""
    assert err.startswith("override: model.encoder.dpth=3: unknown key. Did you mean 'depth'?")
    assert err.endswith("[unknown-key]\n") and len(err.splitlines()) == 1


def test_validate_accepts_recipes_by_name_and_path(run):
    code, out, err = run("validate", "breast", "recipes/thyroid.yaml")
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == ["breast", "recipes/thyroid.yaml"]


def test_explain_shows_file_and_line(run):
    code, out, _ = run("explain", "thyroid", "distiller.topics")
    assert code == 0 and out.splitlines()[1].split() == ["distiller.topics", "5", "recipes/thyroid.yaml:7:13"]


def test_a_mistake_ends_with_exit_code_2_and_is_printed_by_rank_0_alone(run, monkeypatch):
    code, _, err = run("smoke", "train.epochs=x")
    assert (code, err) == (2, "override: train.epochs=x: found the text 'x', expected a whole number [wrong-type]\n")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert run("smoke", "train.epochs=x") == (2, "", "")


def test_an_error_that_one_rank_may_meet_names_the_rank(run, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    _, _, err = run("predict", "no/such/run", "x.png")
    assert err.startswith("rank 3: no/such/run: ") and "[no-such-file]" in err


def test_a_misspelled_verb_is_not_taken_for_a_recipe(run):
    code, _, err = run("trian", "breast")
    assert code == 2
    assert "[unknown-name]" in err and "Did you mean 'train'?" in err


def test_the_traceback_is_offered_for_errors_of_libraries_only(run, tmp_path):
    assert cli.TRACEBACK not in run("predict", "no/such/run", "x.png")[2]
    (tmp_path / "file").write_text("")
    code, _, err = run("data", "make", "smoke", str(tmp_path / "file" / "folder"))
    assert code == 2 and f"({cli.TRACEBACK}=1 shows where in the code)" in err


def test_the_traceback_is_shown_on_request(monkeypatch):
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with problem("no-such-file", "nothing_like_it"):
        cli.main(["validate", "nothing_like_it"])


def test_data_make_writes_a_manifest_that_data_check_accepts(run, tmp_path, monkeypatch):
    out = tmp_path / "made"
    code, out_text, err = run("data", "make", "smoke", str(out), "data.dataset.exams=12")
    assert code == 0, err
    assert (out / "manifest.json").is_file() and str(out / "manifest.json") in out_text
    manifest = f"data.dataset={{name: manifest, file: {out}/manifest.json, images: {out}}}"
    assert run("data", "check", "smoke", manifest)[0] == 0
    assert "not an empty folder" in run("data", "make", "smoke", str(out))[2]


def test_data_check_fails_on_a_broken_image(run, tmp_path):
    out = tmp_path / "made"
    run("data", "make", "smoke", str(out), "data.dataset.exams=12")
    next((out / "images").iterdir()).write_bytes(b"no image")
    manifest = f"data.dataset={{name: manifest, file: {out}/manifest.json, images: {out}}}"
    code, out_text, _ = run("data", "check", "smoke", manifest)
    assert code == 2 and "1 problem, 0 warnings" in out_text


def test_data_init_writes_a_recipe_that_validates_and_shows_the_splits(run, tmp_path):
    made = tmp_path / "made"
    run("data", "make", "smoke", str(made), "data.dataset.exams=24")
    lines = [exam for exams in json.loads((made / "manifest.json").read_text("utf-8")).values() for exam in exams]
    rows = [[exam["uid"], exam["finding"].replace(";", ","), path] for exam in lines for path in exam["image_path"]]
    (made / "exams.csv").write_text("\n".join(map(";".join, [["exam", "report", "image"], *rows])), "utf-8")
    recipe = tmp_path / "new" / "recipe.yaml"
    code, out, err = run("data", "init", str(made), "--out", str(recipe))
    assert code == 0, err
    assert "column report" in out and "splits by exam" in out and "not found: a column of patients" in out
    assert run("validate", str(recipe))[0] == 0 and run("data", "check", str(recipe))[0] == 0
    code, _, err = run("data", "init", str(made), "--out", str(recipe))
    assert code == 2 and "[file-exists]" in err
    (made / "exams.csv").write_text((made / "exams.csv").read_text("utf-8") + f"\nx;;{rows[0][2]}", "utf-8")
    code, _, err = run("data", "init", str(made), "--out", str(tmp_path / "other.yaml"))
    assert code == 2 and f"line {len(rows) + 2}" in err and (tmp_path / "other.yaml").is_file()


def test_launch_needs_no_installation():
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "launch.py", "ls", "encoder"], cwd=ROOT, env=environment, capture_output=True
    )
    assert done.returncode == 0 and b"tiny_cnn" in done.stdout


def test_evaluate_refuses_an_unknown_split_before_it_loads_anything(run, tmp_path):
    code, _, err = run("evaluate", str(tmp_path), "--split", "tset")
    assert code == 2 and "[unknown-name]" in err and "Did you mean 'test'?" in err


def test_new_prints_a_command_that_runs_the_test_with_this_python(run, tmp_path):
    _, out, _ = run("new", "loss", "my_loss", str(tmp_path))
    command = next(line for line in out.splitlines() if "-m pytest" in line).split()
    assert shutil.which(command[0]) == sys.executable or Path(command[0]).absolute() == Path(sys.executable)


@pytest.mark.parametrize("variables", [{"RANK": ""}, {"RANK": "1"}, {"RANK": "x", "WORLD_SIZE": ""}])
def test_without_a_launcher_a_left_over_rank_hides_no_problem(variables, tmp_path, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "bad.yaml").write_text("_base_: shipped:smoke.yaml\ntrain: {epoch: 3}\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["validate", str(tmp_path / "bad.yaml")])
    assert ended.value.code == 2 and "[unknown-key]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key",
    ["train.batch_size", "train.epochs", "evaluate.batch_size", "evaluate.max_length", "evaluate.num_beams",
     "evaluate.val_num_beams", "evaluate.bootstrap_samples", "data.num_workers", "distributed.timeout"],
)  # fmt: skip
def test_a_number_far_out_of_range_is_refused_at_once_with_its_key(key):
    """The message about divisors counted up to it."""
    with problem("out-of-range", key):
        load_recipe("smoke", [f"{key}=999999999999999", "train.micro_batch_size=7"])


def test_a_full_disk_names_the_file(tmp_path, monkeypatch, capsys):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync_file", full)
    monkeypatch.setattr(cli, "app", lambda **_: files.atomic_write(tmp_path / "scores.json", "{}"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["validate", "smoke"])
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and "scores.json: no space left" in printed and "[cannot-write]" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("imported", "code"), [("typer", -signal.SIGINT), ("torch", errors.INTERRUPTED)])
def test_ctrl_c_while_python_imports_ends_without_a_traceback(imported: str, code: int, tmp_path: Path) -> None:
    (tmp_path / f"{imported}.py").write_text("import time\nprint('imports', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, str(ROOT / "launch.py"), "smoke", f"run.root={tmp_path}"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None and started.stdout.readline() == "imports\n"
        started.send_signal(signal.SIGINT)
        _, text = started.communicate(timeout=60)
    assert (started.returncode, text) == (code, "")


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["new", "loss", "mine"], "mine.py"),
        (["cp", "smoke", "mine.yaml"], "mine.yaml"),
        (["data", "make", "smoke", "made"], "_1.png"),
    ],
)
def test_a_command_on_a_full_disk_names_the_file_and_leaves_none_empty(
    run, words: list[str], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        monkeypatch.chdir(disk)
        (disk / "made").mkdir()
        fill(disk)
        code, _, text = run(*words)
        assert code == errors.USER_ERROR and "[cannot-write]" in text and "0.0 MiB" in text, text
        assert f"{file}: no space left" in text
        # Images without a manifest are no data set.
        files = [path for path in disk.rglob("*") if path.is_file() and path.suffix != ".png"]
        assert not [path for path in files if path.stat().st_size == 0]


def test_a_long_override_is_not_taken_for_a_file():
    word = f"run.name={'x' * 5000}"
    assert is_override(word)
    with problem("wrong-format", "run.name"):
        load_recipe("smoke", [word])


def test_a_reward_of_another_type_is_one_problem():
    with problem("wrong-type", "losses.self_critical.reward") as found:
        load_recipe("smoke", ["losses.self_critical={reward: 3}"])
    assert len(found) == 1


def test_a_key_without_a_value_is_named():
    with problem("wrong-format", "data.tokenizer.lowercase"):
        load_recipe("data.tokenizer.lowercase")


def test_plugins_that_are_no_names_are_copied_as_they_are(run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("_base_: shipped:smoke\nplugins: [{a: 1}]\n")
    code, _, text = run("cp", str(tmp_path / "mine.yaml"), str(tmp_path / "copy.yaml"))
    assert code == 0, text
    assert "plugins: [{a: 1}]" in (tmp_path / "copy.yaml").read_text()
