"""What `promote` prints: one decision, who holds each alias, the whole log."""

from __future__ import annotations

from typing import Any

from pipelines.registry import decision_log as history
from pipelines.registry.gates import Finding
from pipelines.registry.versions import alias_version, get_version, registry, require_model

ALIASES = ("champion", "challenger")
NOT_EXPLAINED = "!! no entry of the log explains it: the alias was moved by other means"


def show(entry: dict[str, Any]) -> None:
    print(f"{entry['model']} version {entry['version']} -> {entry['alias']}: {entry['decision'].upper()}")
    for finding in entry.get("evidence", {}).get("findings", []):
        print("  ", Finding(**finding))
    if entry["why"]:
        print(f"   why: {entry['why']}")


def show_present(name: str) -> None:
    """Who holds each alias, since when, and how good it is."""
    client = registry()
    require_model(client, name)
    log = history.entries(client, name)
    for alias in ALIASES:
        number = alias_version(client, name, alias)
        if number is None:
            last = history.last_of(log, alias)
            gone = f"  !! it was version {last['version']}: the alias was removed by other means" if last else ""
            print(f"{alias:<11} none{gone}")
            continue
        tags = get_version(client, name, number).tags
        entry = history.explaining(log, alias, number)
        since = f"since {entry['at'][:19]}Z, {entry['decision']} by {entry['by']}" if entry else NOT_EXPLAINED
        print(
            f"{alias:<11} version {number}  {tags.get('threat')}  clean {tags.get('clean_accuracy')}  "
            f"robust {tags.get('robust_accuracy')} (n = {tags.get('n')})  {since}"
        )


def show_history(name: str) -> None:
    client = registry()
    require_model(client, name)
    log = history.entries(client, name)
    print("\n".join(history.lines(log)) or f"{name}: no decision yet")
    present, known = alias_version(client, name, "champion"), history.reigns(log, "champion")
    if present != (known[-1] if known else None):
        now = "none" if present is None else f"version {present}"
        print(f"  !! champion is {now}, which no entry explains: the alias was moved by other means")
