#!/usr/bin/env bash
# Once per Prefect server, and again after a change of prefect.yaml: pools, deployments, and what to do when a worker dies.
# Run in the repository, with PREFECT_API_URL set, and PREFECT_API_AUTH_STRING=USER:PASSWORD where the server wants one.
# A server at another address than http://localhost:4200 is started with that address for its page, and a password:
#
#   PREFECT_SERVER_API_AUTH_STRING=autolora:PASSWORD PREFECT_UI_API_URL=http://HOST:PORT/api \
#     PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS=http://HOST:PORT prefect server start --host 0.0.0.0 --port PORT
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PREFECT_API_AUTH_STRING:-}" ]; then
  echo "setup.sh: PREFECT_API_AUTH_STRING is not set: whoever reaches this Prefect server can run code on its workers." >&2
fi
: "${PREFECT_API_URL:?where the server is}"
for _ in $(seq 60); do  # a server that was started a moment ago
  python -c "import os, urllib.request; urllib.request.urlopen(os.environ['PREFECT_API_URL'] + '/health', timeout=5)" 2>/dev/null && break
  sleep 1
done
for pool in gpu control; do
  prefect --no-prompt work-pool create "$pool" --type process --overwrite
done
prefect --no-prompt work-pool create docker --type docker --overwrite \
  --base-job-template deploy/docker-job-template.json
prefect --no-prompt work-pool create kubernetes --type kubernetes --overwrite \
  --base-job-template deploy/kubernetes/job-template.json
prefect --no-prompt deploy --all
python -m pipelines.execution.automations
