#!/usr/bin/env bash
# Once per Prefect server, and again after a change of prefect.yaml: pools, deployments, and what to do when a worker dies.
# Run in the repository, with PREFECT_API_URL set.
set -euo pipefail
cd "$(dirname "$0")/.."
for pool in gpu control; do
  prefect --no-prompt work-pool create "$pool" --type process --overwrite
done
prefect --no-prompt work-pool create docker --type docker --overwrite \
  --base-job-template deploy/docker-job-template.json
prefect --no-prompt work-pool create kubernetes --type kubernetes --overwrite \
  --base-job-template deploy/kubernetes/job-template.json
prefect --no-prompt deploy --all
python -m pipelines.execution.automations
