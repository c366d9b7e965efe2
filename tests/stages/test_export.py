"""The export stage: what it writes, what it refuses, and that nothing half-written stays behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from autolora import Threat
from autolora.attacks.onnx_file import Replayed, square
from autolora.backbones.classifier import save_classifier
from autolora.common.files import file_sha256, read_json, write_json
from autolora.data.examples import Examples
from autolora.data.images import TestImages
from autolora.export.notes import notes_in
from autolora.export.quantise import calibration_rows, int8
from autolora.export.runtime import open_session
from autolora.export.write import export_onnx, show
from stages import export as stage
from stages.common.runner import StageError, work_root
from stages.evaluation import onnx_robustness
from stages.evaluation.onnx_robustness import FileRobustness, with_gradients
from tests.export.nets import tiny
from tests.stages.evaluated import CLASSES, write_evaluated

Run = Callable[..., None]


@pytest.fixture
def evaluated(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`run(key=value)` runs the export stage with these keys of `export` changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.evaluation.onnx_robustness.square", partial(square, queries=100))  # of 5,000: for time
    write_evaluated()
    Path("dvc.yaml").write_text((root / "dvc.yaml").read_text())

    def run(**changed: object) -> None:
        from stages.export import export

        params = yaml.safe_load((root / "params.yaml").read_text())
        params["threat"] = {"norm": "linf", "eps": "2/255"}
        params["export"] |= {"check_images": 0} | changed
        Path("params.yaml").write_text(yaml.safe_dump(params))
        export()

    return run


def test_what_it_writes(evaluated: Run) -> None:
    evaluated(license="Apache-2.0", check_images=4)
    report, robustness = read_json("reports/export.json"), read_json("reports/robustness.json")
    assert [p.name for p in Path("models/export").iterdir()] == ["model.onnx"]
    assert report["onnx_sha256"] == file_sha256("models/export/model.onnx")
    assert report["weights_sha256"] == robustness["weights_sha256"]
    assert report["parity"]["label_flips_beyond_noise"] == 0
    assert [row["batch"] for row in report["parity"]["batches"]] == [1, 3, 7, 30]
    assert report["replay"]["robust_accuracy"] == pytest.approx(robustness["robust_accuracy"], abs=1e-6)
    assert report["replay"]["clean_accuracy"] == pytest.approx(0.9)
    assert report["replay"]["no_longer_fooled"] == 0
    assert report["square_onnxruntime"]["n"] == 4
    assert report["square_onnxruntime"]["robust_accuracy"] <= report["replay"]["robust_accuracy"]
    told = show("models/export/model.onnx")
    assert (told["classes"], told["license"], told["threat"]) == (CLASSES, "Apache-2.0", "linf:2/255")
    assert set(read_json("reports/timing/export.json")["latency_ms"]) == {"model.onnx"}


@pytest.mark.slow
def test_the_same_bytes_in_another_folder(evaluated: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated()
    elsewhere = tmp_path / "a" / "folder" / "of another name"
    for name in ("data", "models", "reports", "dvc.yaml"):
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).rename(elsewhere / name)
    kept = {p: (elsewhere / p).read_bytes() for p in ("models/export/model.onnx", "reports/export.json")}
    monkeypatch.chdir(elsewhere)
    evaluated()
    assert all((elsewhere / p).read_bytes() == content for p, content in kept.items())


def test_progress_of_other_code_is_not_gone_on_from(evaluated: Run, mended: Run) -> None:
    evaluated(check_images=1)
    mended()
    evaluated(check_images=1)
    assert len(list(work_root().glob("export/*"))) == 2


def test_other_weights_than_those_attacked(evaluated: Run) -> None:
    save_classifier(tiny(5), "models/merged.safetensors", alpha="0", toward="branch")
    with pytest.raises(StageError, match=r"merged\.safetensors holds weights .*dvc repro evaluate"):
        evaluated()
    assert not Path("models/export").exists()
    assert not Path("reports/export.json").exists()


def test_another_threat_than_the_one_attacked_under(evaluated: Run) -> None:
    record = read_json("reports/robustness.json")
    write_json("reports/robustness.json", record | {"threat": Threat("linf", "8/255").as_record()})
    with pytest.raises(StageError, match=r"threat is linf:2/255, but .* linf:8/255"):
        evaluated()


def test_a_file_that_is_another_network_is_not_published(evaluated: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the exporter had dropped the bias of the head."""
    from stages import export as stage

    def wrong(model, *arguments, **named):
        model = tiny()
        with torch.no_grad():
            model.body.fc.bias.zero_()
        return right(model, *arguments, **named)

    right = stage.export_onnx
    monkeypatch.setattr(stage, "export_onnx", wrong)
    with pytest.raises(StageError, match="not the network that was attacked: logits differ"):
        evaluated()
    assert not Path("models/export").exists()


@pytest.mark.slow
def test_uint8_is_measured_on_what_bytes_can_hold(evaluated: Run) -> None:
    evaluated(input="uint8")
    report = read_json("reports/export.json")
    assert report["parity"]["label_flips_beyond_noise"] == 0
    assert open_session("models/export/model.onnx").get_inputs()[0].type == "tensor(uint8)"


