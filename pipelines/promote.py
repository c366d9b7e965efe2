"""Move an alias in the registry, if the evidence earns it.

    python -m pipelines.promote NAME                            # who is champion and challenger, and since when
    python -m pipelines.promote NAME VERSION --to champion      # or --to challenger
    python -m pipelines.promote NAME VERSION --to champion --force --why "the old test set had a leak"
    python -m pipelines.promote NAME VERSION --sign KEY         # and sign it (pipelines/registry/signature.py)
    python -m pipelines.promote NAME --rollback                 # the champion before the present one
    python -m pipelines.promote NAME --history

VERSION is a number, or `registered`: the one that models/registered.json names. Gates travel with the version: those of
register.gates in params.yaml when it was registered. A refusal is an exit code 1, and on record like a promotion.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolora.common.command_line import Command
from autolora.common.files import file_sha256
from pipelines.registry import decision_log as history
from pipelines.registry.gates import Finding, Paired, as_record, champion_findings, gate_findings
from pipelines.registry.show import ALIASES, show, show_history, show_present
from pipelines.registry.signature import sign
from pipelines.registry.versions import NOT_THERE, alias_version, evidence_of, get_version, registry, unknown_model
from stages.common.params import Gates, check
from stages.common.runner import StageError
from stages.common.scrub import scrubbed
from stages.evidence.files import ONNX
from stages.register import GATES, RECEIPT, check_receipt, read_receipt
from stages.tracking.client import answering

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CLAIM = "promotion_claim"
UNDER_WAY = 60.0  # seconds between the log and the alias, at most


def promote(
    name: str,
    version: str,
    to: str,
    gates: Gates | None = None,
    *,
    force: bool = False,
    why: str | None = None,
    key: Path | None = None,
) -> dict[str, Any]:
    """The entry in the log: what was decided on this version, and on which evidence. Without gates: the version's."""
    client = registry()
    found = _version(client, name, version)
    number, gates = int(found.version), gates or gates_of(found)
    claim = _claim(client, name)
    withdraw_cut_short(client, name, to)
    present = alias_version(client, name, to)
    if present == number:
        return _complete(client, found, to, key)
    findings, tests = examine(client, name, number, to, gates)
    earned = all(f.passed for f in findings)
    entry = {
        "model": name,
        "alias": to,
        "version": number,
        "previous": present,
        "decision": "promoted" if earned else "forced" if force else "refused",
        "why": why,
        "gates": gates.model_dump(),
        "evidence": as_record(findings, tests),
        **history.contents(found),
    }
    if not (earned or force):
        return history.append(client, entry)
    if key:  # before the alias names it
        sign(client, found, key)
    return _move(client, entry, claim)


def gates_of(version: ModelVersion) -> Gates:
    """As they were registered."""
    if GATES not in version.tags:
        raise StageError(
            f"{version.name} version {version.version} has no gates on record: "
            "`dvc repro --force --single-item register` where it was made, or --params FILE"
        )
    try:
        gates = Gates.model_validate_json(version.tags[GATES])
        if not {"clean", "robust"} <= gates.model_fields_set:  # `register` writes all of them
            raise ValueError(GATES)
        return gates
    except ValueError:  # pydantic's own is one
        raise StageError(f"{version.name} version {version.version}: its gates are unreadable: --params FILE") from None


def gates_in(file: str, name: str) -> Gates:
    """Those of a params.yaml, which must be about this model."""
    register = check(file).register
    if register.name != name:
        raise StageError(f"{file} is of {register.name} (register.name), not of {name}: its gates are not this model's")
    return register.gates


def _version(client: MlflowClient, name: str, version: str) -> ModelVersion:
    if version != "registered":
        return get_version(client, name, version)
    _refuse_old_receipt()
    found = check_receipt(client)
    if found.name != name:
        raise StageError(f"models/registered.json is of {found.name}, not of {name}")
    return found


def _refuse_old_receipt() -> None:
    """`dvc exp apply` brings back the experiment's model, and no receipt: that is of the model before."""
    receipt, model = Path(RECEIPT), Path(ONNX)
    if receipt.is_file() and model.is_file() and read_receipt(receipt)["onnx_sha256"] != file_sha256(model):
        raise StageError(f"{RECEIPT} is of another model than {ONNX}: `dvc repro register` registers this one first")


