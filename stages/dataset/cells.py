"""Cells of the CSV files that people open: a spreadsheet takes one that begins with `=` for a formula, and runs it.

in_cell("=HYPERLINK(...).png") -> "'=HYPERLINK(...).png";  from_cell gives the name back
"""

from __future__ import annotations

FORMULA = ("=", "+", "-", "@", "\t", "\r")
QUOTE = "'"  # before a cell: spreadsheets show the rest as text; one that begins with it gets another


def in_cell(text: str) -> str:
    return QUOTE + text if text.startswith((*FORMULA, QUOTE)) and not _number(text) else text


def from_cell(cell: str) -> str:
    return cell.removeprefix(QUOTE)


def _number(text: str) -> bool:
    """A label may be -1."""
    return text.removeprefix("-").isdecimal()
