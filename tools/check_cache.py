"""Does DVC's cache hold what its names promise? For after a disk's fault, or a copy that broke off.

    python -m tools.check_cache              # lists the files whose bytes are not those of their name
    python -m tools.check_cache --repair     # removes them and the outputs made from them: `dvc repro` makes both again

DVC takes a cached file (not one of a folder) that nobody may write for whole, and never hashes it again. So `dvc
checkout` and `dvc repro` bring back wrong bytes without a word. Exit code 1 where something is wrong.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from autolora.common.command_line import Command

# Others are DVC's temporary files, which another process may be writing.
NAME = re.compile(r"[0-9a-f]{30}(\.dir)?")


def cache() -> Path:
    told = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True)
    if told.returncode:
        sys.exit(f"check_cache: {told.stderr.strip() or 'dvc does not say where its cache is'}")
    return Path(told.stdout.strip()) / "files" / "md5"


def md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def damaged(folder: Path) -> dict[str, Path]:
    """By the hash that the name promises."""
    files = [file for file in sorted(folder.glob("??/*")) if NAME.fullmatch(file.name) and file.is_file()]
    named = {file.parent.name + file.name: file for file in files}
    return {name: file for name, file in named.items() if md5(file) != name.removesuffix(".dir")}


def made_from(wrong: dict[str, Path], folder: Path) -> list[Path]:
    """Outputs of dvc.lock that are one of these files, or a folder that holds one."""
    lock = Path("dvc.lock")
    if not lock.is_file():
        return []
    outs = [out for stage in yaml.safe_load(lock.read_text())["stages"].values() for out in stage.get("outs", [])]
    return [Path(out["path"]) for out in outs if out["md5"] in wrong or _inside(out["md5"], folder) & set(wrong)]


def _inside(name: str, folder: Path) -> set[str]:
    """The hashes of the files in a folder."""
    listing = folder / name[:2] / name[2:]
    if not name.endswith(".dir") or not listing.is_file():
        return set()
    try:
        return {entry["md5"] for entry in yaml.safe_load(listing.read_text())}
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError):  # the listing itself is damaged
        return set()


def main(arguments: list[str] | None = None) -> int:
    parser = Command(
        __doc__,
        reads="DVC's cache, dvc.lock",
        writes="nothing; --repair removes what is wrong, and the outputs made from it",
    )
    parser.add_argument("--repair", action="store_true", help="remove what is wrong; `dvc repro` makes it again")
    chosen = parser.parse_args(arguments)
    folder = cache()
    wrong = damaged(folder)
    outputs = made_from(wrong, folder)
    for file in wrong.values():
        print(f"damaged: {file}")
    if chosen.repair:
        for path in [*wrong.values(), *outputs]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            print(f"removed: {path}")
        if wrong:
            print("`dvc repro` makes again what is missing")
    print(f"{len(wrong)} files of {folder} are damaged; {len(outputs)} outputs here are made from them")
    return int(bool(wrong) and not chosen.repair)


if __name__ == "__main__":
    sys.exit(main())
