#!/usr/bin/env bash
# requirements.txt is what `uv sync` installs, deploy/requirements.txt what the image does: with the hash of each file,
# and without the address of any index.
#   bash .ci/check_requirements.sh            compare        bash .ci/check_requirements.sh --write      make both anew
set -euo pipefail
cd "$(dirname "$0")/.."
IMAGE=(--no-default-groups --group pipeline --group orchestration --group workers --group signing)
resolved() { uv export --quiet --format requirements-txt --no-emit-project --no-annotate --no-header "$@"; }
compare() {
  diff - "$1" > /dev/null && return
  echo "$1 is not what pyproject.toml resolves to: bash .ci/check_requirements.sh --write" >&2
  exit 1
}
if [ "${1:-}" = --write ]; then
  resolved > requirements.txt
  resolved "${IMAGE[@]}" > deploy/requirements.txt
else
  resolved | compare requirements.txt
  resolved "${IMAGE[@]}" | compare deploy/requirements.txt
fi
