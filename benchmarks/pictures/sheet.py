"""Panels with a line of text each, under a title, as one picture."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...pretrain.common.atomic import write_atomic

INK, PAPER = (40, 40, 40), (255, 255, 255)
GAP, HEAD, FOOT = 8, 34, 20  # pixels between panels, of the title and of a line


def write_text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: float, **how) -> None:
    draw.text(at, text, font=ImageFont.load_default(size), **how)


def sheet(
    panels: Iterable[tuple[str, Image.Image]], count: int, columns: int, title: str, right: str, below: int = 0
) -> Image.Image:
    """`count` panels of one size, `columns` in a row, taken one by one, each with its text below it. right: of the
    title's line. below: pixels left free at the bottom."""
    for k, (text, panel) in enumerate(panels):
        if k == 0:
            w, h = panel.size
            size = (columns * (w + GAP) + GAP, HEAD + -(-count // columns) * (h + FOOT + GAP) + below)
            whole = Image.new("RGB", size, PAPER)
            draw = ImageDraw.Draw(whole)
            write_text(draw, (GAP, HEAD / 2), title, 18, fill=INK, anchor="lm")
            write_text(draw, (whole.width - GAP, HEAD / 2), right, 13, fill=INK, anchor="rm")
        x, y = GAP + k % columns * (w + GAP), HEAD + k // columns * (h + FOOT + GAP)
        whole.paste(panel, (x, y))
        write_text(draw, (x, y + h + FOOT / 2), text, 13, fill=INK, anchor="lm")
    return whole


def save(image: Image.Image, out: Path | str, **how) -> Path:
    """Write it as a whole; -> its path."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, lambda file: image.save(file, **how), sync=False)
    return out
