"""The help of a stage: its docstring, and below it what dvc.yaml and the environment say of it.

if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main(prepare)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from autolora.common.command_line import Command, line

PIPELINE = Path(__file__).resolve().parents[2] / "dvc.yaml"
PROCESSES = "AUTOLORA_PROCESSES  how many processes share the work (default: one for each GPU, or for each core)"
RECORD = "MLFLOW_TRACKING_URI  the server that is told of the run (default: sqlite:///mlflow.db in this folder)"
TOLD_BY_ENVIRONMENT = {
    "prepare": [PROCESSES],
    "finetune": [PROCESSES, RECORD],
    "evaluate": [PROCESSES],
    "register": [RECORD, "MLFLOW_EXPERIMENT_NAME  where runs are listed there (default: autolora)"],
}
ALWAYS = [
    "AUTOLORA_WORK  where progress is kept (default: .work)",
    "AUTOLORA_TRACEBACK=1  show the traceback of an error, too",
]


def takes_no_arguments(doc: str | None) -> None:
    """A stage is told everything by params.yaml: it has a help, and refuses all else."""
    command = Command(doc)
    command.epilog = epilog(command.prog.rpartition(".")[2])
    command.parse_args()


def epilog(stage: str) -> str:
    entry = yaml.safe_load(PIPELINE.read_text(encoding="utf-8"))["stages"][stage]
    read = [dep for dep in entry["deps"] if not dep.endswith(".py")]
    written = [path for kind in ("outs", "metrics") for path in _names(entry.get(kind, []))]
    return "\n".join(
        [
            line("reads", ", ".join(path.replace("${data.path}", "what data.path names") for path in read)),
            line("writes", ", ".join([*written, f"reports/timing/{stage}.json"])),
            line("settings", f"params.yaml: {', '.join(entry['params'])}"),
            *(line("" if i else "environment", told) for i, told in enumerate(environment(stage))),
            "",
            f"`dvc repro {stage}` runs it where something has changed, and first whatever it is made from.",
        ]
    )


def environment(stage: str) -> list[str]:
    return [*TOLD_BY_ENVIRONMENT.get(stage, []), *ALWAYS]


def _names(outs: list[str | dict[str, Any]]) -> list[str]:
    return [name for out in outs for name in ([out] if isinstance(out, str) else out)]
