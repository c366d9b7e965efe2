"""Prefect flows: where and when DVC's stages run, and what happens when a machine dies. Nothing here imports torch."""

import os

# Prefect and MLflow read it when they are imported (MLflow knows no word but "true"). pyproject.toml switches off what
# Prefect's own server reports; the client asks whatever server it talks to, and a team's server may still have it on.
os.environ.setdefault("DO_NOT_TRACK", "true")

# Prefect's own 180 s are as long as rules like ours allow a run to be silent; prefect.yaml says the same for workers.
os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
