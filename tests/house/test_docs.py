"""The docs say what is there: links, commands, names and tables are held against the repository."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from stages.common.params import Params, ThreatSection
from tests.house.imports import AROUND, FLOORS, ROOT
from tests.house.pages import PAGES, TOOLS, commands, read, tracked, without_settings

LOG = ROOT / "docs" / "log"


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page.parent / name) if name else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            wrong.append(target)
    assert not wrong


def test_a_page_of_the_log_is_one_question():
    """Numbered without a gap, in one form, each with its line in the index, under the same title."""
    pages = sorted(LOG.glob("[0-9]*.md"))
    assert [page.name[:2] for page in pages] == [f"{i:02d}" for i in range(1, len(pages) + 1)]
    lines = []
    for page in pages:
        title, _, body = page.read_text(encoding="utf-8").partition("\n")
        assert title.startswith(f"# {page.name[:2]}. "), page
        leads = re.findall(r"^\*\*(\w+)\.\*\*", body, flags=re.MULTILINE)
        assert leads == ["Question", "Tried", "Figures", "Decision"], page
        lines.append(f"- [{page.name[:2]}]({page.name}) {title[6:]}")
    assert [line for line in read("docs/log/README.md").splitlines() if line.startswith("- ")] == lines


# Names of settings that programs hand on through the environment, by their first word, and those without one.
VARIABLE = re.compile(
    r"\b((?:ATEN|AUTOLORA|AWS|CUDA|DASK|GIT|GLOO|GX|HF|LOCAL|MASTER|MINIO|MLFLOW|NVIDIA|OMP|ORT|POSTGRES|PREFECT|RAY"
    r"|TORCHELASTIC|UV|WORKER|WORLD|XDG)_[A-Z0-9_]*[A-Z0-9]|DO_NOT_TRACK|RANK)\b"
)
NO_VARIABLES = {"DVC_YAML", "UV_RUN"}


def test_every_environment_variable_is_in_the_table():
    """What the code, deploy/ and CI name is in docs/environment.md, and nothing that nobody names."""
    listed = {
        name
        for row in re.findall(r"^\| (`[^|]*) \|", read("docs/environment.md"), re.MULTILINE)
        for name in re.findall(r"`([A-Z0-9_]+)`", row)
    }
    code = tracked("*.py", "deploy/*", ".ci/*", "prefect.yaml", "pyproject.toml")
    outside_tests = [file for file in code if file.parts[0] != "tests" and file.suffix not in (".md", ".json")]
    named = {name for file in outside_tests for name in VARIABLE.findall(read(file))} - NO_VARIABLES
    assert named - listed == set(), "add them to docs/environment.md"
    docs = "\n".join(read(page) for page in PAGES if page.name != "environment.md")
    assert {name for name in listed - named if name not in docs} == set(), "nobody reads or names these"


def leaves(section: type[BaseModel], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of params.yaml by its full name."""
    for name, field in section.model_fields.items():
        inner = ThreatSection if name == "threat" and not above else field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, f"{above}{name}.")
        else:
            yield above + name, field