def examine(
    client: MlflowClient, name: str, number: int, to: str, gates: Gates
) -> tuple[list[Finding], dict[str, Paired]]:
    """The gates; and for a champion the paired test against the one that reigns."""
    reigning = alias_version(client, name, "champion")
    with evidence_of(get_version(client, name, number)) as new:
        findings = gate_findings(new, gates)
        if to != "champion" or reigning is None or reigning == number:
            return findings, {}
        try:
            with evidence_of(get_version(client, name, reigning)) as old:
                more, tests = champion_findings(new, old, gates)
        except StageError as error:  # its files are lost, or were changed: it may have to go for that
            more, tests = [Finding("champion", False, f"no comparison: {error}")], {}
    return findings + more, tests


def rollback(name: str, alias: str = "champion", why: str | None = None, key: Path | None = None) -> dict[str, Any]:
    """Back to the version before, whose files must still be what they were; signed, where a key is given."""
    client = registry()
    claim = _claim(client, name)
    withdraw_cut_short(client, name, alias)
    present = alias_version(client, name, alias)
    version = _before(client, name, alias, present)
    with evidence_of(version):
        entry = {
            "model": name,
            "alias": alias,
            "version": int(version.version),
            "previous": present,
            "decision": "rolled back",
            "why": why,
            **history.contents(version),
        }
    if key:
        sign(client, version, key)
    return _move(client, entry, claim)


def _before(client: MlflowClient, name: str, alias: str, present: int | None) -> ModelVersion:
    """The version that held the alias before the present one, and is still in the registry."""
    there = {int(version.version) for version in client.search_model_versions(f"name = '{name}'")}
    reigned = [v for v in history.reigns(history.entries(client, name), alias) if v != present]
    if gone := [v for v in reigned if v not in there]:
        print(f"{name}: version {', '.join(map(str, gone))} is no longer in the registry: passed over", file=sys.stderr)
    before = [v for v in reigned if v in there]
    if present is None or not before:
        raise StageError(f"{name} has no {alias} before the present one ({present}): there is nothing to go back to")
    return get_version(client, name, before[-1])


def _claim(client: MlflowClient, name: str) -> str:
    """MLflow cannot compare and set an alias, so whoever decides leaves a mark first: the last mark wins."""
    from mlflow import MlflowException

    claim = uuid.uuid4().hex
    try:
        client.set_registered_model_tag(name, CLAIM, claim)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        raise unknown_model(name) from None
    return claim


def _move(client: MlflowClient, entry: dict[str, Any], claim: str) -> dict[str, Any]:
    """Log, look once more, set. Of two who decide at the same time, one finds the other's mark or a moved alias."""
    name, alias = entry["model"], entry["alias"]
    entry = history.append(client, entry)
    mine = client.get_registered_model(name).tags.get(CLAIM) == claim
    present = alias_version(client, name, alias)
    if not mine or present != entry["previous"]:
        reason = f"the alias moved from {entry['previous']} to {present}" if mine else "somebody else began to promote"
        withdraw(client, entry, reason)
        raise StageError(
            f"{name}: {reason} while version {entry['version']} was examined; nothing was changed, run it again"
        )
    try:
        client.set_registered_model_alias(name, alias, str(entry["version"]))
    except BaseException as error:
        with suppress(Exception):  # a server that does not answer takes no entry either: the next decision does it
            withdraw(client, entry, f"the alias could not be set ({type(error).__name__})")
        raise
    if alias_version(client, name, alias) != entry["version"]:
        raise StageError(f"{name}@{alias} was moved again by somebody else at once: see --history")
    _tag(client, entry)
    return entry


def withdraw(client: MlflowClient, entry: dict[str, Any], reason: str) -> None:
    history.append(client, entry | {"decision": "withdrawn", "why": reason, "withdraws": entry["id"]})


def withdraw_cut_short(client: MlflowClient, name: str, alias: str) -> None:
    """A decision that was killed between the log and the alias has never happened: the alias is where it was, and the
    version has no tags of it. Not one of this minute, whose alias may be about to move."""
    last = history.last_of(history.entries(client, name), alias)
    if last is None or history.age(last) < UNDER_WAY or alias_version(client, name, alias) != last["previous"]:
        return
    try:
        tags = get_version(client, name, last["version"]).tags
    except StageError:  # the version is gone, and what its tags said
        return
    if last["at"] not in (tags.get(_since(alias)), tags.get("promoted_at")):  # or the alias was moved by other means
        withdraw(client, last, "it was cut short before the alias moved")


def _since(alias: str) -> str:
    """The tag that says when the version came to this alias: a later decision on another alias leaves it."""
    return f"{alias}_since"


