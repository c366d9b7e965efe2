"""Two processes compute what one does, up to rounding: batch norm of the global batch, gradients, draws, measuring."""

import os
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from autolora.common import distributed
from tests.method.parallel import tune
from tests.oracle.steps import Small

METHODS = [
    *("autolora", "twins", "vanilla+augmentation=cutmix", "madry+augmentation=interpolate"),
    *("mart+start=robust_head+reference=best", "arow+smoothing=0.1+reference=slow_start"),
    *("madry+attack=single+eps=16/255+reference=best", "madry+eps_schedule=ramp+reference=best"),
    *("madry+trains=lora+augmentation=idbh", "madry+trains=head", "madry+trains=blocks", "vanilla+trains=prominent"),
    "distill+teacher=first_pass+natural_teacher=twin+epochs=1",
    *("vanilla+weight_attack=0.01", "vanilla+trains=prominent+weight_attack=0.01+average=0.9"),
]
TIMES = ("seconds", "images_per_second", "peak_memory_mb")


def torchrun(root, processes, *arguments, **environment):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [*command, *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )


def _norm_worker(rank, port, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    with distributed.group():
        torch.manual_seed(0)
        model, x = Small().double().train(), torch.rand(7, 3, 8, 8, dtype=torch.float64)
        shared = distributed.with_added_gradients(model)
        assert isinstance(shared, DistributedDataParallel)
        for _ in range(2):  # DDP puts its buckets in another order after the first backward
            model.zero_grad()
            with distributed.global_norms():
                loss = shared(x[rank::2]).square().sum() / 7
                loss.backward()
        results[rank] = (
            {n: p.grad.clone() for n, p in model.named_parameters()},
            {n: b.clone() for n, b in model.named_buffers()},
        )


@pytest.mark.slow
def test_gradients_and_running_statistics_of_two_processes_are_those_of_one(free_port):
    torch.manual_seed(0)
    model, x = Small().double().train(), torch.rand(7, 3, 8, 8, dtype=torch.float64)
    for _ in range(2):
        model.zero_grad()
        (model(x).square().sum() / 7).backward()
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_norm_worker, (free_port, results), nprocs=2)
        for gradients, buffers in (results[0], results[1]):
            for name, parameter in model.named_parameters():
                assert torch.allclose(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12), name
            for name, buffer in model.named_buffers():
                assert torch.allclose(buffers[name], buffer, rtol=1e-9), name


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_two_processes_fine_tune_as_one(root, tmp_path):
    for method in METHODS:
        tune(tmp_path, method)
    (tmp_path / "two").mkdir()
    done = torchrun(root, 2, "-m", "tests.method.parallel", str(tmp_path / "two"), *METHODS)
    assert done.returncode == 0, done.stderr[-2000:]
    for method in METHODS:
        name = method.replace("/", ":")
        one = torch.load(tmp_path / f"{name}-1-0.out")
        two = [torch.load(tmp_path / "two" / f"{name}-2-{rank}.out") for rank in (0, 1)]
        for name, value in one["model"].items():
            assert torch.equal(two[0]["model"][name], two[1]["model"][name]), name
            assert torch.allclose(two[0]["model"][name], value, rtol=1e-6, atol=1e-8), name
        for ours, theirs in zip(two[0]["history"], one["history"], strict=True):
            for key in set(ours) - set(TIMES):
                exact = isinstance(ours[key], str | None)
                assert ours[key] == (theirs[key] if exact else pytest.approx(theirs[key], rel=1e-5)), key


def test_global_norms_are_off_for_one_process():
    norm = nn.BatchNorm2d(3)
    with distributed.global_norms():
        assert norm(torch.rand(2, 3, 4, 4)).shape == (2, 3, 4, 4)


@pytest.fixture
def alone():
    """A group of one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_by_hand_batch_norm_is_torchs():
    """The same numbers and gradients as F.batch_norm."""
    torch.manual_seed(0)
    x = torch.rand(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.rand(2, 3, dtype=torch.float64)
    outcomes = []
    for function, training in ((torch.nn.functional.batch_norm, {"training": True}), (distributed.batch_norm, {})):
        mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        y = function(x, mean, var, weight, bias, momentum=0.1, eps=1e-5, **training)
        outcomes.append((y, mean, var, *torch.autograd.grad(y.pow(3).sum(), x)))
    for theirs, mine in zip(*outcomes, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)
