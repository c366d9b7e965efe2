"""The run while training: live where there is a server, free of charge where there is none, whole in the end."""

from __future__ import annotations

import csv
import json
import socket
import time
from types import SimpleNamespace

import pytest

from autolora.common.files import read_json
from stages.tracking import live_run, mirror
from stages.tracking.client import flat, numbers
from stages.tracking.live_run import LIVE_EPOCHS, LIVE_RECORD, find_live_run, live
from stages.tracking.mirror import missed
from tests.registry.synthetic import make_run


def rows_of(folder):
    with open(folder / "reports/training.csv") as file:
        return list(csv.DictReader(file))


def train(work, rows, crash_after=None, seconds=0.0):
    work.mkdir(parents=True, exist_ok=True)
    with live(work, {"finetune": {"epochs": 60}}, 60) as on_epoch:
        for row in rows:
            known = {k: v if k == "event" else float(v) for k, v in row.items() if v != ""}
            on_epoch(known | {"epoch": int(row["epoch"])})
            time.sleep(seconds)
            if int(row["epoch"]) == crash_after:
                raise KeyboardInterrupt


def test_epochs_rates_and_lambdas_arrive_with_an_eta_and_system_metrics(store, client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")
    rows = rows_of(make_run(tmp_path / "a"))[:5]
    work = tmp_path / "work/finetune/key"
    train(work, rows, seconds=0.3)
    run = client.get_run(read_json(work / LIVE_RECORD)["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"finetune.epochs": "60"}
    for name in ("lr", "lambda1", "lambda2", "val_robust"):
        history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
        assert history == pytest.approx({int(r["epoch"]): float(r[name]) for r in rows})
    assert run.data.metrics["eta_minutes"] >= 0
    assert any(key.startswith("system/") for key in run.data.metrics)


def test_register_finds_the_live_run_and_writes_what_it_missed(registered, client, tmp_path, monkeypatch):
    path = make_run(tmp_path / "a")
    monkeypatch.setenv("AUTOLORA_WORK", str(tmp_path / "work"))
    work = tmp_path / "work/finetune/key"
    log_epochs = live_run.log_epochs
    monkeypatch.setattr(  # the server loses the first three epochs
        live_run, "log_epochs", lambda m, run, records: log_epochs(m, run, [r for r in records if r["epoch"] > 3])
    )
    train(work, rows_of(path))
    monkeypatch.undo()
    monkeypatch.setenv("AUTOLORA_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", read_json(work / LIVE_RECORD)["tracking_uri"])
    run_id = read_json(work / LIVE_RECORD)["run_id"]
    assert len(client.get_metric_history(run_id, "val_robust")) == 57
    assert registered("a")["run_id"] == run_id
    history = client.get_metric_history(run_id, "val_robust")
    assert sorted(m.step for m in history) == list(range(1, 61))  # nothing is missing, nothing is there twice


def test_a_method_that_is_not_attacked_while_it_trains_is_not_written_twice(store, client, tmp_path):
    rows, work = rows_of(make_run(tmp_path / "a"))[:5], tmp_path / "work/finetune/key"
    rows = [row | {"val_robust": ""} for row in rows]
    train(work, rows[:3])
    assert missed(client, read_json(work / LIVE_RECORD)["run_id"], rows) == rows[3:]


def test_figures_of_an_attempt_that_diverged_are_written_anew(store, client, tmp_path):
    """While the server was away training began again: of its first epochs it has those of the attempt before."""
    rows, work = rows_of(make_run(tmp_path / "a"))[:3], tmp_path / "work/finetune/key"
    train(work, [row | {"loss": "90.0"} for row in rows[:2]] + rows[2:])
    run_id = read_json(work / LIVE_RECORD)["run_id"]
    again = missed(client, run_id, rows)
    assert again == rows[:2]
    live_run.log_epochs(live_run.connect(), run_id, again)
    assert missed(client, run_id, rows) == []


def test_a_machine_whose_figures_cannot_be_read_still_tells_of_its_epochs(store, client, tmp_path, monkeypatch):
    def broken(run_id):
        raise RuntimeError("the driver does not answer")

    monkeypatch.setattr(live_run, "_system_metrics", broken)
    rows, work = rows_of(make_run(tmp_path / "a"))[:3], tmp_path / "work/finetune/key"
    train(work, rows)
    run_id = read_json(work / LIVE_RECORD)["run_id"]
    assert len(client.get_metric_history(run_id, "loss")) == 3
    assert client.get_run(run_id).info.status == "FINISHED"


def test_an_interrupted_run_is_marked_and_gone_on_with(store, client, tmp_path):
    rows, work = rows_of(make_run(tmp_path / "a")), tmp_path / "work/finetune/key"
    with pytest.raises(KeyboardInterrupt):
        train(work, rows[:3], crash_after=3)
    first = read_json(work / LIVE_RECORD)["run_id"]
    assert client.get_run(first).info.status == "FAILED"
    train(work, rows[3:])
    assert read_json(work / LIVE_RECORD)["run_id"] == first
    assert client.get_run(first).info.status == "FINISHED"
    assert len(client.get_metric_history(first, "lr")) == 60
    assert find_live_run(rows, work.parent) == first


def test_another_training_is_not_mistaken_for_this_one(store, client, tmp_path):
    rows, work = rows_of(make_run(tmp_path / "a")), tmp_path / "work/finetune/key"
    train(work, rows)
    other = [row | {"val_robust": "0.1"} if row["epoch"] == "60" else row for row in rows]
    assert find_live_run(other, work.parent) is None


def test_a_server_that_is_away_costs_training_nothing(tmp_path, monkeypatch):
    """Accepts connections and never answers: the worst kind of away."""
    rows, work = rows_of(make_run(tmp_path / "a")), tmp_path / "work/finetune/key"
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(5)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setattr("stages.tracking.live_run.GOODBYE_SECONDS", 0.2)
        waited = []
        work.mkdir(parents=True)
        with live(work, {}, 60) as on_epoch:
            for row in rows:
                start = time.perf_counter()
                on_epoch(row)
                waited.append(time.perf_counter() - start)
    assert not (work / LIVE_RECORD).exists()
    assert sorted(waited)[30] < 1  # the callback never waits for a socket (their timeouts are 5 s and more)
    epochs = [json.loads(line)["epoch"] for line in (work / LIVE_EPOCHS).read_text().splitlines()]
    assert epochs == [row["epoch"] for row in rows]


def test_only_the_first_of_several_processes_tracks(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with live(tmp_path, {}, 60) as on_epoch:
        on_epoch({"epoch": 1, "lr": 0.1})
    assert list(tmp_path.iterdir()) == []


def test_only_finite_numbers_become_metrics():
    record = {"epoch": 3, "lr": "0.5", "event": "best", "loss": float("nan"), "gone": None, "val_robust": 1}
    assert numbers(record) == {"lr": 0.5, "val_robust": 1.0}
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


@pytest.mark.parametrize(
    ("tags", "versions", "usable"),
    [
        ({}, 0, True),
        ({"content_key": "k"}, 0, True),
        ({"content_key": "k"}, 1, False),
        ({"content_key": "l"}, 0, False),
    ],
)
def test_a_run_holds_the_evidence_of_one_version(tags, versions, usable):
    """Another name with the same content gets a run of its own: the first one's files are signed."""
    run = SimpleNamespace(info=SimpleNamespace(lifecycle_stage="active"), data=SimpleNamespace(tags=tags))
    client = SimpleNamespace(get_run=lambda run_id: run, search_model_versions=lambda where: [where] * versions)
    assert mirror._usable(client, "r", "k") is usable
