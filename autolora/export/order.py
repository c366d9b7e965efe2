"""Nodes in the order in which they can be computed: converters append theirs at the end, and onnxruntime sorts."""

from __future__ import annotations

from collections.abc import Iterable

import onnx


def put_in_order(graph: onnx.GraphProto) -> None:
    """In place; a graph that is in order stays as it is."""
    if is_in_order(graph):
        return
    nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in _order(graph)]
    del graph.node[:]
    graph.node.extend(nodes)


def is_in_order(graph: onnx.GraphProto) -> bool:
    return _order(graph) == list(range(len(graph.node)))


def _order(graph: onnx.GraphProto) -> list[int]:
    """Each node after the makers of what it takes, and otherwise as they stand; a circle stays one."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [[makers[name] for name in _taken(node) if name in makers] for node in graph.node]
    found: list[int] = []
    seen: set[int] = set()
    for first in range(len(needs)):
        waiting = [] if first in seen else [(first, iter(needs[first]))]
        seen.add(first)
        while waiting:
            node, others = waiting[-1]
            before = next((i for i in others if i not in seen), None)
            if before is None:
                found.append(node)
                waiting.pop()
            else:
                seen.add(before)
                waiting.append((before, iter(needs[before])))
    return found


def _taken(node: onnx.NodeProto) -> Iterable[str]:
    """Its inputs, and those of the graphs in it, which take theirs from around them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            yield from (output.name for output in graph.output)
            for inside in graph.node:
                yield from _taken(inside)
