"""The endpoints of `serve`: answers, limits, and errors as JSON with codes."""

from __future__ import annotations

import io
import socket
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import problem
from PIL import Image

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fastapi.testclient import TestClient

import sonoscribe
from framework.cli import main
from framework.runtime.errors import UserError
from framework.serve import app as app_module
from framework.serve import uploads
from framework.serve.app import build_app
from framework.serve.command import load_served, serve_runs

NOISE = np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)
SECRET = "DOE^JANE"  # in the EXIF of an image


def png(pixels: np.ndarray = NOISE) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = SECRET  # ImageDescription
    Image.fromarray(pixels).save(buffer, "png", exif=exif)
    return buffer.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG whose header claims more pixels than the server decodes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def images(*contents: bytes, field: str = "images") -> list[tuple[str, tuple[str, bytes]]]:
    return [(field, (f"{number}.png", content)) for number, content in enumerate(contents)]


def code_of(response: Any, status: int) -> str:
    """The code of the first error of an answer."""
    assert response.status_code == status, response.text
    assert "Traceback" not in response.text
    return response.json()["errors"][0]["code"]


@pytest.fixture(scope="module")
def served(smoke_run: Path) -> list[app_module.ServedModel]:
    return load_served([smoke_run, smoke_run / "model"], None)


@pytest.fixture
def client(served: list[app_module.ServedModel]) -> Iterator[TestClient]:
    with TestClient(build_app(served, frozenset({"my-machine"}), 4), base_url="http://localhost") as found:
        yield found


def test_one_exam_gets_the_report_of_the_model_with_words_and_nearest_exams(
    client: TestClient, smoke_run: Path
) -> None:
    answer = client.post("/api/report", files=images(png(), png(255 - NOISE))).json()
    expected = sonoscribe.load(smoke_run).report([NOISE, 255 - NOISE])
    assert answer["model"] == "smoke/first" and answer["text"] == expected
    assert [word["text"] for word in answer["words"]] == [word.text for word in expected.words]
    assert answer["grid"][0] == 2 and all(word["heat"] for word in answer["words"])
    assert answer["warnings"] == list(expected.warnings) and len(answer["distances"]) == 2
    assert [each["text"] for each in answer["alternatives"]] == [each.text for each in expected.alternatives]
    assert [each["finding"] for each in answer["findings"]] == [f"{each}" for each in expected.findings]
    assert answer["calibrated"] and answer["topic"] == expected.predicted_topic is not None
    assert [each["id"] for each in answer["nearest"]] == [exam.id for exam in expected.nearest]


def test_each_exam_of_a_batch_gets_its_report_or_its_error(client: TestClient, smoke_run: Path) -> None:
    files = [*images(png(), png(), field="a"), *images(b"no image", field="b"), *images(png(255 - NOISE), field="c")]
    a, b, c = client.post("/api/reports", files=files).json()
    model = sonoscribe.load(smoke_run)
    assert (a["id"], a["report"]["text"], a["errors"]) == ("a", model.report([NOISE, NOISE]).text, [])
    assert (b["id"], b["report"], b["errors"][0]["code"]) == ("b", None, "broken-image")
    assert (c["id"], c["report"]["text"]) == ("c", model.report([255 - NOISE]).text)


def test_models_are_listed_and_chosen_by_name(client: TestClient) -> None:
    run, alone = client.get("/api/models").json()
    assert (run["name"], alone["name"]) == ("smoke/first", "first/model")
    assert "phantom" in run["training_data"] and run["image_size"] == 32 and run["compares_images"]
    assert run["finds_nearest"] and not alone["finds_nearest"]
    answer = client.post("/api/report", params={"model": "first/model"}, files=images(png())).json()
    assert answer["model"] == "first/model" and answer["nearest"] == []
    response = client.post("/api/report", params={"model": "smoke/frst"}, files=images(png()))
    assert code_of(response, 404) == "unknown-name" and "smoke/first" in response.text


