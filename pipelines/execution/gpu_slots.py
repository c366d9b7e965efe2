"""GPU slots: one training per GPU, whoever asks and from wherever.

    python -m pipelines.execution.gpu_slots    create the slots of this machine's GPUs on the server, and list them

Each GPU is a global concurrency limit of one, named by the GPU's UUID: hosts and containers need no numbering. A stage
with `meta: {gpu: true}` takes the first free slot of its machine and sees that GPU only (CUDA_VISIBLE_DEVICES). A slot
is a lease: whoever dies stops renewing it, and it is free again after LEASE seconds. One that ran out while the server
was away is taken again. (Prefect's own `concurrency` gives up its renewal after a minute without an answer, for good.)
"""

from __future__ import annotations

import contextvars
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from uuid import UUID

import httpx

from autolora.common.command_line import Command

LEASE = 300.0
RENEWAL = 30.0  # seconds between two renewals, whatever the last one came to
PATIENCE = (2.0, 10.0)  # seconds between two looks at slots that are all taken
PREFIX = "gpu:"
NO_GPU = 6  # nvidia-smi's exit status where it works and finds none


class SlotError(RuntimeError):
    pass


def gpus() -> list[str]:
    """What this worker may use: CUDA_VISIBLE_DEVICES where it is set (empty: none), else all that nvidia-smi lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [uuid_of(name.strip()) for name in named.split(",") if name.strip() not in ("", "-1")]
    return list(_listed().values())


def uuid_of(name: str) -> str:
    """ "0" -> "GPU-8f..."; what is no index is a UUID already, or a name that a test has made up."""
    return _listed().get(name, name)


def _listed() -> dict[str, str]:
    if not shutil.which("nvidia-smi"):
        return {}
    asked = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise SlotError("nvidia-smi gave no answer in a minute: is the driver well?") from None
    if done.returncode == NO_GPU:
        return {}
    if done.returncode != 0:  # a machine of GPUs must not train on its CPU unnoticed
        said = [*(done.stdout + done.stderr).strip().splitlines(), "it said nothing"][0]
        raise SlotError(f"nvidia-smi failed: {said} (CUDA_VISIBLE_DEVICES= uses no GPU)")
    return {index.strip(): uuid.strip() for index, uuid in (line.split(",") for line in done.stdout.splitlines())}


@contextmanager
def held(count: int, devices: Sequence[str]) -> Iterator[list[str]]:
    """`count` of the devices, waiting as long as it takes; a machine without a GPU holds none."""
    if not devices or count < 1:
        yield []
        return
    if count > len(devices):
        raise SlotError(f"{count} GPUs wanted, this worker has {len(devices)}: {', '.join(devices)}")
    create(devices)
    while True:
        with ExitStack() as stack:
            taken = _take(count, devices, stack)
            if len(taken) == count:
                yield taken
                return
        time.sleep(random.uniform(*PATIENCE))  # all given back meanwhile: two that want two each never block each other


def _take(count: int, devices: Sequence[str], stack: ExitStack) -> list[str]:
    taken: list[str] = []
    for device in devices:
        if len(taken) < count and take_slot(device, stack):
            taken.append(device)
    return taken


def take_slot(device: str, stack: ExitStack) -> bool:
    """A slot that does not exist is an error, not a GPU without a limit."""
    lease = leased(PREFIX + device)
    if lease:
        stack.enter_context(kept(PREFIX + device, lease))
    return lease is not None


def leased(slot: str) -> UUID | None:
    """None where somebody has it."""
    from prefect import get_client

    with get_client(sync_client=True) as client:
        try:
            answer = client.increment_concurrency_slots_with_lease([slot], 1, "concurrency", LEASE).json()
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.LOCKED:
                return None
            raise
    if not answer["limits"]:
        raise SlotError(
            f"no slot {slot} on the server: `python -m pipelines.execution.gpu_slots` on this machine creates it"
        )
    return UUID(answer["lease_id"])


@contextmanager
def kept(slot: str, lease: UUID) -> Iterator[None]:
    """Renewed beside the work, which a server that is away does not end; given back at the end."""
    from prefect import get_client

    over, now = threading.Event(), [lease]

    def renew() -> None:
        while not over.wait(RENEWAL):
            now[0] = renewed(slot, now[0])

    thread = threading.Thread(target=contextvars.copy_context().run, args=(renew,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=2)
        with (
            suppress(Exception),
            get_client(sync_client=True) as client,
        ):  # a lease that is not given back ends by itself
            client.release_concurrency_slots_with_lease(now[0])


def renewed(slot: str, lease: UUID) -> UUID:
    """The same, also where the server is away; another where it ran out."""
    from prefect import get_client

    try:
        with get_client(sync_client=True) as client:
            client.renew_concurrency_lease(lease, LEASE)
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.GONE:
            return taken_again(slot) or lease
    except Exception:  # whatever the way to the server raises: at the next turn
        pass
    return lease


def taken_again(slot: str) -> UUID | None:
    """None while another run has it, which took it meanwhile; the work goes on beside that one."""
    from prefect.logging import get_logger

    lease = None
    with suppress(Exception):
        lease = leased(slot)
    so = "taken again" if lease else "another run has it now, and this one goes on until it is free again"
    get_logger("gpu_slots").warning("the lease of %s has run out: %s", slot, so)
    return lease


def create(devices: Sequence[str]) -> None:
    """Those that are missing; one that exists keeps the limit that somebody gave it."""
    from prefect import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with get_client(sync_client=True) as client:
        for name in (PREFIX + device for device in devices):
            try:
                client.read_global_concurrency_limit_by_name(name)
            except ObjectNotFound:
                with suppress(ObjectAlreadyExists):  # another worker of this machine was faster
                    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))


def main() -> None:
    Command(__doc__, reads="this machine's GPUs (nvidia-smi)", writes="their slots on Prefect's server").parse_args()
    try:
        devices = gpus()
    except SlotError as error:
        sys.exit(f"slots: {error}")
    if not devices:
        sys.exit("slots: nvidia-smi lists no GPU here, and CUDA_VISIBLE_DEVICES names none: nothing to create")
    create(devices)
    print("\n".join(PREFIX + device for device in devices))


if __name__ == "__main__":
    main()