def _complete(client: MlflowClient, found: ModelVersion, to: str, key: Path | None) -> dict[str, Any]:
    """It holds the alias already: what can be missing is its signature, or the tags of a promotion that was killed
    after the alias moved; they are written from the log, which came first."""
    already = f"{found.name} version {found.version} is {to} already"
    entry = history.last_move(history.entries(client, found.name), int(found.version))
    if not entry or entry["alias"] != to:
        raise StageError(already)
    missing = [name for name, value in _tags(entry).items() if value is not None and found.tags.get(name) != value]
    if not missing and not key:
        raise StageError(already)
    if missing:
        _tag(client, entry)
        print(f"{already}, but that promotion had been cut short: {', '.join(missing)} written now, as the log has it")
    if key:
        sign(client, found, key)
        print(f"{already}, and signed now with {key}")
    return entry


def _tag(client: MlflowClient, entry: dict[str, Any]) -> None:
    """Those of an earlier decision that this one does not give again are removed."""
    name, number = entry["model"], str(entry["version"])
    there = get_version(client, name, number).tags
    for key, value in _tags(entry).items():
        if value is not None:
            client.set_model_version_tag(name, number, key, value)
        elif key in there:
            client.delete_model_version_tag(name, number, key)


def _tags(entry: dict[str, Any]) -> dict[str, str | None]:
    tests = entry.get("evidence", {}).get("tests", {})
    tags = {
        "decision": f"{entry['decision']} to {entry['alias']}",
        "promoted_at": entry["at"],
        _since(entry["alias"]): entry["at"],
        "promoted_by": entry["by"],
        "previous_version": entry["previous"],
        "promotion_p": f"{tests['robust']['p']:.4g}" if tests else None,
        "promotion_why": entry["why"],
        "forced": "yes" if entry["decision"] == "forced" else None,
    }
    return {key: None if value is None else str(value) for key, value in tags.items()}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Command(
        __doc__,
        reads="the registry; models/registered.json for `registered`; FILE with --params",
        writes="the alias and the decision's record in the registry",
    )
    parser.add_argument("name", help="the model's, as register.name in params.yaml has it")
    parser.add_argument("version", nargs="?", help="a number, or `registered`; without it the aliases are shown")
    parser.add_argument("--to", choices=ALIASES, default="champion", help="the alias to move (default champion)")
    parser.add_argument("--force", action="store_true", help="move it although it was refused (needs --why)")
    parser.add_argument("--why", help="kept in the log")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign what is promoted with this private key (PEM)")
    parser.add_argument("--rollback", action="store_true", help="move the alias back to the version before")
    parser.add_argument("--history", action="store_true", help="show the decisions so far, refusals included")
    parser.add_argument("--params", metavar="FILE", help="gates of this params.yaml instead of the version's own")
    chosen = parser.parse_args(arguments)
    if chosen.force and not chosen.why:
        parser.error("--force needs --why TEXT: it stays on record")
    if out_of_place := _out_of_place(chosen):
        parser.error(out_of_place)
    return chosen


def _out_of_place(chosen: argparse.Namespace) -> str | None:
    """What would be passed over in silence."""
    given = {name for name in ("force", "params", "sign", "why", "rollback") if getattr(chosen, name)}
    given |= {"VERSION"} if chosen.version else set()
    alone = [f"--{name}" if name != "VERSION" else name for name in sorted(given)]
    if chosen.history and given:
        return f"--history only shows: it takes no {', '.join(alone)}"
    if chosen.rollback and (wrong := given & {"VERSION", "force", "params"}):
        return f"--rollback goes to the version before, whose gates were passed then: it takes no {', '.join(wrong)}"
    if given and not (chosen.version or chosen.rollback or chosen.history):
        return "which VERSION? (a number, or `registered`)"
    return None


def carry_out(chosen: argparse.Namespace) -> dict[str, Any] | None:
    if chosen.history:
        show_history(chosen.name)
        return None
    if chosen.rollback:
        return rollback(chosen.name, chosen.to, chosen.why, chosen.sign)
    if not chosen.version:
        show_present(chosen.name)
        return None
    gates = gates_in(chosen.params, chosen.name) if chosen.params else None
    return promote(chosen.name, chosen.version, chosen.to, gates, force=chosen.force, why=chosen.why, key=chosen.sign)


def main(arguments: list[str] | None = None) -> int:
    chosen = parse(arguments)
    try:
        with answering():
            entry = carry_out(chosen)
    except (StageError, OSError) as error:
        print(scrubbed(f"promote: {error}"), file=sys.stderr)
        return 1
    if entry is not None:
        show(entry)
    return 1 if entry and entry["decision"] == "refused" else 0


if __name__ == "__main__":
    sys.exit(main())
