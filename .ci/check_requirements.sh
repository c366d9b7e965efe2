#!/usr/bin/env bash
# requirements.txt is what `uv sync --group workers` would install, with the hash of each file and no index's address.
#   bash .ci/check_requirements.sh            compare        bash .ci/check_requirements.sh --write      make it anew
set -euo pipefail
cd "$(dirname "$0")/.."
export_() { uv export --quiet --format requirements-txt --no-emit-project --no-annotate --no-header --group workers; }
if [ "${1:-}" = --write ]; then
  export_ > requirements.txt
else
  export_ | diff - requirements.txt > /dev/null || {
    echo "requirements.txt is not what pyproject.toml resolves to: bash .ci/check_requirements.sh --write" >&2
    exit 1
  }
fi
