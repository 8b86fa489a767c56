"""Pictures in a terminal, by Chafa: with the protocol of kitty or iTerm2 or as sixels if supported, else as half blocks."""

import importlib.util

from PIL import Image

COLUMNS = 24
"""Width of a picture in character cells."""


def is_able() -> bool:
    """Whether Chafa is installed, which is part of dticli[terminal]."""
    return importlib.util.find_spec("chafa") is not None


def shown(image: Image.Image, columns: int) -> str:
    """Output for the terminal that the environment variables describe, which shows a picture `columns` cells wide."""
    import chafa
    from chafa import CanvasMode, PixelMode, TermSeq

    info = chafa.TermDb().detect()
    # Not Chafa's detect_capabilities, which asks the terminal and reads the answer from stdin, where the user may be typing.
    mode = next(
        (
            mode
            for mode, sequence in (
                (PixelMode.CHAFA_PIXEL_MODE_KITTY, TermSeq.CHAFA_TERM_SEQ_BEGIN_KITTY_IMMEDIATE_IMAGE_V1),
                (PixelMode.CHAFA_PIXEL_MODE_ITERM2, TermSeq.CHAFA_TERM_SEQ_BEGIN_ITERM2_IMAGE),
                (PixelMode.CHAFA_PIXEL_MODE_SIXELS, TermSeq.CHAFA_TERM_SEQ_BEGIN_SIXELS),
            )
            if info.have_seq(sequence)
        ),
        PixelMode.CHAFA_PIXEL_MODE_SYMBOLS,
    )
    colours = next(
        (
            colours
            for colours, sequence in (
                (CanvasMode.CHAFA_CANVAS_MODE_TRUECOLOR, TermSeq.CHAFA_TERM_SEQ_SET_COLOR_FGBG_DIRECT),
                (CanvasMode.CHAFA_CANVAS_MODE_INDEXED_240, TermSeq.CHAFA_TERM_SEQ_SET_COLOR_FGBG_256),
            )
            if info.have_seq(sequence)
        ),
        CanvasMode.CHAFA_CANVAS_MODE_INDEXED_16,
    )
    if mode != PixelMode.CHAFA_PIXEL_MODE_SYMBOLS:
        # Pixels are sent as they are; reduced colours apply to text only.
        colours = CanvasMode.CHAFA_CANVAS_MODE_TRUECOLOR
    config = chafa.CanvasConfig()
    # A cell is twice as high as wide.
    config.width, config.height = columns, max(1, round(columns * image.height / image.width / 2))
    config.cell_width, config.cell_height = 10, 20
    config.canvas_mode, config.pixel_mode = colours, mode
    symbols = chafa.SymbolMap()
    symbols.add_by_tags(chafa.SymbolTags.CHAFA_SYMBOL_TAG_VHALF)
    config.set_symbol_map(symbols)
    canvas = chafa.Canvas(config)
    pixels = image.convert("RGB")
    canvas.draw_all_pixels(
        chafa.PixelType.CHAFA_PIXEL_RGB8, pixels.tobytes(), pixels.width, pixels.height, 3 * pixels.width
    )
    return str(canvas.print(term_info=info).decode())
