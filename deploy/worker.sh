#!/usr/bin/env bash
# A process worker in a clone of its own, made at the first start; a start that was killed is done again.
set -euo pipefail
pool="${1:-gpu}"
if [ ! -d .git ]; then
  rm -rf .part
  git clone --no-checkout "${AUTOLORA_REPOSITORY:?where to clone from}" .part
  mv .part/.git .git  # at once, or not at all
fi
rm -rf .part
if [ ! -f .git/index ]; then  # git writes it when all files are there
  rm -f .git/index.lock
  git reset --quiet --hard
fi
exec prefect worker start --pool "$pool" --type process --name "${WORKER_NAME:-$(hostname)}" --limit "${WORKER_LIMIT:-1}"