def test_the_schema_describes_forms_answers_and_errors(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/api/health", "/api/models", "/api/report", "/api/reports"}
    post = schema["paths"]["/api/report"]["post"]
    form = post["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["images"]["items"]["format"] == "binary"
    assert set(post["responses"]) >= {"200", "400", "413", "429"}
    assert client.get("/api/health").json() == {"status": "ok", "requests": 0, "limit": 4, "waiting": 0}
    for path in ("/docs", "/redoc"):  # they would load scripts of another host
        assert code_of(client.get(path), 404) == "unknown-name"


def test_a_full_queue_answers_429_with_the_seconds_to_wait(client: TestClient, served: Any) -> None:
    app = build_app(served, frozenset(), 1)
    with TestClient(app, base_url="http://localhost") as one, ThreadPoolExecutor(4) as threads:
        posts = [threads.submit(one.post, "/api/report", files=images(png())) for _ in range(4)]
        answers = [post.result() for post in posts]
        assert {answer.status_code for answer in answers} == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert code_of(answer, 429) == "queue-full" and int(answer.headers["Retry-After"]) >= 1
        assert one.post("/api/report", files=images(png())).status_code == 200


@pytest.mark.parametrize(
    ("files", "code", "place"),
    [
        (images(b"no image"), "broken-image", "0.png"),
        (images(bomb()), "broken-image", "0.png"),
        (images(png(np.zeros((8, 8), np.uint8))), "broken-image", "0.png"),
        (images(png()[:200]), "broken-image", "0.png"),
        (images(b""), "broken-image", "0.png"),
        (images(png(), field="other"), "unknown-key", "body"),
        (images(*[png()] * 5), "out-of-range", "0.png, 1.png, 2.png, 3.png, 4.png"),
    ],
)
def test_images_that_cannot_be_used_are_named(client: TestClient, files: Any, code: str, place: str) -> None:
    response = client.post("/api/report", files=files)
    assert code_of(response, 400) == code and response.json()["errors"][0]["place"] == place


def test_an_image_of_too_many_pixels_is_not_decoded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_PIXELS", 100)
    response = client.post("/api/report", files=images(png()))
    assert code_of(response, 400) == "broken-image" and "not decoded" in response.text


def test_bodies_that_are_no_form_of_images_are_refused(client: TestClient) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for response in (
        client.post("/api/report", json={}),
        client.post("/api/report", content=b"--x\r\nnonsense", headers=form),
        client.post("/api/report", content=b"", headers={"Content-Type": "multipart/form-data"}),
    ):
        assert code_of(response, 400) in ("wrong-format", "missing-input")
    assert code_of(client.post("/api/report", data={"images": "text"}, files=images(png())), 400) == "wrong-type"
    assert code_of(client.get("/api/report"), 405) == "unsupported"
    assert code_of(client.post("/api/nothing"), 404) == "unknown-name"


def test_bodies_beyond_the_limit_are_refused_by_their_length_and_as_they_arrive(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "MAX_BYTES", 5000)
    large = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n' + bytes(6000)
    with TestClient(build_app(served, frozenset(), 4), base_url="http://localhost") as client:
        assert code_of(client.post("/api/report", files=images(bytes(6000))), 413) == "too-large"
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        chunks = client.post("/api/report", content=iter([large[:3000], large[3000:]]), headers=headers)
        assert code_of(chunks, 413) == "too-large"
    monkeypatch.setattr(uploads, "MAX_IMAGES", 2)
    with TestClient(build_app(served, frozenset(), 4), base_url="http://localhost") as client:
        assert code_of(client.post("/api/reports", files=images(b"a", b"b", b"c")), 413) == "too-large"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "my-machine", "192.168.0.7"])
def test_own_hosts_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/api/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", "", "[::1", "127.0.0.1.evil.example"])
def test_another_host_is_refused(client: TestClient, host: str) -> None:
    assert code_of(client.get("/", headers={"Host": host}), 403) == "foreign-request"


def test_pages_of_other_sites_cannot_use_the_model(client: TestClient) -> None:
    for origin in ("http://evil.example", "null", "http://localhost:9"):
        response = client.post("/api/report", files=images(png()), headers={"Origin": origin})
        assert code_of(response, 403) == "foreign-request"
        assert "access-control-allow-origin" not in response.headers
    own = client.post("/api/report", files=images(png()), headers={"Origin": "http://localhost"})
    assert own.status_code == 200


def test_every_answer_has_a_strict_policy_and_is_not_kept(client: TestClient) -> None:
    for response in (client.get("/"), client.get("/api/models"), client.get("/nothing"), client.post("/card", json={})):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "connect-src 'self'" in policy
        assert "script-src 'sha256-" in policy and "'unsafe-inline'" not in policy.partition("script-src")[2]
        assert (
            response.headers["cache-control"] == "no-store" and response.headers["x-content-type-options"] == "nosniff"
        )


def test_nothing_of_a_request_is_written_and_exif_is_dropped(
    client: TestClient, smoke_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a temporary file")

    monkeypatch.setattr(tempfile, "_get_candidate_names", refused)
    before = {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*")}
    large = png(np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), dtype=np.uint8))
    assert len(large) > 2**20 and SECRET.encode() in large
    for path in ("/api/report", "/card"):
        response = client.post(path, files=images(large))
        assert response.status_code == 200 and SECRET not in response.text
    assert {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*")} == before


def test_names_of_files_and_reports_are_escaped_in_a_card(client: TestClient) -> None:
    files = [("images", ("<img src=x onerror=alert(1)>.png", png()))]
    text = client.post("/card", files=files).text
    assert "&lt;img src=x" in text and "<img src=x" not in text


def test_a_failing_model_is_an_error_with_a_code(client: TestClient, served: Any, monkeypatch: Any) -> None:
    def fails(error: Exception) -> Any:
        def reports_of(views: Any) -> None:
            raise error

        return reports_of

    for error, status, code in (
        (RuntimeError("a bug"), 500, "internal-error"),
        (MemoryError(), 503, "out-of-memory"),
        (UserError("does-not-fit", "too many views"), 400, "does-not-fit"),
    ):
        monkeypatch.setattr(served[0].predictor, "reports_of", fails(error))
        assert code_of(client.post("/api/report", files=images(png())), status) == code


def test_two_runs_of_one_name_and_a_port_in_use_are_refused(smoke_run: Path) -> None:
    with problem("duplicate-name", "smoke/first"):
        load_served([smoke_run, smoke_run], None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with problem("in-use", f"127.0.0.1:{port}"):
            serve_runs([smoke_run], "127.0.0.1", port, 4, None)


def test_a_missing_extra_is_named(smoke_run: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("command", "app"):
        monkeypatch.delitem(sys.modules, f"framework.serve.{name}")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(smoke_run)])
    assert ended.value.code == 2 and "[missing-package]" in capsys.readouterr().err
