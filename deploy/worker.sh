#!/usr/bin/env bash
# A process worker in a clone of its own, made at the first start.
set -euo pipefail
pool="${1:-gpu}"
if [ ! -d .git ]; then
  git clone "${AUTOLORA_REPOSITORY:?where to clone from}" .
fi
exec prefect worker start --pool "$pool" --name "${WORKER_NAME:-$(hostname)}" --limit "${WORKER_LIMIT:-1}"
