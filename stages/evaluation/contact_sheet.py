"""The contact sheet: clean image, perturbation made visible, adversarial image, with what the network says of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from autolora.data.examples import magnified

TILE, GAP, LINE, LEFT = 128, 10, 16, 8
HEADER = ("clean", "perturbation", "adversarial")


class Row(NamedTuple):
    clean: np.ndarray  # float [c,h,w] in [0,1]
    adversarial: np.ndarray
    label: str
    said_clean: str
    said_adversarial: str


def contact_sheet(rows: Sequence[Row], title: str) -> Image.Image:
    """One row per image; the perturbation is stretched until its largest value is full scale, and says by how much."""
    font = ImageFont.load_default(13)
    width = LEFT + 3 * (TILE + GAP)
    height = 2 * LINE + 12 + max(len(rows), 1) * (TILE + 2 * LINE + GAP)
    sheet = Image.new("RGB", (max(width, LEFT + 8 * len(title)), height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((LEFT, 4), title, fill="black", font=font)
    if not rows:
        draw.text((LEFT, 4 + 2 * LINE), "no adversarial image was found", fill="black", font=font)
    for number, row in enumerate(rows):
        _row(sheet, draw, font, row, 2 * LINE + 8 + number * (TILE + 2 * LINE + GAP))
    return sheet


def _row(sheet: Image.Image, draw: ImageDraw.ImageDraw, font: object, row: Row, top: int) -> None:
    perturbation, factor = magnified(row.clean, row.adversarial)
    largest = float(np.abs(row.adversarial - row.clean).max())
    tiles = (row.clean, perturbation, row.adversarial)
    captions = (
        f"{row.label} / {row.said_clean}",
        f"x {factor:.0f}, most {255 * largest:.1f}/255",
        f"-> {row.said_adversarial}",
    )
    for column, (tile, caption, name) in enumerate(zip(tiles, captions, HEADER)):
        left = LEFT + column * (TILE + GAP)
        sheet.paste(_tile(tile), (left, top))
        draw.text((left, top + TILE), name, fill="grey", font=font)  # type: ignore[arg-type]
        draw.text((left, top + TILE + LINE - 2), caption[:20], fill="black", font=font)  # type: ignore[arg-type]


def _tile(pixels: np.ndarray) -> Image.Image:
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    levels = np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels
    return Image.fromarray(levels).resize((TILE, TILE), Image.Resampling.NEAREST)
