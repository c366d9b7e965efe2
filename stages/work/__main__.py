"""What lies in `.work`, and its removal. Progress that is gone is made again by the stage that needs it.

    python -m stages.work                    what lies there, how large it is, when it was last used
    python -m stages.work --prune 30         remove progress that was not used for 30 days
    python -m stages.work --prune 0          remove all progress but that of the last hour

Downloads and the results of rebuilds stay. Outputs are not here: DVC has them in data/, models/, reports/, its cache.
"""

from __future__ import annotations

from autolora.common.command_line import Command
from autolora.common.progress import size
from stages.common.runner import main, work_root
from stages.work.folders import KEPT, MADE_AGAIN, Work, found, others, prune

ROW = "{:<10} {:>9}   {:<15} {}"


def work() -> None:
    parser = Command(__doc__, reads=".work, or AUTOLORA_WORK", writes="nothing; --prune removes folders there")
    parser.add_argument("--prune", type=float, metavar="DAYS", help="remove what was not used for so many days")
    days, root = parser.parse_args().prune, work_root()
    works = found(root)
    if days is None:
        print("\n".join([*map(row, works), *map(row, others(root)), total(works)]))
        return
    for one, said in prune(works, days):
        print(row(one), said)
    print(total(found(root)))


def row(one: Work) -> str:
    what = MADE_AGAIN.get(one.stage) or KEPT.get(one.stage, "")
    return ROW.format(one.stage, size(one.size), f"{one.days:.0f} days ago", f"{one.path}  {what}")


def total(works: list[Work]) -> str:
    return f"{size(sum(one.size for one in works))} of progress in {len(works)} folders of {work_root()}"


main(work)
