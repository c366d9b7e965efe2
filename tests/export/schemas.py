"""The servers' own schemas, out of packages of theirs that are installed for nothing else and never imported whole.

Triton's protobuf schema lies in tritonclient. KServe's is spread over the models that it generates from the same source
as its CRD, one class for each type; they are read, not run, and Kubernetes' types are kubernetes-validate's.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import kubernetes_validate
from referencing import Registry
from referencing.jsonschema import DRAFT202012

KUBERNETES = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / "v1.33.0-local-strict"
DEFINITIONS = "https://kubernetes.io/api/_definitions.json"
PLAIN = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


def package(name: str) -> Path:
    """Where it lies. No skip: `uv sync` installs it (group dev)."""
    found = importlib.util.find_spec(name)
    assert found, f"{name} is missing: run `uv sync`"
    return Path(next(iter(found.submodule_search_locations or [])))


def triton() -> ModuleType:
    """model_config_pb2, without the client around it, which would want gRPC."""
    path = package("tritonclient") / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kserve() -> jsonschema.Draft202012Validator:
    """Of an InferenceService; a field that no type knows is refused, as the API server does for `kubectl apply`."""
    schema = {"$ref": "#/$defs/V1beta1InferenceService", "$defs": dict(_types("V1beta1InferenceService"))}
    definitions = json.loads((KUBERNETES / "_definitions.json").read_text())
    registry = Registry().with_resource(DEFINITIONS, DRAFT202012.create_resource(definitions))
    return jsonschema.Draft202012Validator(schema, registry=registry)


def _types(root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The type and all that it is made of, each with its JSON schema."""
    files = {re.sub("_", "", path.stem): path for path in (package("kserve") / "models").glob("v1*.py")}
    waiting, seen = [root], {root}
    while waiting:
        name = waiting.pop()
        if name.lower() not in files:  # quantities ("2Gi", 1): text or a number, no class
            yield name, {"type": ["string", "number"]}
            continue
        tree = ast.parse(files[name.lower()].read_text())
        (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
        said = {n.targets[0].id: ast.literal_eval(n.value) for n in body if isinstance(n, ast.Assign)}  # type: ignore[attr-defined]
        types = {said["attribute_map"][key]: kind for key, kind in said["openapi_types"].items()}
        yield (
            name,
            {
                "type": "object",
                "properties": {key: _schema(kind) for key, kind in types.items()},
                "additionalProperties": False,
            },
        )
        used = {word for kind in types.values() for word in re.findall(r"V1(?:alpha1|beta1)\w+", kind)}
        waiting += sorted(used - seen)
        seen |= used


def _schema(kind: str) -> dict[str, Any]:
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": _schema(inner[1])}
    if inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": _schema(inner[1])}
    if kind in PLAIN:
        return {"type": PLAIN[kind]}
    if kind.startswith(("V1beta1", "V1alpha1")):
        return {"$ref": f"#/$defs/{kind}"}
    part = "apimachinery.pkg.apis.meta" if kind.endswith("Meta") else "api.core"
    return {"$ref": f"{DEFINITIONS}#/$defs/io.k8s.{part}.v1.{kind.removeprefix('V1')}"} if kind[:2] == "V1" else {}
