"""Assigns samples to splits by a hash of their ids, stratified, duplicates kept together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from trimtab.data.entries import LISTED, count_of, listed, note, shown
from trimtab.errors import DataError
from trimtab.records.finding import Finding
from trimtab.registry import did_you_mean

NAMES = ("train", "valid", "test")
FEW = 10


@dataclass(frozen=True)
class Samples:
    """What splitting looks at: per row its id, its label and a digest of its pixels."""

    ids: Sequence[str]
    labels: Sequence[str]
    digests: Sequence[bytes]

    def take(self, rows: Iterable[int]) -> Samples:
        """Return some of the rows."""
        chosen = list(rows)
        return Samples([self.ids[r] for r in chosen], [self.labels[r] for r in chosen],
                       [self.digests[r] for r in chosen])  # fmt: skip


def rank(name: str, seed: int) -> bytes:
    """Return a hash of an id: the order in which ids are dealt out."""
    return blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()


def carve(samples: Samples, fractions: dict[str, float], seed: int) -> list[str]:
    """Return the split of each row; `fractions` are the shares to take out of train.

    Each class gives each split its share, at least one picture. Exact duplicates stay together.
    Raises DataError for a class with too few different pictures.
    """
    splits = ["train"] * len(samples.ids)
    wanted = {name: share for name, share in fractions.items() if share > 0}
    for label, groups in groups_by_class(samples, seed).items():
        check_enough(label, groups, 1 + len(wanted))
        size = sum(len(group) for group in groups)
        for left, (name, share) in zip(range(len(wanted), 0, -1), wanted.items(), strict=True):
            taken = pick(groups, max(1, round(size * share)), left)
            for row in (row for group in taken for row in group):
                splits[row] = name
            groups = [group for group in groups if splits[group[0]] == "train"]
    return splits


def groups_by_class(samples: Samples, seed: int) -> dict[str, list[list[int]]]:
    """Return for each class its groups of identical pictures, in the order of their hash.

    A group whose labels disagree belongs to the class of its first row.
    """
    by_class: dict[str, list[list[int]]] = {label: [] for label in samples.labels}
    for rows in same_pixels(samples.digests).values():
        by_class[samples.labels[rows[0]]].append(rows)
    for groups in by_class.values():
        groups.sort(key=lambda rows: min(rank(samples.ids[row], seed) for row in rows))
    return by_class


def same_pixels(digests: Sequence[bytes]) -> dict[bytes, list[int]]:
    """Return the rows of every different picture."""
    found: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        found[digest].append(row)
    return found


def pick(groups: list[list[int]], quota: int, spare: int) -> list[list[int]]:
    """Choose groups of `quota` rows in all, at least one, and leave `spare` groups behind."""
    taken: list[list[int]] = []
    count = 0
    for group in groups:
        if len(groups) - len(taken) > spare and count + len(group) <= quota:
            taken.append(group)
            count += len(group)
    return taken or [min(groups, key=len)]


def check_enough(label: str, groups: list[list[int]], splits: int) -> None:
    """Refuse a class that cannot be in every split."""
    if len(groups) < splits:
        rows = sum(len(group) for group in groups)
        raise DataError(
            f"class '{shown(label)}' holds {count_of(rows, 'picture')}, {len(groups)} of them "
            f"different; wanted at least {splits}",
            "add pictures of it, or leave the class out",
        )


def in_hash_order(ids: Sequence[str], rows: Iterable[int]) -> list[int]:
    """Return rows in the order of a hash of their ids, so that any first part is a fair sample."""
    return sorted(rows, key=lambda row: rank(ids[row], 0))


def leave_out(samples: Samples, splits: Sequence[str]) -> tuple[set[int], list[dict[str, str]]]:
    """Find copies across splits that the user gave: those outside of test, then of valid, go.

    Returns the rows left out, and for each its id, its split and the id it is a copy of.
    """
    gone: set[int] = set()
    told = []
    for rows in same_pixels(samples.digests).values():
        last = max(NAMES.index(splits[row]) for row in rows)
        kept = next(row for row in rows if splits[row] == NAMES[last])
        for row in rows:
            if splits[row] != NAMES[last]:
                gone.add(row)
                told.append({"id": samples.ids[row], "split": splits[row],
                             "copy_of": samples.ids[kept]})  # fmt: skip
    return gone, told


def duplicate_findings(samples: Samples) -> list[Finding]:
    """Name exact duplicates inside a split, and those whose labels disagree."""
    same, torn = [], []
    for rows in same_pixels(samples.digests).values():
        if len(rows) > 1:
            group = [samples.ids[row] for row in rows]
            same.append(group)
            if len({samples.labels[row] for row in rows}) > 1:
                torn.append(group)
    found = []
    if same:
        extra = sum(len(group) - 1 for group in same)
        found.append(note("duplicates", "info", f"{count_of(extra, 'exact copy')} of pictures "
                          f"inside a split, kept: {listed(same[0])}",
                          count=extra, groups=same[:LISTED]))  # fmt: skip
    if torn:
        found.append(note("conflicting_labels", "warning", f"{count_of(len(torn), 'picture')} "
                          f"with more than one label: {listed(torn[0])}", "give each one label",
                          count=len(torn), groups=torn[:LISTED]))  # fmt: skip
    return found


def leak_findings(told: list[dict[str, str]]) -> list[Finding]:
    """Name the copies across splits that were left out."""
    if not told:
        return []
    pairs = [f"{row['id']} = {row['copy_of']}" for row in told]
    count = count_of(len(told), "picture")
    return [note("duplicates_across_splits", "warning", f"{count} of train "
                 f"or valid left out, since valid or test holds the same: {listed(pairs)}",
                 "remove the copies", count=len(told), copies=told[:LISTED])]  # fmt: skip


def class_findings(counts: dict[str, dict[str, int]]) -> list[Finding]:
    """Name classes that a split lacks or train has few of; refuse those that train lacks.

    `counts` is per split and class. Raises DataError.
    """
    check_train(counts["train"])
    found = []
    for split, by_class in counts.items():
        absent = [name for name, count in by_class.items() if not count]
        if absent:
            found.append(note("class_missing_from_split", "warning", f"{split} holds no "
                              f"pictures of {listed(absent)}; nothing is known of them there",
                              "add some", split=split, classes=absent[:LISTED]))  # fmt: skip
    few = [name for name, count in counts["train"].items() if count < FEW]
    if few:
        found.append(note("few_pictures", "warning", f"train holds under {FEW} pictures of "
                          f"{listed(few)}", "add some", classes=few[:LISTED]))  # fmt: skip
    return found


def check_train(train: dict[str, int]) -> None:
    """Refuse a class that cannot be learnt, and name the one that may be meant."""
    absent = [name for name, count in train.items() if not count]
    if absent:
        known = [name for name, count in train.items() if count]
        hint = did_you_mean(absent[0], known)
        if not hint.startswith("did"):
            hint = "add some to train, or remove the class from the other splits"
        raise DataError(f"class '{shown(absent[0])}' has no pictures in train", shown(hint))
