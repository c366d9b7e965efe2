"""How long `dvc repro` will take here, how much memory and disk, and what would make it shorter. It runs no stage.

    python -m stages.estimate [params.yaml]

The network is built without its weights and timed for some seconds, a few images are decoded, the rest is arithmetic.
The figures are for everything from the start; what DVC has cached, or an earlier run has kept, takes less.
"""

from autolora.common.command_line import Command
from stages.common.params import check
from stages.common.runner import main


def estimate() -> None:
    parser = Command(__doc__, reads="params.yaml, and the images that data.path names", writes="the estimate on stdout")
    parser.add_argument("params", nargs="?", default="params.yaml", help="another file, as presets/cifar10.yaml")
    params = check(parser.parse_args().params)
    from stages.estimate.report import lines, measured  # after --help, which need not wait for torch

    print("\n".join(lines(measured(params))))


main(estimate)
