"""Image files as views: modes, damaged and huge files."""

import numpy as np
import pytest
from PIL import Image

from framework.data.image_file import FileView

RANDOM = np.random.default_rng(0)


def picture(path, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 255, size[::-1], dtype=np.uint8)).save(path)


@pytest.mark.parametrize(
    "mode, shape, value",
    [("1", (4, 6), 255), ("L", (4, 6), 200), ("LA", (4, 6), 200), ("RGB", (4, 6, 3), 200), ("P", (4, 6, 3), 200)],
)
def test_image_modes_become_grey_or_rgb(tmp_path, mode, shape, value):
    Image.new("L", (6, 4), 200).convert(mode).save(tmp_path / "a.png")
    image = FileView(str(tmp_path / "a.png"), "a").load()
    assert image.dtype == np.uint8 and image.shape == shape
    if mode != "1":  # dithered
        assert (image == value).all()


def test_16_bit_images_keep_their_range(tmp_path):
    Image.fromarray(np.array([[0, 65535], [257, 514]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert FileView(str(tmp_path / "a.png"), "a").load().tolist() == [[0, 255], [1, 2]]


@pytest.mark.parametrize("suffix", [".png", ".jpeg"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    picture(path, (200, 200))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OSError, match="damaged or truncated"):
        FileView(str(path), "a").load()


def test_files_that_are_not_images_and_huge_images_are_refused(tmp_path):
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(OSError, match="not an image"):
        FileView(str(tmp_path / "a.png"), "a").load()
    Image.new("1", (40000, 3000)).save(tmp_path / "b.png")
    with pytest.raises(OSError, match="40000 x 3000 pixels"):
        FileView(str(tmp_path / "b.png"), "b").load()
    Image.new("1", (40000, 6000)).save(tmp_path / "c.png")
    with pytest.raises(OSError, match="pixels; not decoded"):
        FileView(str(tmp_path / "c.png"), "c").load()
    with pytest.raises(FileNotFoundError, match="no such file"):
        FileView(str(tmp_path / "d.png"), "d").load()
