"""How long a fine-tuning would take on many GPUs: arithmetic from stated rates, no measurement.

    python -m benchmarks.cluster_estimate --gpus 64 --tflops 77 --tflops-fp32 10

F is one forward of one image. A training step costs 26 F per image (PGD-10: 10 gradients of 2 F; two passes of 3 F), an
epoch one more pass for SA, and PGD-10 (21 F) on the held-out part; AutoAttack 9,750 F per image that stands.
"""

from __future__ import annotations

import argparse

from autolora.common.command_line import Command

STEP, SA, PGD, STANDS, FALLS = 26, 1, 21, 9750, 500  # forwards per image; FALLS: an assumption, few fall late


def main() -> None:
    parser = Command(__doc__, reads="nothing", writes="an estimate on stdout")
    number = parser.add_argument
    number("--images", type=int, default=1_281_167, help="to train on (ImageNet-1k)")
    number("--held-out", type=float, default=0.05, help="share of them for the learning-rate rule")
    number("--test", type=int, default=50_000, help="attacked by AutoAttack")
    number("--robust", type=float, default=0.35, help="share that stands")
    number("--gflop", type=float, default=8.2, help="per forward (ResNet-50 at 224)")
    number("--epochs", type=int, default=60)
    number("--gpus", type=int, default=64)
    number("--tflops", type=float, default=77, help="sustained per GPU in training, bf16 (published: A100, ResNet-18)")
    number("--tflops-fp32", type=float, default=10, help="sustained per GPU in AutoAttack, fp32 without TF32")
    number("--efficiency", type=float, default=0.9, help="of many GPUs against one")
    number("--stored", type=int, default=256, help="pixels per side as stored")
    number("--decode", type=float, default=200, help="images per second and core in prepare")
    number("--cores", type=int, default=64, help="of the machine that prepares")
    print("\n".join(estimate(parser.parse_args())))


def estimate(a: argparse.Namespace) -> list[str]:
    train, held_out = a.images * (1 - a.held_out), a.images * a.held_out
    epoch = (train * (STEP + SA) + held_out * PGD) * a.gflop * 1e9
    attack = a.test * (a.robust * STANDS + (1 - a.robust) * FALLS) * a.gflop * 1e9
    cluster, cluster_fp32 = (a.gpus * rate * 1e12 * a.efficiency for rate in (a.tflops, a.tflops_fp32))
    per_second = cluster / ((STEP + SA) * a.gflop * 1e9)
    image = 3 * a.stored**2
    return [
        f"prepare    {a.images / a.decode / a.cores / 60:8.1f} min    {a.images * image / 1e9:.0f} GB of uint8",
        f"an epoch   {epoch / cluster / 60:8.1f} min    {epoch:.2e} FLOP",
        f"finetune   {a.epochs * epoch / cluster / 3600:8.1f} h      {a.epochs} epochs, {a.gpus} GPUs",
        f"evaluate   {attack / cluster_fp32 / 3600:8.1f} h      {attack:.2e} FLOP, {a.test} images",
        f"reading    {per_second:8.0f} images/s, {per_second * image / 1e9:.1f} GB/s in all",
    ]


if __name__ == "__main__":
    main()
