"""Files of weights as they exist in the world: containers, prefixes, foreign objects, hostile and broken files."""

import argparse
import collections
import os
import pickle
import struct
import sys
import types
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from autolora.backbones.checkpoints import KNOWN, Inert, fit_state, grouped, read_checkpoint


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(collections.OrderedDict(conv1=nn.Conv2d(3, 4, 3), bn1=nn.BatchNorm2d(4), fc=nn.Linear(4, 2)))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


# --- containers and prefixes ------------------------------------------------------------------------------------------

STATE = small().state_dict()
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
SALMAN = {  # the layout of the robust ImageNet ResNets: DataParallel(AttackerModel), every weight twice
    "module.normalizer.new_mean": MEAN,
    "module.normalizer.new_std": STD,
    **prefixed(STATE, "module.model."),
    "module.attacker.normalize.new_mean": MEAN,
    "module.attacker.normalize.new_std": STD,
    **prefixed(STATE, "module.attacker.model."),
}
LAYOUTS = {
    "plain": (STATE, "", ""),
    "state_dict": ({"state_dict": STATE, "epoch": 3}, "state_dict", ""),
    "model": ({"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}, "model", ""),
    "net": ({"net": prefixed(STATE, "module."), "acc": 93.1, "epoch": 100}, "net", "module."),
    "nested": ({"state_dict": {"model": prefixed(STATE, "module.model.")}}, "state_dict/model", "module.model."),
    "module": (prefixed(STATE, "module."), "", "module."),
    "model.": (prefixed(STATE, "model."), "", "model."),
    "module.model": (prefixed(STATE, "module.model."), "", "module.model."),
    "attacker.model": ({"model": prefixed(STATE, "attacker.model.")}, "model", "attacker.model."),
    "compiled": (prefixed(STATE, "_orig_mod."), "", "_orig_mod."),
    "normalise then network": ({"0.mean": MEAN, "0.std": STD, **prefixed(STATE, "1.")}, "", "1."),
    "averaged": ({"state_dict": small(1).state_dict(), "state_dict_ema": STATE}, "state_dict_ema", ""),
    "Salman": ({"model": SALMAN, "epoch": 89}, "model", "module.model."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_layouts(layout, legacy, tmp_path):
    tree, container, prefix = LAYOUTS[layout]
    torch.save(tree, tmp_path / "file.anything", _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(tmp_path / "file.anything")
    fitted = fit_state(checkpoint.state, small(2).state_dict())
    assert (checkpoint.container, fitted.prefix) == (container, prefix)
    assert same(fitted.state, STATE)
    assert not fitted.missing
    assert not fitted.unexpected
    assert checkpoint.inert == []


def test_copies_and_normalisers_are_set_aside():
    fitted = fit_state(SALMAN, small().state_dict())
    assert len(fitted.duplicates) == len(STATE)
    mean, std = fitted.normaliser
    assert (mean, std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_other_sets_of_weights_are_reported(tmp_path):
    torch.save({"state_dict": small(1).state_dict(), "model_ema": STATE}, tmp_path / "two.pt")
    checkpoint = read_checkpoint(tmp_path / "two.pt")
    assert (checkpoint.container, checkpoint.others) == ("model_ema", ["state_dict"])


def test_two_different_networks_are_not_guessed_between():
    state = prefixed(STATE, "encoder_q.") | prefixed(small(1).state_dict(), "encoder_k.")
    with pytest.raises(ValueError, match=r"two different networks, under 'encoder_[qk].' and under 'encoder_[qk].'"):
        fit_state(state, small().state_dict())


def test_names_of_cifar_resnets():
    """kuangliu's names (shortcut, linear), in which much of the literature's CIFAR ResNets are saved."""
    import timm

    expected = timm.create_model("resnet18", num_classes=10, channels=(8, 8, 8, 16)).state_dict()
    foreign = {k.replace("downsample", "shortcut").replace("fc.", "linear."): v for k, v in expected.items()}
    fitted = fit_state(prefixed(foreign, "module."), expected)
    assert same(fitted.state, expected)
    assert not fitted.unexpected


def test_missing_unexpected_and_reshaped_are_told_apart():
    state = dict(STATE)
    del state["bn1.weight"]
    state["bn1.gamma"] = torch.ones(4)
    state["fc.weight"] = torch.zeros(7, 4)
    fitted = fit_state(prefixed(state, "model."), small().state_dict())
    assert (fitted.missing, fitted.unexpected, list(fitted.reshaped)) == (["bn1.weight"], ["bn1.gamma"], ["fc.weight"])


def test_grouped_reads_well():
    keys = [f"layer{i}.{j}.conv1.weight" for i in (1, 2) for j in (0, 1)] + ["fc.bias", "fc.weight"]
    assert grouped(keys) == "6 in layer1.0 (1), layer1.1 (1), layer2.0 (1), layer2.1 (1), fc (2)"
    assert grouped(keys, shown=2).endswith("and 3 more groups")
    assert grouped([]) == "none"


def test_safetensors(tmp_path):
    safetensors.torch.save_file(prefixed(STATE, "model."), tmp_path / "no_suffix")
    assert same(fit_state(read_checkpoint(tmp_path / "no_suffix").state, STATE).state, STATE)


def test_half_precision(tmp_path):
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in STATE.items()}, tmp_path / "half.pt")
    model = small(1)
    model.load_state_dict(fit_state(read_checkpoint(tmp_path / "half.pt").state, STATE).state)
    assert torch.equal(model.fc.weight, STATE["fc.weight"].half().float())


# --- other objects stay inert -----------------------------------------------------------------------------------------


class Runs:
    """Pickled as a call: whoever reads it with pickle makes the file named."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def witness(path):
    path.touch()
    return path


HOSTILE = {
    "os.system": lambda path: Runs(os.system, f"touch {path}"),
    "eval": lambda path: Runs(eval, f"open({str(path)!r}, 'w').close()"),
    "exec": lambda path: Runs(exec, f"open({str(path)!r}, 'w').close()"),
    "a function of ours": lambda path: Runs(witness, path),
    "getattr": lambda path: Runs(getattr, Runs(__import__, "os"), "system"),
    "torch.load": lambda path: Runs(torch.load, str(path)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_hostile_pickle_is_not_run_and_its_tensors_load(name, legacy, tmp_path):
    mark, file = tmp_path / "executed", tmp_path / "hostile.pth"
    tree = {"state_dict": STATE, "extra": HOSTILE[name](mark), "after": [1, 2]}
    torch.save(tree, file, _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(file)
    assert same(checkpoint.state, STATE)
    assert checkpoint.inert, "what was left inert is on record"
    assert not mark.exists()


def test_the_hostile_pickle_would_run_elsewhere(tmp_path):
    """Else the tests above could not fail."""
    torch.save({"a": HOSTILE["os.system"](tmp_path / "executed")}, tmp_path / "hostile.pth")
    torch.load(tmp_path / "hostile.pth", weights_only=False)
    assert (tmp_path / "executed").exists()


def test_a_hostile_call_in_place_of_the_weights(tmp_path):
    torch.save(Runs(os.system, f"touch {tmp_path / 'executed'}"), tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        read_checkpoint(tmp_path / "hostile.pth")
    assert not (tmp_path / "executed").exists()


class Victim:
    """What the control below tampers with."""


def tampering(module, name):
    """A pickle that names something and sets its attribute `mark` (BUILD with a slot state)."""
    return f"c{module}\n{name}\n".encode().join([b"\x80\x02", b"N}U\x04markK\x01s\x86b."])


def test_a_pickle_cannot_tamper_with_what_it_may_name(tmp_path):
    """Attributes set on torch's own functions and classes would outlive the reading."""
    pickle.loads(tampering(__name__, "Victim"))
    assert Victim.mark == 1, "the control: a plain pickle does set it"
    for name in [*KNOWN, "torch.FloatStorage", "torch.float32", "argparse.Namespace"]:
        module, _, last = name.rpartition(".")
        with zipfile.ZipFile(tmp_path / "t.pth", "w") as archive:
            archive.writestr("t/data.pkl", tampering(module, last))
            archive.writestr("t/version", "3\n")
        with pytest.raises(ValueError, match=r"t\.pth"):
            read_checkpoint(tmp_path / "t.pth")
        real = getattr(sys.modules.get(module), last, None)
        assert not hasattr(real, "mark"), name
        assert not hasattr(KNOWN.get(name), "mark"), name
    assert not hasattr(Inert, "mark")


def test_objects_that_people_do_save(tmp_path):
    """Arguments, numpy scores, schedulers, enumerations, defaultdicts: the weights beside them are read."""
    import numpy as np

    model = small()
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    tree = {
        "args": argparse.Namespace(lr=0.1, arch="resnet18"),
        "best": np.float64(93.2),
        "history": np.arange(5),
        "optimizer": optimiser.state_dict(),
        "schedule": torch.optim.lr_scheduler.StepLR(optimiser, 30),
        "counts": collections.defaultdict(list, a=[1]),
        "path": tmp_path,
        "state_dict": prefixed(model.state_dict(), "module."),
    }
    torch.save(tree, tmp_path / "training.pth.tar")
    checkpoint = read_checkpoint(tmp_path / "training.pth.tar")
    assert checkpoint.container == "state_dict"
    assert same(checkpoint.state, prefixed(model.state_dict(), "module."))
    assert {"argparse.Namespace", "collections.defaultdict"} <= set(checkpoint.inert)


def test_classes_that_are_not_installed(tmp_path, monkeypatch):
    """As in files of projects that saved their own configuration objects."""
    module = types.ModuleType("their_project")

    class Config(dict):
        pass

    Config.__module__, Config.__qualname__, module.Config = "their_project", "Config", Config
    monkeypatch.setitem(sys.modules, "their_project", module)
    config = Config(lr=0.1)
    config.note = "an attribute"
    torch.save({"config": config, "model": STATE}, tmp_path / "theirs.pt")
    monkeypatch.delitem(sys.modules, "their_project")
    checkpoint = read_checkpoint(tmp_path / "theirs.pt")
    assert same(checkpoint.state, STATE)
    assert checkpoint.inert == ["their_project.Config"]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_whole_pickled_module_gives_its_tensors(legacy, tmp_path):
    """torch.save(model): the class is never looked for; parameters and buffers are in its dictionaries."""
    torch.save({"net": small(), "epoch": 1}, tmp_path / "module.pt", _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(tmp_path / "module.pt")
    assert checkpoint.container == "net"
    assert same(checkpoint.state, STATE)


def test_parameters_and_shared_storage(tmp_path):
    block = torch.arange(24.0)
    tree = {"a": nn.Parameter(block[:12].view(3, 4)), "b": block[12:].view(4, 3).t(), "args": argparse.Namespace()}
    torch.save(tree, tmp_path / "p.pt")
    state = read_checkpoint(tmp_path / "p.pt").state
    assert torch.equal(state["a"], block[:12].view(3, 4))
    assert torch.equal(state["b"], block[12:].view(4, 3).t())
    assert not state["a"].requires_grad


# --- broken files: one clear error each -------------------------------------------------------------------------------


def write(path, content):
    path.write_bytes(content)
    return path


def whole(tmp_path, legacy=False):
    torch.save({"state_dict": STATE}, tmp_path / "whole.pt", _use_new_zipfile_serialization=not legacy)
    return (tmp_path / "whole.pt").read_bytes()


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pt: no such file"):
        read_checkpoint(tmp_path / "gone.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html><body>Google Drive - Virus scan warning", "a web page"),
        (b"\n  <html><head><title>404", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"\x1f\x8b\x08\x00rest", "gzip"),
        (b"\x89HDF\r\n\x1a\nrest", "HDF5"),
        (b"weights, honestly", "begins with b'weights, honestl'"),
        (b"\x00" * 257 + b"ustar" + b"\x00" * 300, "tar archive"),
    ],
)
def test_no_weights_at_all(content, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        read_checkpoint(write(tmp_path / "file.pth", content))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(share, legacy, tmp_path):
    content = whole(tmp_path, legacy)
    with pytest.raises(ValueError, match="truncated"):
        read_checkpoint(write(tmp_path / "short.pth", content[: int(len(content) * share)]))


def test_a_flipped_byte(tmp_path):
    content = bytearray(whole(tmp_path))
    content[content.index(STATE["conv1.weight"].numpy().tobytes()) + 5] ^= 255
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(write(tmp_path / "flipped.pth", bytes(content)))


def test_truncated_safetensors(tmp_path):
    content = safetensors.torch.save(STATE)
    for cut in (len(content) - 1, 60):
        with pytest.raises(ValueError, match="truncated safetensors"):
            read_checkpoint(write(tmp_path / "short.safetensors", content[:cut]))


def test_safetensors_header_that_lies(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
    content = struct.pack("<Q", len(header)) + header + b"\0" * 8
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(write(tmp_path / "lies.safetensors", content))


def test_a_pickle_of_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"not written by torch\.save"):
        read_checkpoint(write(tmp_path / "plain.pkl", pickle.dumps({"a": 1}, protocol=2)))


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"torch\.save did not write"):
        read_checkpoint(tmp_path / "some.pth")


def test_torchscript(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "script.pt")
    with pytest.raises(ValueError, match="TorchScript archive, which carries code"):
        read_checkpoint(tmp_path / "script.pt")


def test_no_tensors(tmp_path):
    torch.save({"epoch": 3, "acc": 0.5}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="found a dictionary with the keys epoch, acc"):
        read_checkpoint(tmp_path / "empty.pt")


def test_weights_that_diverged(tmp_path):
    torch.save({**STATE, "fc.bias": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match=r"1 of 9 tensors hold NaN or infinity, the first is fc\.bias"):
        read_checkpoint(tmp_path / "nan.pt")


def test_a_normaliser_beside_the_weights_is_part_of_them(tmp_path):
    """Two loose tensors and a dictionary of weights: the weights are in the dictionary."""
    torch.save({"state_dict": STATE, "mean": MEAN, "std": STD}, tmp_path / "ck.pt")
    checkpoint = read_checkpoint(tmp_path / "ck.pt")
    fitted = fit_state(checkpoint.state, STATE)
    assert (checkpoint.container, checkpoint.others, fitted.missing, fitted.unexpected) == ("state_dict", [], [], [])
    assert same(fitted.state, STATE)
    assert fitted.normaliser == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
