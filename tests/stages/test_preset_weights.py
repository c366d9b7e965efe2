"""The weights that the presets name, from a local hub: a file of the published layout, but for its size."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autolora.backbones.classifier import Spec, build
from autolora.backbones.loading import load_backbone
from stages.common.params import check
from tests.backbones.servers import HubHandler, serving
from tests.conftest import ROOT

SMALL = {"channels": [8, 8, 8, 8]}  # the published one is a whole ResNet-50, 205 MB
BACKBONES = {p.stem: check(p).backbone for p in sorted((ROOT / "presets").glob("*.yaml"))}
FROM_HUB = {name: section for name, section in BACKBONES.items() if str(section.weights).startswith("hf:")}
RESOLVE = """
import sys
from autolora.common.errors import BadArgument
from stages.common.weights import resolve_weights
try:
    print(resolve_weights(sys.argv[1], *sys.argv[2:]))
except BadArgument as error:
    print(error)
"""


@pytest.fixture(scope="module")
def published() -> tuple[bytes, torch.Tensor]:
    """DataParallel(AttackerModel): every weight twice, and the normaliser's buffers."""
    body = build(Spec("resnet50", 1000, 224, options=SMALL), 1).body
    state = {"module.normalizer.new_mean": torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)}
    state["module.normalizer.new_std"] = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for prefix in ("module.model.", "module.attacker.model."):
        state |= {prefix + key: value for key, value in body.state_dict().items()}
    file = io.BytesIO()
    torch.save({"model": state, "epoch": 1}, file)
    return file.getvalue(), body.layer1[0].conv1.weight


def test_six_presets_take_the_robust_backbone_from_the_hub():
    assert set(FROM_HUB) == {"cifar10", "cifar100", "dtd", "dogs", "cub200", "caltech256"}
    assert len({section.weights for section in FROM_HUB.values()}) == 1


@pytest.mark.slow
def test_the_first_run_names_the_hash_and_the_second_loads(published, tmp_path):
    content, weight = published
    section = FROM_HUB["dtd"]
    repository, _, file = str(section.weights).removeprefix("hf:").rpartition("/")
    with serving({f"{repository}/{file}": content}, HubHandler) as (address, _):
        said = resolved(address, tmp_path, section.weights)
        digest = hashlib.sha256(content).hexdigest()
        assert f"backbone.sha256: {digest}" in said
        path = Path(resolved(address, tmp_path, section.weights, digest))
    model = load_backbone(section.arch, path, classes=47, image_size=224, stem=section.stem, options=SMALL)
    assert torch.equal(model.body.layer1[0].conv1.weight, weight)
    assert [round(value, 3) for value in model.spec.mean] == [0.485, 0.456, 0.406]


def resolved(address: str, home: Path, *weights: str) -> str:
    """In a process of its own: the hub's client reads its address when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RESOLVE, *weights]
    ended = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()
