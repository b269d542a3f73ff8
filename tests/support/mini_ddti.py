"""A tiny archive in the layout of DDTI: drawn frames with a scan, and around it what a machine burns in."""

import numpy as np
from PIL import Image, ImageDraw

SIZE = (560, 360)
SCAN = (85, 6, 440, 310)  # left, top, right, bottom
CATEGORIES = ("2", "3", "4a", "4b", "4c", "5")
COMPLETE = {
    "composition": "solid",
    "echogenicity": "marked hypoechogenicity",
    "margins": "ill- defined",
    "calcifications": "microcalcification",
    "tirads": "4a",
}


def frame(seed=0, text="TIRADS 4A (4A*)", double=False):
    """A frame, with the category in its margin, a grey bar, the machine's settings and the probe's icon."""
    draw_from = np.random.default_rng(seed)
    grey = np.zeros(SIZE[::-1], np.uint8)
    left, top, right, bottom = SCAN
    right = 527 if double else right
    tissue = draw_from.normal(90, 25, (bottom - top, right - left))
    tissue[-60:] *= np.linspace(1, 0.15, 60)[:, None]  # as sound fades
    if double:
        tissue[:, 220:224] = 0  # between the two halves
    grey[top:bottom, left:right] = np.clip(tissue, 0, 255)
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    grey[((rows - 150) / 50) ** 2 + ((columns - 250) / 70) ** 2 < 1] = 2  # a cyst
    grey[160:240, 4:10] = np.linspace(255, 0, 80)[:, None]  # the grey bar
    picture = Image.fromarray(grey)
    draw = ImageDraw.Draw(picture)
    draw.text((90, 335), f"DER   {text}", fill=255)
    draw.text((532, 10), "P100\n13.5\n9.0\nTHY", fill=255)
    draw.arc((470, 325, 520, 355), 180, 360, fill=255, width=3)
    return picture


def write_case(root, number, words=COMPLETE, images=(0,), age="44", sex="F"):
    """A case; `images` are the seeds of its frames, so that equal seeds are equal files."""
    root.mkdir(parents=True, exist_ok=True)
    tags = "".join(f"<{name}>{words.get(name, '')}</{name}>" for name in COMPLETE)
    marks = "".join(f"<mark><image>{place}</image><svg></svg></mark>" for place in range(1, len(images) + 1))
    person = f"<age>{age}</age><sex>{sex}</sex>"
    (root / f"{number}.xml").write_text(f"<case><number>{number}</number>{person}{tags}{marks}</case>")
    for place, seed in enumerate(images, 1):
        frame(seed).convert("RGB").save(root / f"{number}_{place}.jpg", quality=90)


def write_archive(root, cases=30):
    """Cases of all categories in turn."""
    margins = ("well defined", "spiculated", "well defined smooth")
    for number in range(1, cases + 1):
        words = {**COMPLETE, "tirads": CATEGORIES[number % 6], "margins": margins[number % 3]}
        write_case(root, number, words, images=(number,))
    return root
