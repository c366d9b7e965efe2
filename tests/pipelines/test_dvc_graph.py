"""The graph is DVC's own: order, what a stage is made from, why it is stale, and what dvc.yaml says of it."""

from __future__ import annotations

import pytest

from pipelines.workspace import dvc_graph as graph
from tests.pipelines.conftest import ROOT, dvc


@pytest.mark.slow
def test_order_and_staleness_are_dvc_s(project):
    """Against what `dvc repro` itself runs."""
    assert any("prepared.txt: deleted" in reason for reason in graph.stale(project, "prepare"))
    ran = [line.split("'")[1] for line in dvc(project, "repro").splitlines() if line.startswith("Running stage")]
    assert [stage.name for stage in graph.stages(project)] == ran == ["prepare", "train", "report"]
    assert [graph.stale(project, name) for name in ran] == [[], [], []]
    (project / "raw" / "b.txt").write_text("one more")
    assert graph.stale(project, "prepare") == ["raw: modified"]
    assert graph.stale(project, "train") == []


def test_wanted_stages_bring_what_they_are_made_from(project):
    assert [stage.name for stage in graph.stages(project, ["train"])] == ["prepare", "train"]


def test_meta_is_read(project):
    train = graph.stages(project)[1]
    assert (train.gpu, train.minutes, train.retries) == (True, 2, 1)


def test_unknown_stage_names_those_that_exist(project):
    with pytest.raises(graph.GraphError, match=r"no stage 'trian'.*prepare, train, report"):
        graph.stages(project, ["trian"])


def test_unknown_meta_is_refused(project):
    file = project / "dvc.yaml"
    file.write_text(file.read_text().replace("minutes: 2", "hours: 2"))
    with pytest.raises(graph.GraphError, match=r"meta of stage train.*hours.*allowed are gpu, minutes, retries"):
        graph.stages(project)


def test_no_project(tmp_path):
    with pytest.raises(graph.GraphError, match="not a DVC project"):
        graph.stages(tmp_path)


def test_our_own_graph_is_readable():
    names = [stage.name for stage in graph.stages(ROOT, ["register"])]
    assert names == ["prepare", "validate", "finetune", "merge", "evaluate", "export", "register"]