def words_of(annotation: Any) -> set[str]:
    """What a key with a choice may be."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return set(parts)
    return set().union(*(words_of(part) for part in parts))


def test_the_page_of_parameters_is_what_is_read():
    """Each key has one row, with all words that it may be, and a default that means what the code takes."""
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \| ([^|]*) \| \S[^|]* \|$", read("docs/params.md"), re.MULTILINE)
    listed = [(key, *row) for keys, *row in rows for key in re.findall(r"`([^`]+)`", keys)]
    fields = dict(leaves(Params))
    assert [key for key, *_ in listed] == list(dict.fromkeys(key for key, *_ in listed))
    assert {key for key, *_ in listed} == set(fields)
    for key, values, default in listed:
        field = fields[key]
        assert {f"`{word}`" for word in words_of(field.annotation)} <= set(re.findall(r"`[^`]+`", values)), key
        if field.is_required():
            assert default == "required", key
            continue
        allowed = (
            TypeAdapter(Annotated[field.annotation, *field.metadata])
            if field.metadata
            else TypeAdapter(field.annotation)
        )
        assert allowed.validate_python(yaml.safe_load(default.strip("`"))) == field.default, key


def dial(page: str) -> list[str]:
    """The rows of the table of alphas, without indentation."""
    table = re.search(r"^ *\| alpha \|.*\n(?: *\|.*\n)+", read(page), re.MULTILINE)
    assert table, page
    return [line.strip() for line in table[0].splitlines()]


def test_one_dial():
    assert dial("README.md") == dial("docs/export.md")


def test_the_readme_explains_its_words_before_it_uses_them():
    """Each is set in bold where it is explained, and does not occur before."""
    words = re.sub(r"^    .*$", lambda m: " " * len(m[0]), read("README.md"), flags=re.MULTILINE)
    bold = [match for match in re.finditer(r"\*\*(.+?)\*\*", words, re.DOTALL)]
    for term in ("twin", "dial", "branch"):
        explained = next((match for match in bold if re.search(rf"\b{term}\b", match[1])), None)
        first = re.search(rf"\b{term}\b", words)
        assert explained
        assert first
        assert explained.start() <= first.start(), term


def test_the_glossary_holds_words_in_use():
    """One row a word; each word stands in the code or on another page."""
    rows = re.findall(r"^\| (?!word)([^|-][^|]*) \| (\S[^|]*) \|$", read("docs/glossary.md"), re.MULTILINE)
    words = [word for terms, _ in rows for word in terms.split(", ")]
    assert len(words) == len(set(words)) > 40
    texts = [read(file) for file in tracked("*.py", "*.md", "*.yaml", "*.html") if file.name != "glossary.md"]
    everything = " ".join("\n".join(texts).replace("_", " ").split())
    unused = {word for word in words if not re.search(rf"\b{re.escape(word)}s?\b|{word[:-1]}ies\b", everything)}
    assert not unused


def test_the_tree_is_the_disk():
    """docs/architecture.md has one line for every file of the three floors, with a word on what it is."""
    tree = re.search(r"^## The tree\n.*?^```\n(.*?)^```$", read("docs/architecture.md"), re.MULTILINE | re.DOTALL)
    assert tree
    drawn, folders = [], []
    for line in tree[1].splitlines():
        name, _, said = line.strip().partition(" ")
        assert said.strip(), f"what is {name}?"
        depth = (len(line) - len(line.lstrip())) // 2
        if name.endswith("/"):
            folders = [*folders[:depth], name]
        else:
            drawn.append("".join(folders[:depth]) + name)
    disk = {str(file) for file in tracked(*(f"{floor}/" for floor in FLOORS)) if file.name != "__init__.py"}
    assert len(drawn) == len(set(drawn))
    assert set(drawn) - disk == set(), "no longer there"
    assert disk - set(drawn) == set(), "add a line to the tree in docs/architecture.md"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_run_from_a_fresh_shell(page):
    """Programs of the environment stand behind `uv run`; modules, scripts and tests that are named are there."""
    wrong = []
    for command in commands(page):
        words = without_settings(command)
        if len(words) > 1 and words[0] in TOOLS and words[1].startswith("-m") and "." in "".join(words[2:3]):
            wrong.append(f"{command}: uv run is missing")
        if words[:2] == ["uv", "run"]:
            words = without_settings(" ".join(words[2:]))
        for before, word in pairwise(words):
            local = before == "-m" and word.split(".")[0] in (*FLOORS, *AROUND, "tests")
            if local and not any((ROOT / f"{word.replace('.', '/')}{end}").exists() for end in (".py", "/__main__.py")):
                wrong.append(f"{command}: no module {word}")
            script = re.fullmatch(r"(?!http)[\w./-]+\.(py|sh)", word) or re.match(r"tests/[\w/.]+", word)
            if script and not (ROOT / script[0]).exists():
                wrong.append(f"{command}: no {script[0]}")
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_blocks_of_commands_call_uv(page):
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^ {4}(?! |[-*|] )(.+)$", text, re.MULTILINE)
    first = [(line, without_settings(line)) for line in lines]
    wrong = [line for line, words in first if words and words[0] in TOOLS and len(words) > 1]
    assert not wrong


def defined(file: str) -> set[str]:
    """The names of a file's functions, classes, their methods and the names that it assigns."""
    tree = ast.parse(read(file))
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    return names | {
        n.id for node in tree.body for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


EXAMPLE = "stages/summarise.py"  # the one that docs/extending.md adds


@pytest.mark.parametrize("page", [page for page in PAGES if page.parts[:2] != ("docs", "log")], ids=str)
def test_files_and_functions_that_are_named_are_there(page):
    """`stages/merge.py: merge` is a function of that file, `stages/merge.py` a file; the log speaks of its own day."""
    wrong = []
    floors = "|".join((*FLOORS, *AROUND, "tests", "presets"))
    for path, name in re.findall(
        rf"`((?:{floors})/[\w./-]+\.(?:py|md|yaml|json|sh|html|css))(?:: (\w+))?`", read(page)
    ):
        if path != EXAMPLE and (not (ROOT / path).exists() or (name and name not in defined(path))):
            wrong.append(f"{path}: {name}")
    assert not wrong


def test_the_walks_name_what_they_pass():
    text = read("docs/architecture.md")
    for heading, least in (("The way of one image", 15), ("The way of the threat", 8)):
        section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        assert len(re.findall(r"`\w[\w/]+\.py: \w+`", section)) >= least
