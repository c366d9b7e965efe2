"""docs/results.md, docs/expectations.md, their pictures and the README's table, made from benchmarks/results.

    python -m benchmarks.report --collect           finished cells of this clone into benchmarks/results, then the pages
    python -m benchmarks.report --collect FOLDER    of another clone
    python -m benchmarks.report                     the pages
    python -m benchmarks.report --check             are the pages what the numbers say?

No images and no networks are needed for pages and check. What stands between the marks of a page is kept.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from autolora.common.command_line import Command
from autolora.common.files import read_json, write_text
from benchmarks import _report_cells as cells
from benchmarks import _report_pictures as pictures
from benchmarks import _report_results, _report_users
from benchmarks._report_words import BY_HAND, END, Facts
from pipelines.sweeps import grid

ROOT = Path(__file__).resolve().parent.parent
REPRODUCED = "reproduced.json"
PAGES = {"docs/results.md": _report_results.results, "docs/expectations.md": _report_users.expectations}
MARKED = re.compile(r"(<!-- made by benchmarks\.report -->\n).*?(<!-- end of what is made -->)", re.DOTALL)


def facts_of(root: Path) -> Facts:
    folder = root / cells.RESULTS
    plans = {
        file.stem: grid.load(file.stem, root) for file in sorted((root / grid.PRESETS).glob(f"{cells.PREFIX}*.yaml"))
    }
    again = read_json(folder / REPRODUCED) if (folder / REPRODUCED).is_file() else []
    return Facts(cells.read(folder), plans, again)


def made(root: Path) -> dict[str, str]:
    """Each page as it should be, by file."""
    facts = facts_of(root)
    found = {}
    for name, page in PAGES.items():
        file = root / name
        found[name] = page(facts, file.read_text(encoding="utf-8") if file.is_file() else "")
    readme = (root / "README.md").read_text(encoding="utf-8")
    shown = _report_users.readme(facts)
    found["README.md"] = MARKED.sub(lambda marks: f"{marks[1]}{shown}{shown and chr(10)}{marks[2]}", readme)
    return found


def build(root: Path) -> None:
    for name, text in made(root).items():
        write_text(root / name, text)
    drawn, recipes = pictures_of(root)
    for name, shown in drawn.items():
        if stale(file := root / f"docs/{name}.png", shown, recipes):
            pictures.draw(name, shown, recipes, file)


def pictures_of(root: Path) -> tuple[dict[str, pictures.Panels], list[str]]:
    drawn = pictures.panels(facts_of(root))
    return drawn, pictures.recipes_of(drawn.values())


def stale(file: Path, shown: pictures.Panels, recipes: list[str]) -> bool:
    return not file.is_file() or pictures.noted(file) != pictures.digest(shown, recipes)


def wrong(root: Path) -> list[str]:
    """What is not as the numbers say, a line each."""
    found = []
    for name, text in made(root).items():
        there = (root / name).read_text(encoding="utf-8").splitlines() if (root / name).is_file() else []
        for number, (is_, should) in enumerate(zip([*there, ""], [*text.splitlines(), ""], strict=False), 1):
            if is_ != should:
                found.append(f"{name}, line {number}: {is_!r}; the numbers say {should!r}")
                break
        else:
            if len(there) != len(text.splitlines()):
                found.append(f"{name} has {len(there)} lines; the numbers make {len(text.splitlines())}")
    found += [f"{name}: {said}" for name in (*PAGES, "README.md") if (said := not_read_again(root, name))]
    drawn, recipes = pictures_of(root)
    shown_wrongly = (name for name, shown in drawn.items() if stale(root / f"docs/{name}.png", shown, recipes))
    return [*found, *(f"docs/{name}.png shows other numbers" for name in shown_wrongly)]


def not_read_again(root: Path, name: str) -> str:
    """What a person has written of other numbers than there are."""
    text = (root / name).read_text(encoding="utf-8")
    there = sum(row.attacked() for row in facts_of(root).main)
    read = re.search(r"<!-- read again at (\d+) cells -->", text)
    if not re.search(f"{BY_HAND}\n(?!{END})", text) or (read and int(read[1]) == there):
        return ""
    return (
        f"what is written by hand was read at {read[1] if read else 'no'} cells, and there are {there}: read it again"
    )


def main() -> None:
    parser = Command(
        __doc__,
        reads=f"{cells.RESULTS}, presets/sweeps; with --collect a clone's .work/sweeps",
        writes=f"docs/results.md, docs/expectations.md, docs/results-*.png, README.md; with --collect {cells.RESULTS}",
    )
    parser.add_argument(
        "--collect", nargs="?", type=Path, const=Path("."), metavar="FOLDER", help="take finished cells"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare, change nothing, and fail where a page is another"
    )
    args = parser.parse_args()
    if args.check:
        if problems := wrong(ROOT):
            sys.exit("\n".join([*problems, "`uv run python -m benchmarks.report` makes the pages anew"]))
        return
    if args.collect:
        folder = ROOT / cells.RESULTS
        cells.write(folder, cells.merged(cells.read(folder), cells.collect(args.collect)))
    build(ROOT)


if __name__ == "__main__":
    main()
