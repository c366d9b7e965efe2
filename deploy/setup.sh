#!/usr/bin/env bash
# Once per Prefect server, and again after a change of prefect.yaml: pools, deployments, and what to do when a worker dies.
# What is there already stays as it is, with what users have changed of it; --templates writes the templates of the pools
# `docker` and `kubernetes` anew (variables set on Prefect's page go, limits and pauses stay).
# Run in the repository, with PREFECT_API_URL set, and PREFECT_API_AUTH_STRING=USER:PASSWORD where the server wants one.
# A server at another address than http://localhost:4200 is started with that address for its page, and a password:
#
#   PREFECT_SERVER_API_AUTH_STRING=autolora:PASSWORD PREFECT_UI_API_URL=http://HOST:PORT/api \
#     PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS=http://HOST:PORT prefect server start --host 0.0.0.0 --port PORT
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -gt 1 ] || [ "${1:---templates}" != --templates ]; then
  echo "setup.sh: unknown argument: $*: --templates is the only one" >&2
  exit 2
fi
if [ -z "${PREFECT_API_AUTH_STRING:-}" ]; then
  echo "setup.sh: PREFECT_API_AUTH_STRING is not set: whoever reaches this Prefect server can run code on its workers." >&2
fi
: "${PREFECT_API_URL:?where the server is}"
for _ in $(seq 60); do  # a server that was started a moment ago
  python -c "import os, urllib.request; urllib.request.urlopen(os.environ['PREFECT_API_URL'] + '/health', timeout=5)" 2>/dev/null && break
  sleep 1
done
type_of() {  # nothing where there is no such pool
  prefect --no-prompt work-pool inspect "$1" --output json 2>/dev/null |
    python -c 'import json, sys; print(json.load(sys.stdin)["type"])' 2>/dev/null || true
}
pool() {  # NAME TYPE [TEMPLATE]
  local there
  there=$(type_of "$1")
  if [ -z "$there" ]; then
    prefect --no-prompt work-pool create "$1" --type "$2" ${3:+--base-job-template "$3"}
  elif [ "$there" != "$2" ]; then  # Prefect cannot change it; a worker that came first and was told no type made it so
    echo "setup.sh: pool $1 is of type $there, not $2: stop its workers, \`prefect work-pool delete $1\`, and again" >&2
    exit 1
  elif [ -n "$templates" ] && [ -n "${3:-}" ]; then
    prefect --no-prompt work-pool update "$1" --base-job-template "$3"
  else
    echo "pool $1 is there already, and stays as it is"
  fi
}
templates="${1:-}"
pool gpu process
pool control process
pool docker docker deploy/docker-job-template.json
pool kubernetes kubernetes deploy/kubernetes/job-template.json
prefect --no-prompt deploy --all
python -m pipelines.execution.automations
