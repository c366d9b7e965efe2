"""The tables on which stages.validate lays its expectations: pandas in, pandas out, nothing judged here.

`images` has a row per image found, `names` one per class, `classes` one per class and split, `shares` one per split,
and with a reference manifest `changed_classes` and `drift`. A column that is empty where all is well says, where not,
what to tell the user.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd

from stages.common.runner import StageError
from stages.dataset.cells import from_cell
from stages.dataset.splits import SPLITS, fraction_that_would_do, place

DECODING = ("unreadable", "missing", "empty", "not an image", "too large", "unknown range", "broken")
PLACEMENT = ("name", "link", "no class", "no label", "split", "empty class", "listed twice")
MOST = 0.5  # of the images, that a part may take to have one of each class
STATISTICS = ("mean", "std", "width", "height", "bytes")
_TEXT = ("path", "sha256", "phash", "label", "split", "mode", "near_duplicate", "reason")


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Text stays text: a class may be called NA, None or 007."""
    table = pd.read_csv(
        path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=dict.fromkeys(STATISTICS, "")
    )
    if missing := {"path", "sha256", "label", "split", "reason"} - set(table.columns):
        raise StageError(f"{path} is no manifest: it has no column {' and no column '.join(sorted(missing))}")
    for name in table.columns.intersection(_TEXT):
        table[name] = table[name].map(from_cell)
    return table


def images(manifest: pd.DataFrame) -> pd.DataFrame:
    table = manifest.copy()
    code = table["reason"].str.partition(":")[0]
    for column, codes in (("decoding", DECODING), ("placement", PLACEMENT)):
        table[column] = table["reason"].where(code.isin(codes))
    for column in ("two labels", "two splits", "repeated", "ignored"):
        table[column.replace(" ", "_")] = table["reason"].where(code == column)
    table["near_duplicate"] = table["near_duplicate"].where(table["near_duplicate"] != "")
    table["short_side"] = table[["width", "height"]].min(axis=1)
    table["aspect"] = table[["width", "height"]].max(axis=1) / table["short_side"]
    return table


def held_out(manifest: pd.DataFrame) -> pd.DataFrame:
    """What may look like an image nearer to training."""
    table = images(manifest)
    return table[table["split"].isin(SPLITS[1:]) & (table["reason"] == "")]


def used(manifest: pd.DataFrame) -> pd.DataFrame:
    return manifest[manifest["reason"] == ""]


def declared_classes(manifest: pd.DataFrame) -> list[str]:
    """Every class that the source names, also one of which no image can be used."""
    return sorted(set(manifest["label"]) - {""})


def names(manifest: pd.DataFrame) -> pd.DataFrame:
    """class, and the others whose name a person reads as the same, but for case, blanks or how an accent is written."""
    table = pd.DataFrame({"class": sorted(set(used(manifest)["label"]))}, dtype=str)
    alike: dict[str, list[str]] = {}
    for name in table["class"]:
        alike.setdefault(_read_aloud(name), []).append(name)
    others = [[other for other in alike[_read_aloud(name)] if other != name] for name in table["class"]]
    table["alike"] = [", ".join(map(repr, some)) or None for some in others]
    return table


