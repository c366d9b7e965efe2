"""Promotion and deployment as flows, for a schedule, a webhook or a button: the same commands that people give.

prefect deployment run promote/control --param name=robust-digits --param version=3
prefect deployment run deploy/control --param model=robust-digits@champion

Deployments go to AUTOLORA_SERVICE on the worker (`service` in its clone), or into a folder inside: --param to=FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from prefect import flow, get_run_logger

from pipelines.execution import commands
from pipelines.execution.parameters import Name, NameAndAlias, service

HOUR = 3600.0


@flow(name="promote", flow_run_name="promote {name} {version} to {to}")
def promote(
    name: Name, version: int | Literal["registered"], to: Literal["champion", "challenger"] = "champion"
) -> None:
    """A refusal fails the run, with its reasons in the log; the registry keeps it as well."""
    run_module("pipelines.promote", "--to", to, "--", name, str(version))


@flow(name="deploy", flow_run_name="deploy {model}")
def deploy(model: NameAndAlias, to: str | None = None) -> None:
    """What the alias names now, verified and tried on its canaries."""
    run_module("pipelines.deploy", "--to", str(service(to)), "--", model)


def run_module(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    commands.run(command, Path.cwd(), commands.environment(), HOUR, get_run_logger().info)
