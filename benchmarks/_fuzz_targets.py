"""What benchmarks.fuzz feeds with bad input: for each door, what may come in, what is called, which errors may follow.

Inputs are mutations of good ones, so that they come past the first check, and things built to hurt: pickles that call,
YAML that grows, headers that promise terabytes.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

from benchmarks._served import SHAPE, linear_onnx

ROOT = Path(__file__).resolve().parent.parent
MARKER = "PLANTED_MARKER"  # names the file that planted code writes


@dataclass(frozen=True)
class Door:
    """`opened` is called with an input, in an empty folder of its own; `may_raise` becomes one line for the user."""

    inputs: st.SearchStrategy[Any]
    opened: Callable[[Any], Any]
    may_raise: tuple[type[BaseException], ...]


class Payload:
    """A pickle of this calls os.system when it is loaded by a careless reader."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch ${MARKER}",)


# --- mutations -------------------------------------------------------------------------------------------------------

EDITS = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "repeat", "zero", "number"]), st.floats(0, 1), st.binary(max_size=12)
)


def edited(content: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """Bit flips, cuts, insertions, repetitions, zeros, and numbers that are too large where a length may stand."""
    data = bytearray(content)
    for kind, where, extra in edits:
        at = int(where * max(0, len(data) - 1))
        if kind == "flip" and data:
            data[at] ^= 1 << (len(extra) % 8)
        elif kind == "cut":
            del data[at : at + 1 + len(extra) ** 3]
        elif kind == "insert":
            data[at:at] = extra
        elif kind == "repeat":
            data[at:at] = data[at : at + 32] * min(len(extra) + 1, 8)
        elif kind == "zero":
            data[at : at + len(extra)] = bytes(len(data[at : at + len(extra)]))
        elif kind == "number":
            data[at : at + 4] = struct.pack("<I", (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x10000000)[len(extra) % 4])
    return bytes(data)


def mutated(seeds: Callable[[], list[bytes]]) -> st.SearchStrategy[bytes]:
    """The good ones are made at the first draw, not when this module is read."""
    numbers = st.integers(0, 10_000)
    edits = st.lists(EDITS, min_size=0, max_size=6)
    return st.builds(lambda n, e: edited(seeds()[n % len(seeds())], e), numbers, edits) | st.binary(max_size=200)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["1e400", "8/0", "-1/255", ".inf", "../../etc/passwd", "\0", "a" * 5000, "null", "0x10", "\ud7ff"]
    )
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
HOSTILE_YAML = [
    "!!python/object/apply:os.system ['touch $PLANTED_MARKER']",
    "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{c}: &{c} [{','.join(['*' + b] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi")),
    "[" * 2000,
    "a: " * 500,
    "&a [*a]",
    "{? {? {? x}}}",
    "- " * 1000,
    "seed: " + "9" * 5000,
    "<<: [*x]",
    "%YAML 9.9\n---\n",
    "2026-99-99",
    "seed: 1:2:3:4",
]


def replaced(tree: Any, path: list[int], value: Any) -> Any:
    """A copy in which what stands at the path is something else, or has something beside it."""
    if isinstance(tree, dict) and tree and path:
        key = sorted(tree, key=str)[path[0] % len(tree)]
        return {**tree, key: replaced(tree[key], path[1:], value)}
    if isinstance(tree, list) and tree and path:
        at = path[0] % len(tree)
        return [*tree[:at], replaced(tree[at], path[1:], value), *tree[at + 1 :]]
    return value


def trees(seeds: list[Any]) -> st.SearchStrategy[Any]:
    change = st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=3), VALUES)

    def hurt(number: int, changes: list[tuple[list[int], Any]]) -> Any:
        tree = seeds[number % len(seeds)]
        for path, value in changes:
            tree = replaced(tree, path, value)
        return tree

    return st.builds(hurt, st.integers(0, 1000), st.lists(change, min_size=1, max_size=3))