def _read_aloud(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def classes(manifest: pd.DataFrame, seed: int, fractions: dict[str, float]) -> pd.DataFrame:
    """class, split, images, and what to do where there are none."""
    fit = used(manifest)
    counts = fit.groupby(["label", "split"]).size()
    counts = counts.reindex(pd.MultiIndex.from_product([sorted(set(fit["label"])), SPLITS], names=["class", "split"]))
    table = counts.fillna(0).astype(int).rename("images").reset_index()
    empty = table[table["images"] == 0]
    remedies = {split: _remedies(fit, split, seed, fractions) for split in empty["split"].unique()}
    table["remedy"] = [
        remedies[split][label] if n == 0 else ""
        for label, split, n in zip(table["class"], table["split"], table["images"])
    ]
    table["place"] = table["class"] + " (" + table["split"] + ")"
    table["train_images"] = table["images"].where(table["split"] == "train")
    table["rarer_than_largest"] = table["train_images"].max() / table["train_images"].where(table["train_images"] > 0)
    return table


def _remedies(fit: pd.DataFrame, split: str, seed: int, fractions: dict[str, float]) -> dict[str, str]:
    """By class. The fraction is one that does for every class that is large enough."""
    key = {"val": "data.validation_fraction", "test": "data.test_fraction"}.get(split, "")
    drawn = bool(key) and is_drawn(fit, split, seed, fractions)
    sizes, needed = fit.groupby("label").size(), {}
    pools = _members(fit if split == "test" else fit[fit["split"] != "test"])
    for label in sizes.index[sizes >= len(SPLITS)]:
        needed[label] = fraction_that_would_do(seed, [pools.get(label, [])], split)
    enough = max((fraction for fraction in needed.values() if fraction <= MOST), default=0.0)
    found = {}
    for label, n in sizes.items():
        if n < len(SPLITS):
            found[label] = f"the class has {n} image(s), too few for {len(SPLITS)} parts: add images, or remove it"
        elif not drawn:
            found[label] = f"add images of it to {split}, or remove the class"
        elif needed[label] > MOST:
            found[label] = f"the class is too small for {split}: add images, or remove it"
        else:
            found[label] = f"{key}: {enough} would do (it is {fractions[split]})"
    return found


def _members(pool: pd.DataFrame) -> dict[str, list[str]]:
    """By class, its images; in one pass, since there may be ten thousand classes."""
    return pool.groupby("label")["sha256"].apply(list).to_dict() if len(pool) else {}


def is_drawn(fit: pd.DataFrame, split: str, seed: int, fractions: dict[str, float]) -> bool:
    """Did this project draw the split, or did the data set bring it? Its images tell: a draw can be repeated."""
    pool = fit if split == "test" else fit[fit["split"] != "test"]
    drawn = pool["sha256"].map(lambda sha: place(seed, sha, split) < fractions[split])
    return bool((drawn == (pool["split"] == split)).all())


def shares(manifest: pd.DataFrame, seed: int, fractions: dict[str, float]) -> pd.DataFrame:
    """Of each drawn split: its share, the one asked for, and how many standard deviations lie between."""
    fit, rows = used(manifest), []
    for split in ("test", "val"):
        pool = fit if split == "test" else fit[fit["split"] != "test"]
        if len(pool) and is_drawn(fit, split, seed, fractions):
            asked, share = fractions[split], float((pool["split"] == split).mean())
            rows.append((split, share, asked, abs(share - asked) / np.sqrt(asked * (1 - asked) / len(pool))))
    return pd.DataFrame(rows, columns=["split", "share", "asked", "deviation"])


def changed_classes(manifest: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """class, images now, images then."""
    now, then = (used(table)["label"].value_counts() for table in (manifest, reference))
    table = pd.DataFrame({"now": now, "then": then}).fillna(0).astype(int).sort_index()
    return table.rename_axis("class").reset_index()


def drift(manifest: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Per statistic the largest gap between two distributions (Kolmogorov-Smirnov), and what of it is not chance."""
    from scipy.stats import ks_2samp  # only where there is a reference: it takes a second to load

    now, then, rows = used(manifest), used(reference), []
    for name in (s for s in STATISTICS if s in now and s in then):
        a, b = (table[name].to_numpy(float) for table in (now, then))
        gap = float(ks_2samp(a, b, method="asymp").statistic)
        chance = 1.95 * np.sqrt(1 / len(a) + 1 / len(b))  # exceeded once in a thousand draws from one distribution
        rows.append((name, float(np.median(then[name])), float(np.median(now[name])), gap, max(0.0, gap - chance)))
    return pd.DataFrame(rows, columns=["statistic", "median_then", "median_now", "gap", "beyond_chance"])
