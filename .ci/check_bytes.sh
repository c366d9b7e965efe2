#!/usr/bin/env bash
# Do two clean clones in folders of other names and depths give the same bytes? All outs up to `export`, by DVC's hashes.
#
#     bash .ci/check_bytes.sh              # this checkout, after `uv run dvc repro`, against a fresh clone: five minutes
#     bash .ci/check_bytes.sh OTHER_CLONE  # one that has run
#
# Both must run with the same number of threads (OMP_NUM_THREADS): training adds in another order with another.
set -euo pipefail
finished=$(realpath "${1:-$(dirname "$0")/..}")
git -C "$finished" diff --quiet HEAD || { echo "check_bytes: $finished is not what its HEAD says" >&2; exit 1; }
place="$(mktemp -d)/a/folder/of another name"
git clone -q "$finished" "$place"
cd "$place"
export PATH="$finished/.venv/bin:$PATH"
dvc repro export
python - "$finished" "$place" <<'PYTHON'
import hashlib
import sys
from pathlib import Path

import yaml

def outs(clone):
    stages = yaml.safe_load(Path(clone, "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for name, stage in stages.items() if name != "register" for out in stage["outs"]}

first, second = map(outs, sys.argv[1:])
for path in sorted(first | second):
    print("equal    " if first.get(path) == second.get(path) else "DIFFERENT", path)
for clone in sys.argv[1:]:
    print(hashlib.sha256(Path(clone, "models/export/model.onnx").read_bytes()).hexdigest(), f"{clone}/models/export/model.onnx")
sys.exit(first != second)
PYTHON