def yamls(seeds: list[Any]) -> st.SearchStrategy[bytes]:
    """Texts of good documents, of documents with a value changed, and of hostile ones."""
    texts = st.builds(lambda tree: yaml.dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"), trees(seeds))
    good = [yaml.safe_dump(seed).encode() for seed in seeds]
    hostile = st.sampled_from([text.encode() for text in HOSTILE_YAML])
    return texts | texts | texts | mutated(lambda: good) | hostile


# --- params.yaml, sweep grids, parameters of flows -------------------------------------------------------------------


@cache
def known_params() -> list[Any]:
    return [
        yaml.safe_load(file.read_text()) for file in [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]
    ]


@cache
def known_grids() -> list[Any]:
    return [yaml.safe_load(file.read_text()) for file in sorted((ROOT / "presets/sweeps").glob("*.yaml"))]


def open_params(content: bytes) -> None:
    from stages.common.views import VIEWS, load

    Path("params.yaml").write_bytes(content)
    for view in VIEWS.values():
        load(view).as_dict()


def open_grid(content: bytes) -> None:
    from pipelines.sweeps import grid

    Path("fuzz.yaml").write_bytes(content)
    for cell in grid.load("fuzz.yaml", Path()).cells[:100]:
        cell.name()


def open_flow(given: dict[str, Any]) -> None:
    """What rebuild, sweep and the deployments take from whoever starts a run."""
    from pipelines.workspace import commits, params_file, worktree
    from pipelines.workspace import dvc_graph as graph

    overrides = params_file.parse_overrides(given["overrides"])
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in overrides.items():
        params_file.put(params, key, value, allow_new=True)
    worktree.slug(given["name"])
    params_file.use_preset(Path(), given["preset"])
    commits.resolve(ROOT, given["revision"])
    graph.stages(ROOT, given["stages"])


KEYS = st.sampled_from(
    ["finetune.epochs", "threat", "seed", "data.path", "a.b.c", "", ".", "..", "threat.eps.x", "seed.x"]
)
FLOWS = st.fixed_dictionaries(
    {
        "overrides": st.lists(
            st.builds(
                lambda k, v: f"{k}={v}",
                KEYS | st.text(max_size=8),
                st.text(max_size=12) | st.sampled_from(HOSTILE_YAML),
            )
            | st.text(max_size=10),
            max_size=2,
        ),
        "name": st.text(max_size=20),
        "preset": st.none()
        | st.sampled_from(["presets/dtd.yaml", "/etc/passwd", "../x", "", ".", "a\0b"])
        | st.text(max_size=8),
        "revision": st.sampled_from(["HEAD", "-h", "--upload-pack=touch $PLANTED_MARKER", "HEAD:x", "a\0b", "@{-1}"]),
        "stages": st.lists(
            st.sampled_from(["merge", "evaluate", "../x", "--help", ""]) | st.text(max_size=6), max_size=2
        ),
    }
)

# --- data ------------------------------------------------------------------------------------------------------------


def table_text(rows: list[list[str]], header: list[str], join: str) -> bytes:
    return "\n".join(join.join(row) for row in [header, *rows]).encode("utf-8", "surrogatepass")


CELLS = st.text(max_size=12) | st.sampled_from(
    ["cat/1.png", "../../etc/passwd", "=cmd|' /C calc'!A0", "train", "\0", '"', "a" * 200_000]
)
TABLES = st.builds(
    table_text,
    st.lists(st.lists(CELLS, max_size=4), max_size=6),
    st.permutations(["path", "label", "split"]) | st.lists(CELLS, max_size=3),
    st.sampled_from([",", ",", ";", "\t"]),
)
MANIFEST = (
    "path,sha256,phash,label,split,width,height,mode,bytes,mean,std,near_duplicate,reason\n"
    + "".join(
        f"{n}.png,{n:064x},{n:016x},{n % 3},{('train', 'val', 'test')[n % 3]},16,16,L,99,0.5,0.2,,\n" for n in range(9)
    )
).encode()


def open_table(content: bytes) -> None:
    from stages.dataset import folders

    Path("raw").mkdir(exist_ok=True)
    Path("raw/images.csv").write_bytes(content)
    list(folders.table(Path("raw")))


def open_manifest(content: bytes) -> None:
    """As data.reference_manifest names it: a file of somebody else's."""
    from stages import validate
    from stages.dataset import quality

    Path("old.csv").write_bytes(content)
    table = validate._reference("old.csv")
    Path("now.csv").write_bytes(MANIFEST)
    now = quality.read_manifest("now.csv")
    quality.drift(now, table)
    quality.changed_classes(now, table)


@cache
def known_images() -> list[bytes]:
    from PIL import Image

    found, draw = [], np.random.default_rng(0)
    for kind, mode in [
        ("JPEG", "RGB"),
        ("PNG", "RGBA"),
        ("GIF", "P"),
        ("BMP", "RGB"),
        ("TIFF", "L"),
        ("WEBP", "RGB"),
        ("PPM", "RGB"),
    ]:
        image = Image.fromarray(draw.integers(0, 256, (24, 20, 3), dtype=np.uint8)).convert(mode)
        image.save(file := io.BytesIO(), kind)
        found.append(file.getvalue())
    Image.fromarray(draw.integers(0, 60000, (20, 20), dtype=np.uint16)).save(file := io.BytesIO(), "PNG")
    return [*found, file.getvalue()]


def open_image(content: bytes) -> None:
    from stages.dataset import decode

    with decode.silent():
        image, _ = decode.decode(content, 16)
        decode.decode_whole(content, 16)
    assert image.shape == (3, 16, 16), image.shape


# --- weights ---------------------------------------------------------------------------------------------------------


@cache
def known_checkpoints() -> list[bytes]:
    import torch

    state = {"fc.weight": torch.ones(3, 4), "fc.bias": torch.zeros(3), "n": torch.tensor(1)}
    contents: list[Any] = [
        state,
        {"state_dict": state, "epoch": 3},
        {"model": state, "hook": Payload()},
        Payload(),
        [state],
    ]
    found = []
    for content in contents:
        for options in ({}, {"_use_new_zipfile_serialization": False}):
            torch.save(content, file := io.BytesIO(), **options)
            found.append(file.getvalue())
    return [*found, pickle.dumps(Payload()), pickle.dumps({"a": 1})]


def open_checkpoint(content: bytes) -> None:
    from autolora.backbones.checkpoints import fit_state, read_checkpoint

    Path("weights.pt").write_bytes(content)
    import torch

    fit_state(read_checkpoint("weights.pt").state, {"fc.weight": torch.ones(3, 4), "fc.bias": torch.zeros(3)})


@cache
def known_classifier() -> bytes:
    from autolora.backbones.classifier import Spec, build, save_classifier

    options = {"channels": [4, 4, 4, 4], "stem_width": 4}
    save_classifier(build(Spec("resnet10t", 3, 16, "nopool", options), seed=0), "made.safetensors")
    return Path("made.safetensors").read_bytes()


def with_header(header: Any, promised: int | None) -> bytes:
    """A safetensors file with this header before the good file's tensors; the length may be another."""
    content = known_classifier()
    size = struct.unpack("<Q", content[:8])[0]
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text) if promised is None else promised) + text + content[8 + size :]


