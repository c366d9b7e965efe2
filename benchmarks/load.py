"""Sizes far beyond the default's: time and memory of each, whether every answer is right, and how the cost grows.

    python -m benchmarks.load                               everything, about half an hour on two cores
    python -m benchmarks.load --only "rows of a manifest" --largest 100000
    python -m benchmarks.load --list

Each size runs in a process of its own. Memory is the peak of that process, or of the server where there is one. The
plot (--plot) has one panel a case, on logarithmic axes: a straight line of slope 1 is linear growth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autolora.common.command_line import Command
from autolora.common.files import read_json, write_json
from benchmarks._load_cases import CASES
from stages.common.runner import this_machine

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1800  # seconds of one size


def one(name: str, size: int) -> dict[str, Any]:
    """In a process of its own, which says what it did in a file."""
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        command = [sys.executable, "-m", "benchmarks.load", "--only", name, "--child", folder, "--largest", str(size)]
        began = time.monotonic()
        try:
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return {"size": size, "right": False, "note": f"no end within {LIMIT} s"}
        record = Path(folder) / "done.json"
        if not record.exists():
            return {"size": size, "right": False, "note": f"ended with {ended.returncode}: {ended.stderr[-800:]}"}
        return {"size": size, "with_input_s": round(time.monotonic() - began, 1), **read_json(record)}


def child(name: str, size: int, folder: Path) -> None:
    os.environ["AUTOLORA_WORK"] = str(folder / ".work")
    os.chdir(folder)
    done = asdict(CASES[name][0](size))
    own, others = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    done["megabytes"] = round(done["megabytes"] or max(own, others))
    done["seconds"] = round(done["seconds"], 4)
    (folder / "done.json").write_text(json.dumps(done))


def slope(points: list[dict[str, Any]]) -> float | None:
    """Between the last two sizes: 1 is linear."""
    told = [(p["size"], p["seconds"]) for p in points if p.get("seconds")]
    if len(told) < 2:
        return None
    (a, s), (b, t) = told[-2:]
    return round(math.log(t / s) / math.log(b / a), 2)


def draw(records: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, panels = plt.subplots(2, -(-len(records) // 2), figsize=(3.1 * -(-len(records) // 2), 5.4), squeeze=False)
    for record, axes in zip(records, panels.flat):
        points = [p for p in record["points"] if p.get("seconds")]
        sizes = [p["size"] for p in points]
        axes.loglog(sizes, [p["seconds"] for p in points], "o-", color="#1f6f8b", label="seconds")
        axes.loglog(sizes, [p["megabytes"] for p in points], "s--", color="#b5651d", label="MB")
        axes.set_title(f"{record['case']}\nslope {record['slope']}", fontsize=9)
        axes.tick_params(labelsize=7)
        for each in (axes.xaxis, axes.yaxis):  # powers of ten are enough
            each.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(records) :]:
        axes.set_axis_off()
    panels[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main(arguments: list[str] | None = None) -> int:
    parser = Command(
        __doc__,
        reads="nothing: the inputs are made up",
        writes="--results (JSON), --plot (PNG), and a line on stdout for each size",
    )
    parser.add_argument("--only", choices=list(CASES), metavar="CASE")
    parser.add_argument("--largest", type=int, help="leave out larger sizes")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/load.json")
    parser.add_argument("--plot", type=Path, help="a .png")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.list:
        print(*(f"{name}: {', '.join(map(str, sizes))}" for name, (_, sizes) in CASES.items()), sep="\n")
        return 0
    if chosen.child:
        child(chosen.only, chosen.largest, chosen.child)
        return 0
    records = read_json(chosen.results)["cases"] if chosen.results.exists() else []
    records = [record for record in records if record["case"] != chosen.only]
    if records and not chosen.only:
        print(f"{chosen.results} has {len(records)} of {len(CASES)} cases: not measured again")
    known = {record["case"] for record in records}
    for name in [chosen.only] if chosen.only else [name for name in CASES if name not in known]:
        points = []
        for size in CASES[name][1]:
            if chosen.largest is None or size <= chosen.largest:
                points.append(one(name, size))
                print(f"{name} {size}: {points[-1]}", flush=True)
        records.append({"case": name, "slope": slope(points), "points": points})
        machine = this_machine()
        write_json(chosen.results, {"command": "python -m benchmarks.load", "machine": machine, "cases": records})
    if chosen.plot:
        draw(records, chosen.plot)
    wrong = [f"{r['case']} {p['size']}" for r in records for p in r["points"] if not p["right"]]
    print(f"wrong or without an end: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
