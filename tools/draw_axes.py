"""The axes of fine-tuning as a picture: docs/axes.svg, from the values that params.yaml may have.

    python -m tools.draw_axes

Columns follow a run: where it starts, what each step is shown and does, what ships. What has no list of values has
words here.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from autolora.common.command_line import Command
from autolora.common.files import write_text
from autolora.training.axes import TEACHERS
from stages.common.params import Finetune, Merge

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "axes.svg"
SECTIONS: dict[str, type[BaseModel]] = {"finetune": Finetune, "merge": Merge}


class Axis(NamedTuple):
    key: str
    gloss: str
    words: tuple[str, ...] = ()  # where there is no list of values; the first is the default


COLUMNS = {
    "Where it starts": [
        Axis("finetune.start", "the head, before the first step"),
        Axis("finetune.members", "runs from one start", ("1", "2, 3, …")),
    ],
    "What a step is shown": [
        Axis("finetune.augmentation", "how images are varied"),
        Axis("finetune.attack", "gradients of an image"),
        Axis("finetune.eps_schedule", "how far the attack reaches"),
    ],
    "What it learns from": [
        Axis("finetune.method", "the loss"),
        Axis("finetune.teacher", "whose answers distill learns", ("none", TEACHERS["teacher"], "a file")),
        Axis("finetune.natural_teacher", "on natural images", ("none", TEACHERS["natural_teacher"], "a file")),
        Axis("finetune.smoothing", "of the labels", ("0", "up to 0.3")),
    ],
    "What it moves": [
        Axis("finetune.trains", "which weights"),
        Axis("finetune.rank", "of the branch, and of lora", ("8", "1, 2, …")),
        Axis("finetune.weight_attack", "from weights at their worst", ("none", "0 to 0.1")),
        Axis("finetune.reference", "how fast: the rate's rule"),
    ],
    "What ships": [
        Axis("finetune.average", "the last weights, or a mean", ("none", "0 to 1")),
        Axis("merge.soup", "the members as one network"),
        Axis("merge.toward", "the dial's direction"),
        Axis("merge.alpha", "how far it is turned", ("auto", "0 to 1")),
        Axis("merge.mix", "two networks in one file"),
    ],
}
LOOP = ("What a step is shown", "What it moves")  # the first and the last column of what happens in each step

WIDTH, COLUMN, GAP, LEFT, TOP = 1120, 204, 22, 6, 78
LINE, CHIP, BETWEEN = 27, 22, 6  # of chips: from one row to the next, their height, from one to the next
LETTER, PADDING = 6.75, 8  # of a chip's text, at most; either side of it
STYLE = """
text{font-family:system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:#1f2933}
.h{font-weight:650;font-size:15px}.g{font-size:12px;fill:#52606d}
.k{font:600 12.5px ui-monospace,Menlo,Consolas,monospace}.v{font:11px ui-monospace,Menlo,Consolas,monospace}
.c{fill:#fff;stroke:#9aa5b1}.d{fill:#d3eee8;stroke:#2a7f6f;stroke-width:1.4}
.b{fill:#f7f9fb;stroke:#cbd2d9}.a{stroke:#7b8794;stroke-width:1.6;fill:none;marker-end:url(#m)}.m{fill:#7b8794}
.band{fill:none;stroke:#9aa5b1;stroke-dasharray:4 4}
@media (prefers-color-scheme:dark){text{fill:#e4e7eb}.g{fill:#b0bac5}.c{fill:#323f4b;stroke:#7b8794}
.d{fill:#12463d;stroke:#4fb8a3}.b{fill:#1f2933;stroke:#52606d}.a{stroke:#9aa5b1}.m{fill:#9aa5b1}.band{stroke:#7b8794}}
"""


def values(axis: Axis) -> tuple[str, ...]:
    """The default first."""
    if axis.words:
        return axis.words
    section, key = axis.key.split(".")
    field = SECTIONS[section].model_fields[key]
    listed = [str(word) for word in literals(field.annotation)]
    return (str(field.default), *(word for word in listed if word != str(field.default)))


def literals(kind: Any) -> list[str]:
    """Of a Literal, or of a union with one in it."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [word for part in get_args(kind) for word in literals(part)]


def rows(words: tuple[str, ...]) -> Iterator[list[str]]:
    """Of chips, as wide as a column allows."""
    row: list[str] = []
    for word in words:
        if row and sum(chip_width(w) + BETWEEN for w in (*row, word)) - BETWEEN > COLUMN - 2 * 12:
            yield row
            row = []
        row.append(word)
    yield row


def chip_width(word: str) -> float:
    return LETTER * len(word) + 2 * PADDING


def text(kind: str, x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def column(left: float, axes: list[Axis]) -> tuple[list[str], float]:
    """What is drawn, and where it ends."""
    drawn, y = [], float(TOP)
    for axis in axes:
        drawn += [text("k", left + 12, y + 22, axis.key), text("g", left + 12, y + 39, axis.gloss)]
        y += 48
        words = values(axis)
        for row in rows(words):
            x = left + 12
            for word in row:
                wide, kind = chip_width(word), "d" if word == words[0] else "c"
                drawn.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{wide:g}" height="{CHIP}" rx="6"/>')
                drawn.append(text("v", x + wide / 2, y + 15, word, "middle"))
                x += wide + BETWEEN
            y += LINE
        y += 6
    return drawn, y


def draw() -> str:
    lefts = {name: LEFT + i * (COLUMN + GAP) for i, name in enumerate(COLUMNS)}
    columns = [column(lefts[name], axes) for name, axes in COLUMNS.items()]
    bottom = max(end for _, end in columns) + 6
    height = bottom + 44
    parts = []
    for (name, left), (drawn, _) in zip(lefts.items(), columns):
        parts += [
            f'<rect class="b" x="{left}" y="{TOP - 34}" width="{COLUMN}" height="{bottom - TOP + 34:g}" rx="10"/>'
        ]
        parts += [text("h", left + 12, TOP - 12, name), *drawn]
        if left != LEFT:
            parts.append(f'<path class="a" d="M{left - GAP + 3} {TOP - 17}H{left - 3}"/>')
    first, last = lefts[LOOP[0]] - 9, lefts[LOOP[1]] + COLUMN + 9
    band = (
        f'<rect class="band" x="{first}" y="{TOP - 43}" width="{last - first}" height="{bottom - TOP + 52:g}" rx="14"/>'
    )
    parts += [band, text("g", first + 6, TOP - 52, "each step, in each epoch")]
    parts += [f'<rect class="d" x="{LEFT}" y="{bottom + 18:g}" width="26" height="16" rx="5"/>']
    parts += [text("g", LEFT + 34, bottom + 31, "the default. A recipe is a choice of others, under a paper's name")]
    said = "The axes of fine-tuning: " + "; ".join(
        f"{axis.key}: {', '.join(values(axis))}" for axes in COLUMNS.values() for axis in axes
    )
    size = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}"'
    head = f'<svg {size} role="img" aria-label="{escape(said)}">'
    marker = (
        '<defs><marker id="m" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="m" d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    return "\n".join([head, f"<style>{STYLE}</style>{marker}", *parts, "</svg>"]) + "\n"


def main() -> None:
    Command(__doc__, reads="the values that stages/common/params.py allows", writes=str(PICTURE.name)).parse_args()
    write_text(PICTURE, draw())
    print(f"{PICTURE.relative_to(PICTURE.parents[1])}: {sum(map(len, COLUMNS.values()))} axes")


if __name__ == "__main__":
    main()
