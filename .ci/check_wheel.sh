#!/usr/bin/env bash
# The library without dvc, mlflow, prefect and great-expectations: build its wheel, install it in a bare environment, use it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
uv build --quiet --wheel --out-dir "$folder" .
uv export --quiet --no-default-groups --no-emit-project --no-hashes --no-annotate --output-file "$folder/requirements.txt"
uv venv --quiet "$folder/bare"
uv pip install --quiet --python "$folder/bare" -r "$folder/requirements.txt" "$folder"/*.whl
cp .ci/use_library.py tests/attacks/colours.py "$folder"
cd "$folder"
bare/bin/python use_library.py
