"""A sheet of pictures in rows and columns, with a heading over each column and a label beside each row."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GAP = 4
INK, GROUND = "#1c1e21", "white"


def labelled(
    rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], names: Sequence[str]
) -> Image.Image:
    """All pictures on white, with labels.

    Args:
        rows: each with one picture per column.
        columns: headings of the columns.
        names: labels of the rows.
    """
    width = max(image.width for row in rows for image in row)
    height = max(image.height for row in rows for image in row)
    size = max(11, min(width, height) // 16)
    font = ImageFont.load_default(size)
    margin = max(8 * size, width // 2)
    heads = [_wrapped(text, font, width) for text in columns]
    sides = [_wrapped(text, font, margin - 2 * GAP) for text in names]
    line = size + size // 3
    head = line * max(text.count("\n") + 1 for text in heads) + 2 * GAP
    heights = [max(height, line * (text.count("\n") + 1)) for text in sides]
    sheet = Image.new(
        "RGB", (margin + len(columns) * (width + GAP), head + sum(each + GAP for each in heights)), GROUND
    )
    draw = ImageDraw.Draw(sheet)
    for index, text in enumerate(heads):
        draw.multiline_text((margin + index * (width + GAP), GAP), text, INK, font)
    top = head
    for row, side, tall in zip(rows, sides, heights, strict=True):
        draw.multiline_text((GAP, top), side, INK, font)
        for index, image in enumerate(row):
            sheet.paste(image, (margin + index * (width + GAP), top))
        top += tall + GAP
    return sheet


def _wrapped(text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int) -> str:
    """A text wrapped to a width in pixels, at words if they fit, and before the `@step` of a state's name."""
    if font.getlength(text) > width:
        text = text.replace("@", " @")
    wide = max(1.0, font.getlength("n"))
    lines = textwrap.wrap(text, max(4, int(width / wide)), break_long_words=True)
    return "\n".join(lines) or " "
