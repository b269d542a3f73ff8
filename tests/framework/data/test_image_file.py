"""Image files as views: modes, damaged and huge files."""

import errno
import os
import struct
import zlib

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


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("largest", [255, 1023, 4095, 16383, 65535])
def test_the_window_of_sixteen_bit_files_is_the_depth_in_use(tmp_path, suffix, largest):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.array([[0, largest // 2], [largest, largest]], dtype=np.uint16)).save(path)
    assert FileView(str(path), "a").load().tolist() == [[0, 127], [255, 255]]


def test_grey_beyond_sixteen_bits_is_refused_with_its_range(tmp_path):
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(tmp_path / "a.tiff")
    with pytest.raises(OSError, match="0 to 70000"):
        FileView(str(tmp_path / "a.tiff"), "a").load()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_window_scales_deep_and_floating_point_images_and_leaves_others(tmp_path, dtype):
    Image.fromarray(np.array([[0, 100], [2100, 4100]], dtype=dtype)).save(tmp_path / "a.tiff")
    assert FileView(str(tmp_path / "a.tiff"), "a", (100, 4100)).load().tolist() == [[0, 0], [127, 255]]
    Image.new("L", (2, 2), 200).save(tmp_path / "b.png")
    assert (FileView(str(tmp_path / "b.png"), "b", (100, 4100)).load() == 200).all()


def test_floating_point_images_need_a_window_and_finite_values(tmp_path):
    Image.fromarray(np.array([[0.5, -2.0]], dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(OSError, match=r"-2 to 0\.5; set data\.dataset\.window"):
        FileView(str(tmp_path / "a.tiff"), "a").load()
    Image.fromarray(np.array([[0.5, np.nan]], dtype=np.float32)).save(tmp_path / "b.tiff")
    with pytest.raises(OSError, match="NaN"):
        FileView(str(tmp_path / "b.tiff"), "b", (0, 1)).load()


@pytest.mark.parametrize("mode, suffix", [("RGBA", ".png"), ("LA", ".png"), ("RGBA", ".webp"), ("RGBA", ".tiff")])
def test_what_is_transparent_is_black(tmp_path, mode, suffix):
    image = Image.new("RGBA", (2, 1), (200, 200, 200, 255))
    image.putpixel((0, 0), (200, 200, 200, 0))  # an erased name keeps its colour
    image.convert(mode).save(
        tmp_path / f"a{suffix}", **({"lossless": True, "exact": True} if suffix == ".webp" else {})
    )
    found = FileView(str(tmp_path / f"a{suffix}"), "a").load()
    assert (found[0, 0] == 0).all() and (found[0, 1] == 200).all()


def test_a_transparent_colour_of_a_palette_is_black(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 10, 20, 30])
    image.putpixel((1, 0), 1)
    for suffix in (".png", ".gif"):
        image.save(tmp_path / f"a{suffix}", transparency=0)
        assert FileView(str(tmp_path / f"a{suffix}"), "a").load().tolist() == [[[0, 0, 0], [10, 20, 30]]]


@pytest.mark.parametrize("suffix", [".jpg", ".tiff"])
def test_cmyk_is_read_as_viewers_show_it(tmp_path, suffix):
    Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK").save(tmp_path / f"a{suffix}")
    found = FileView(str(tmp_path / f"a{suffix}"), "a").load()
    assert np.abs(found[8, 8].astype(int) - [200, 100, 50]).max() <= 3


def deep_colour(path, value):
    """A PNG of 2 x 2 pixels with 16 bits per colour, which PIL reads but does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + struct.pack(">H", value) * 6) * 2
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return FileView(str(path), "a")


def test_sixteen_bit_colour_of_a_low_range_is_refused(tmp_path):
    assert deep_colour(tmp_path / "a.png", 65535).load().min() == 255
    with pytest.raises(OSError, match="16-bit colour"):
        deep_colour(tmp_path / "b.png", 4095).load()


@pytest.mark.parametrize(
    "suffix, mode",
    [(".jpeg", "L"), (".jpeg", "RGB"), (".png", "L"), (".png", "I;16"), (".tiff", "L"), (".tiff", "I;16")],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_viewers_show_them(tmp_path, suffix, mode, orientation):
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :16] = 255
    upright[:8, 16:] = 128
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = Image.fromarray(upright if mode != "I;16" else upright.astype(np.uint16) * 257).convert(mode)
    stored = stored if back is None else stored.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a{suffix}", exif=exif, **({"quality": 100} if suffix == ".jpeg" else {}))
    found = FileView(str(tmp_path / f"a{suffix}"), "a").load()
    found = found[..., 0] if found.ndim == 3 else found
    assert found.shape == upright.shape and np.abs(found.astype(int) - upright).max() <= 4


def test_files_of_several_pages_are_refused(tmp_path):
    pages = [Image.new("L", (6, 4), value) for value in (10, 20, 30)]
    for name in ("a.tiff", "a.png", "a.gif", "a.webp"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        with pytest.raises(OSError, match="3 pages"):
            FileView(str(tmp_path / name), "a").load()


def test_a_reduced_copy_is_no_page(tmp_path):
    reduced = Image.new("L", (3, 2))
    reduced.encoderinfo = {"tiffinfo": {254: 1}}
    Image.new("L", (6, 4), 10).save(tmp_path / "a.tiff", save_all=True, append_images=[reduced])
    assert FileView(str(tmp_path / "a.tiff"), "a").load().tolist() == [[10] * 6] * 4


def test_special_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="not a regular file"):
        FileView(str(tmp_path / "a.png"), "a").load()


def test_a_file_without_permission_is_not_broken(tmp_path, monkeypatch):
    picture(tmp_path / "a.png")

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(OSError, match=r"a\.png: cannot be read: permission denied") as found:
        FileView(str(tmp_path / "a.png"), "a").load()
    assert found.value.errno == errno.EACCES


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
