"""DVC's graph, read and never copied: the stages in order, what is stale and why, and what dvc.yaml says about a stage.

    stages(".")                  all, in the order in which they must run
    stages(".", ["merge"])       merge and everything that it is made from
    stale(".", "merge")          [] or the reasons

What Prefect should know of a stage stands in its `meta` in dvc.yaml, which DVC ignores:

    meta: {gpu: true, minutes: 600, retries: 2}
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class GraphError(ValueError):
    pass


@dataclass(frozen=True)
class Stage:
    name: str
    gpu: bool = False  # holds a GPU slot while it runs
    minutes: float = 24 * 60  # after that it hangs, and is killed with its children
    retries: int = 2  # for what a second try may mend: a killed process, a full GPU, a network that was away


@contextmanager
def opened(folder: str | Path) -> Iterator[Any]:
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        repo = Repo(str(folder))
    except NotDvcRepoError:
        raise GraphError(
            f"{Path(folder).resolve()} is not a DVC project: run in the folder that holds dvc.yaml"
        ) from None
    with repo:
        yield repo


def _graph(repo: Any) -> Any:
    """An arrow from a stage to what it is made from. DVC fills dvc.yaml in from params.yaml, which may be anything."""
    from dvc.exceptions import DvcException

    try:
        return repo.index.graph
    except DvcException as error:
        said = " ".join(str(error).split())[:300]
        raise GraphError(f"dvc.yaml and params.yaml make no graph of stages: {said}") from None


def stages(folder: str | Path, wanted: Sequence[str] = ()) -> list[Stage]:
    """The wanted stages and all that they are made from, upstream first."""
    import networkx

    with opened(folder) as repo:
        graph = _graph(repo)
        order = [node for node in networkx.dfs_postorder_nodes(graph) if node.is_data_source is False]
        names = [_name(node) for node in order]
        _refuse_unknown(wanted, names)
        needed = {m for n in order if _name(n) in wanted for m in (n, *networkx.descendants(graph, n))}
        return [_stage(node) for node in order if not wanted or node in needed]


def _refuse_unknown(wanted: Sequence[str], names: Sequence[str]) -> None:
    for name in wanted:
        if name not in names:
            raise GraphError(f"there is no stage {name!r} in dvc.yaml: the stages are {', '.join(names)}")


def _name(node: Any) -> str:
    return str(node.name)


def _stage(node: Any) -> Stage:
    try:
        return Stage(_name(node), **(node.meta or {}))
    except TypeError:
        raise GraphError(
            f"dvc.yaml: meta of stage {_name(node)} is {node.meta!r}: allowed are gpu, minutes, retries"
        ) from None


def declared(folder: str | Path, wanted: Sequence[str]) -> set[str]:
    """The keys of params.yaml that these stages, or what they are made from, depend on."""
    import networkx

    with opened(folder) as repo:
        graph = repo.index.graph
        nodes = [node for node in graph if not node.is_data_source and _name(node) in wanted]
        needed = {m for n in nodes for m in (n, *networkx.descendants(graph, n)) if not m.is_data_source}
        return {key for node in needed for dep in node.params for key in dep.params}


def stale(folder: str | Path, stage: str) -> list[str]:
    """Why DVC would run this stage now: ["data/raw: modified", ...]; empty when it is up to date."""
    with opened(folder) as repo:
        found = repo.status(targets=[os.path.join(repo.root_dir, f"dvc.yaml:{stage}")])
    here = os.path.relpath(folder) + os.sep  # DVC names files as seen from where this process runs
    return [reason.replace(here, "") for entries in found.values() for entry in entries for reason in _reasons(entry)]


def _reasons(entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return [str(entry)]  # "changed command", "always changed"
    return [f"{path}: {_flat(what)}" for changes in entry.values() for path, what in _items(changes)]


def _items(changes: Any) -> list[tuple[str, Any]]:
    return list(changes.items()) if isinstance(changes, dict) else [(str(changes), "changed")]


def _flat(what: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in what.items()) if isinstance(what, dict) else str(what)
