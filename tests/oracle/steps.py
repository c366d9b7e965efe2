"""Training steps the slow, obvious way: every layer, batch norm, attack and SGD written out, in float64.

Nothing here imports the code under test. A network is a dictionary of tensors; `forward` is written for `Small` alone.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Small(nn.Module):
    """A residual network with a stem, a grouped and a shortcut convolution, a linear layer in the block, and a head."""

    def __init__(self, classes: int = 3, stem: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(stem)
        self.conv1 = nn.Conv2d(stem, 6, (3, 1), stride=2, padding=(1, 0))
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
        self.norm2 = nn.BatchNorm2d(6)
        self.short = nn.Conv2d(stem, 6, 1, stride=2, bias=False)
        self.mix = nn.Linear(6, 5)
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)) + self.short(x))
        return self.head(torch.tanh(self.mix(y.mean((2, 3)))))


BRANCHED = ["conv1", "conv2", "short", "mix"]
NORMS = ["stem_norm", "norm1", "norm2"]


def norm(w, stats, name, x, train, move=True):
    """Batch norm by hand; in training `stats` moves (momentum 0.1, unbiased variance)."""
    if train:
        n = x.numel() / x.shape[1]
        mean = x.mean((0, 2, 3))
        var = ((x - mean[None, :, None, None]) ** 2).mean((0, 2, 3))
        if move:
            stats[f"{name}.running_mean"] = 0.9 * stats[f"{name}.running_mean"] + 0.1 * mean.detach()
            stats[f"{name}.running_var"] = 0.9 * stats[f"{name}.running_var"] + 0.1 * var.detach() * n / (n - 1)
    else:
        mean, var = stats[f"{name}.running_mean"], stats[f"{name}.running_var"]
    x = (x - mean[None, :, None, None]) / torch.sqrt(var[None, :, None, None] + 1e-5)
    return x * w[f"{name}.weight"][None, :, None, None] + w[f"{name}.bias"][None, :, None, None]


def forward(w, stats, x, train):
    x = F.relu(norm(w, stats, "stem_norm", F.conv2d(x, w["stem.weight"], padding=1), train))
    y = F.conv2d(x, w["conv1.weight"], w["conv1.bias"], stride=2, padding=(1, 0))
    y = F.relu(norm(w, stats, "norm1", y, train))
    y = norm(w, stats, "norm2", F.conv2d(y, w["conv2.weight"], padding=1, groups=2), train)
    y = F.relu(y + F.conv2d(x, w["short.weight"], stride=2))
    y = torch.tanh(y.mean((2, 3)) @ w["mix.weight"].T + w["mix.bias"])
    return y @ w["head.weight"].T + w["head.bias"]


def ce(z, y):
    if y.ndim == 2:  # mixed labels
        return -(y * torch.log(torch.softmax(z, 1))).sum() / len(y)
    return sum(-torch.log(torch.softmax(z[i], 0)[y[i]]) for i in range(len(y))) / len(y)


def kl(z, z_adv):
    """Batch mean of sum_c p_c (log p_c - log q_c), p from z, q from z~."""
    p, q = torch.softmax(z, 1), torch.softmax(z_adv, 1)
    return (p * (torch.log(p) - torch.log(q))).sum() / len(z)


def pgd(w, stats, x, y, noise, eps, steps=10):
    frozen = {k: v.detach() for k, v in w.items()}
    adv = torch.clamp(x + noise, 0, 1)
    for _ in range(steps):
        adv = adv.detach().requires_grad_(True)
        loss = len(y) * ce(forward(frozen, stats, adv, train=False), y)
        gradient = torch.autograd.grad(loss, adv)[0]
        adv = adv.detach() + eps / 4 * torch.sign(gradient)
        adv = torch.maximum(torch.minimum(adv, x + eps), x - eps)
        adv = torch.clamp(adv, 0, 1)
    return adv.detach()


def with_branch(w, branch, rank=8):
    """sg(theta1) + BA / r; the head as it is."""
    out = {k: v if k.startswith("head") else v.detach() for k, v in w.items()}
    for name in BRANCHED:
        product = branch[f"{name}.B"] @ branch[f"{name}.A"]
        out[f"{name}.weight"] = out[f"{name}.weight"] + product.reshape(w[f"{name}.weight"].shape) / rank
    return out


def autolora_loss(w, branch, stats, x, y, noise, eps, lambda1, lambda2):
    adv = pgd(w, stats, x, y, noise, eps)
    z = forward(with_branch(w, branch), stats, x, train=True)
    z_adv = forward(w, stats, adv, train=True)
    return lambda1 * ce(z, y) + (1 - lambda1) * ce(z_adv, y) + lambda2 * kl(z, z_adv)


def vanilla_loss(w, stats, x, y, noise, eps):
    adv = pgd(w, stats, x, y, noise, eps)
    z = forward(w, stats, x, train=True)
    z_adv = forward(w, stats, adv, train=True)
    return ce(z, y) + 6 * kl(z, z_adv)


def twins_loss(w, frozen, frozen_stats, stats, x, y, noise, eps, g, released):
    """`frozen` holds the other affine copy; its statistics never move."""
    adv, half = pgd(w, stats, x, y, noise, eps), len(x) // 2
    other = {**w, **frozen}
    adv_f = forward(other, frozen_stats, adv[:half], train=False)
    adv_a = forward(w, stats, adv[half:], train=True)
    nat_f = forward(other, frozen_stats, x[:half], train=False)
    nat_a = forward(w, stats, x[half:], train=True)
    beta = 3 if released else 6  # the released code divides the sum over a half by the full batch
    return g * ce(nat_f, y[:half]) + ce(nat_a, y[half:]) + beta * (g * kl(nat_f, adv_f) + kl(nat_a, adv_a))


def sgd(tensors, gradients, velocity, rate, decay, momentum=0.9):
    """torch's SGD: the first velocity is the first gradient."""
    for name, gradient in gradients.items():
        step = gradient + decay * tensors[name].detach()
        velocity[name] = momentum * velocity[name] + step if name in velocity else step
        tensors[name] = (tensors[name].detach() - rate * velocity[name]).requires_grad_(True)