@cache
def known_header() -> dict[str, Any]:
    content = known_classifier()
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


def hurt_header(path: list[int], value: Any, arch: str | None) -> Any:
    header = known_header()
    if arch is not None:
        notes = json.loads(header["__metadata__"]["autolora"])
        notes["spec"] = json.dumps(json.loads(notes["spec"]) | {"arch": arch})
        return header | {"__metadata__": {"autolora": json.dumps(notes)}}
    return replaced(header, path, value)


ARCHES = st.none() | st.sampled_from(
    [
        "os:system",
        "subprocess:Popen",
        "antigravity:x",
        "benchmarks._fuzz_planted:Net",
        "torchvision:nothing",
        "x" * 300,
        "hf-hub:a/b",
        "",
    ]
)
HEADERS = st.builds(hurt_header, st.lists(st.integers(0, 200), min_size=1, max_size=3), VALUES, ARCHES)
SAFETENSORS = st.builds(with_header, HEADERS | st.binary(max_size=60), st.none() | st.integers(0, 2**64 - 1)) | mutated(
    lambda: [known_classifier()]
)


def open_safetensors(content: bytes) -> None:
    from autolora.backbones.checkpoints import read_checkpoint
    from autolora.backbones.classifier import load_classifier

    Path("weights.safetensors").write_bytes(content)
    errors = []
    for reader in (read_checkpoint, load_classifier):
        try:
            reader("weights.safetensors")
        except (ValueError, FileNotFoundError) as error:
            errors.append(error)
    if errors:
        raise errors[0]


@cache
def known_onnx() -> list[bytes]:
    linear_onnx(Path("made.onnx"))
    return [Path("made.onnx").read_bytes()]


def open_onnx(content: bytes) -> None:
    """As `python -m autolora.export --show` and deployment open a file."""
    from autolora.export import runtime
    from autolora.export.write import show

    Path("model.onnx").write_bytes(content)
    show("model.onnx")
    session = runtime.open_session("model.onnx", threads=1)
    if runtime.image_shape(session) == SHAPE:
        runtime.logits(session, np.zeros((2, *SHAPE), np.float32))


@cache
def doors() -> dict[str, Door]:
    from autolora.common.errors import BadArgument
    from pipelines.rebuild import REFUSED
    from pipelines.sweeps.grid import GridError
    from stages.common.runner import StageError
    from stages.dataset.decode import BadImage

    stage = (StageError, BadArgument, ValueError, FileNotFoundError)  # what stages.common.runner.main turns into a line
    return {
        "params.yaml": Door(yamls(known_params()), open_params, stage),
        "tables of images": Door(TABLES | mutated(lambda: [b"path,label\na.png,cat\nb.png,dog\n"]), open_table, stage),
        "manifests": Door(mutated(lambda: [MANIFEST]), open_manifest, stage),
        "images": Door(mutated(known_images), open_image, (BadImage,)),
        "checkpoints": Door(mutated(known_checkpoints), open_checkpoint, (ValueError, FileNotFoundError)),
        "safetensors headers": Door(SAFETENSORS, open_safetensors, (ValueError, FileNotFoundError)),
        "ONNX files": Door(mutated(known_onnx), open_onnx, (ValueError, OSError)),
        "sweep grids": Door(yamls(known_grids()), open_grid, (GridError,)),
        "flow parameters": Door(FLOWS, open_flow, REFUSED),
    }