@pytest.mark.slow
def test_variants_have_their_own_numbers(evaluated: Run) -> None:
    evaluated(variants=["fp16", "int8"], max_robust_drop=100.0, check_images=4)
    found = read_json("reports/export.json")["variants"]
    for name, record in found.items():
        path = Path(f"models/export/model.{name}.onnx")
        assert record["written"]
        assert record["bytes"] == path.stat().st_size < Path("models/export/model.onnx").stat().st_size * 1.5
        said = notes_in(path)
        assert (said["variant"], said["threat"]) == (name, "linf:2/255")
        assert json.loads(said["robust_accuracy"])["value"] == record["robust_accuracy"]
        assert "stored adversarial examples" in said["attack"]
    assert found["int8"]["white_box"]["n"] + found["int8"]["square_onnxruntime"]["broken"] == 4
    assert "white_box" not in found["fp16"]


def test_a_variant_that_loses_robustness_is_not_written(evaluated: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the head rounded to nothing: what is left stands no attack."""
    import onnx

    def ruined(path, calibration):
        model = int8(path, calibration)
        for initializer in model.graph.initializer:
            if initializer.data_type == onnx.TensorProto.INT8 and len(initializer.dims) > 1:
                values = np.frombuffer(initializer.raw_data, np.int8)
                initializer.raw_data = np.roll(values, 7).tobytes()
        return model

    monkeypatch.setattr("stages.evaluation.onnx_variants.int8", ruined)
    evaluated(variants=["int8"])
    record = read_json("reports/export.json")["variants"]["int8"]
    assert record["written"] is False
    assert "points of robust accuracy; export.max_robust_drop allows 1" in record["reason"]
    assert [p.name for p in Path("models/export").iterdir()] == ["model.onnx"]


def test_int8_is_calibrated_on_images_of_every_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie class by class; nothing is read where no variant asks for them."""
    monkeypatch.chdir(tmp_path)
    stage.CALIBRATION.parent.mkdir(parents=True)
    np.save(stage.CALIBRATION, np.repeat(np.arange(3, dtype=np.uint8), 300)[:, None, None, None])
    found = np.rint(255 * stage.calibration(["fp16", "int8"]))
    assert np.bincount(found.astype(int).ravel()).min() > 60
    assert stage.calibration(["fp16"]).shape == (0, 1, 1, 1)
    assert calibration_rows(3).tolist() == [0, 1, 2]
    taking_turns = (np.arange(2560) % 10)[calibration_rows(2560)]
    assert np.bincount(taking_turns).min() > 10


def test_a_variant_known_to_break_the_network_is_not_tried(
    evaluated: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("stages.evaluation.onnx_variants.int8", lambda *_: pytest.fail("nothing is computed"))
    write_evaluated(model=tiny(name="Inverted"))
    evaluated(variants=["int8"])
    record = read_json("reports/export.json")["variants"]["int8"]
    assert record["written"] is False
    assert record["reason"].startswith("int8 is known to break this network: depthwise convolutions with batch norm")
    assert (
        capsys.readouterr().out.count("export: model.int8.onnx is not written: int8 is known to break this network")
        == 1
    )
    assert [p.name for p in Path("models/export").iterdir()] == ["model.onnx"]


def test_a_variant_that_does_not_work_is_not_written(evaluated: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path):
        raise RuntimeError("no kernel for half floats\nand much more")

    monkeypatch.setattr("stages.evaluation.onnx_variants.fp16", broken)
    evaluated(variants=["fp16"])
    record = read_json("reports/export.json")["variants"]["fp16"]
    assert record == {"written": False, "reason": "fp16 does not work on this network: no kernel for half floats"}


def test_a_variant_that_is_more_robust_than_the_model_is_written(evaluated, monkeypatch) -> None:
    measure = stage.measure

    def poor(*given):
        found = measure(*given)
        return found._replace(right=np.zeros_like(found.right))

    monkeypatch.setattr(stage, "measure", poor)  # of model.onnx, not of its variants
    evaluated(variants=["fp16"], check_images=4)
    record = read_json("reports/export.json")["variants"]["fp16"]
    assert record["robust_accuracy"] > record["robust_accuracy_of_model"] == 0
    assert record["written"]


def test_after_the_white_box_what_stands_its_last_attack_counts(tmp_path, monkeypatch) -> None:
    """Planted: of three images that Square left, one stands APGD-T."""
    export_onnx(tiny(), tmp_path / "model.onnx")
    after = {"APGD-CE": np.array([True, True, True]), "APGD-T": np.array([True, False, False])}
    monkeypatch.setattr(onnx_robustness, "white_box", lambda *given, **how: after)
    every, shown = np.ones(4, bool), TestImages.of(np.zeros((4, 3, 8, 8), np.float32), np.zeros(4, int))
    before = FileRobustness(Replayed(every, every), np.arange(4), np.array([True, True, False, True]), {})
    examples = Examples(shown, shown.floats, ~every)
    found = with_gradients(tmp_path / "model.onnx", before, examples, Threat("linf", 0.1), 0)
    assert found.right.tolist() == [True, False, False, False]
    assert found.robust == 0.25
    assert found.record["white_box"] == {"n": 3, "standing_after": {"APGD-CE": 3, "APGD-T": 1}, "broken": 2}
