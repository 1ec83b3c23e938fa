"""List the ways in which groups of files can be given roles, the best first.

Groups of alike names are gathered into classes that share a role: by their folders' words, by their
folders' names, or by words and extensions of their stems. A class suits a role by its words and by
its pixels; a candidate is one role for each class, and its cost says how ill it suits. Whether the
files then fit together is for ``roles`` to find out. No file is opened here.
"""

import functools
import heapq
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardify.layout import filenames
from shardify.layout.name_groups import Group, NameGroups, Words

__all__ = ["Candidate", "FileClass", "candidates", "file_classes"]

Key = tuple[Any, ...]
"""Words of folders, the name of a folder that no word tells, and what else parts a class."""

_PHOTOGRAPHS = frozenset({"jpg", "jpeg", "jpe", "jfif"})

_MOST_CLASSES = 10
"""The fullest classes are tried in every role; smaller ones take the role they suit best."""

_MOST_PARTS = 40
"""With more classes than this a partition explains nothing."""

_MOST_TRIED = 4_000
_HOPELESS = 8.0
"""What costs this much more than the best is not looked for."""

_MOST_KEPT = 64

_NEVER = 9.0
_AGAINST_WORDS = 3.0
_MISSING_ROLE = 6.0
_BY_PIXELS = 0.8
"""Files that no word tells, in the role that their pixels speak for: less than to leave them."""

_DROPPED = 3.5
_DROPPED_TWIN = 1.2
_PARTITION = 0.05
"""What a finer partition costs: where a coarser one explains as much, that one is meant."""

_PIXEL_COST = {
    "mask": {"gray": 4.0, "picture": 4.0, "few": 0.7, "cutout": 0.7},
    "depth": {"two": 3.0, "few": 1.5, "picture": 1.0, "cutout": 3.0},
    "fg_bg": {"two": 3.0, "few": 2.0, "gray": 0.5, "cutout": 0.5},
    "bg": {"two": 3.0, "few": 1.0, "gray": 0.3, "cutout": 1.0},
}
"""Role -> kind of pixels -> cost. Costs are weights, chosen so that one clear word outweighs a
doubt, and clear pixels of two classes outweigh the words of both."""


@dataclass(kw_only=True, slots=True)
class FileClass:
    """Files that have one role together."""

    name: str
    """For messages: a folder's outline and an extension."""

    groups: list[int]
    """Indexes of its groups in the census."""

    files: int
    words: Counter[str]
    """Words for a role that its folders have, or nearly all its stems."""

    photographs: bool
    """Whether its extension is that of photographs."""

    kind: str | None = None
    """What its pixels look like; None where that was not found out."""

    kinds: Counter[str] = field(default_factory=Counter)
    """How many of the files that were opened look like what."""

    def role_cost(self, role: str | None) -> float:
        """Return how ill a role suits the words and pixels of this class; 0: well.

        Args:
            role: One of ``naming.ROLES``, or None to leave the class aside.
        """
        words, by_words = self.words, self.word_cost(role)
        if role is None:
            unlike_validity = words["validity"] and self.kind in ("gray", "picture")
            return by_words + (2.0 if unlike_validity else 0.0)
        by_pixels = _PIXEL_COST[role].get(self.kind or "", 0.0)
        if not words and (role, self.kind) in (("mask", "two"), ("depth", "gray")):
            return _BY_PIXELS
        if role in ("mask", "depth") and self.kind in ("few", "cutout"):
            # What several values or an alpha mean is no guess to make without a word for it.
            if not words[role] and not (role == "mask" and words["trimap"]):
                return _NEVER
        return by_words + by_pixels

    def word_cost(self, role: str | None) -> float:
        """The part of ``role_cost`` that words make."""
        words = self.words
        target = words["mask"] or words["depth"]
        if words["other"]:
            return 0.0 if role is None else _NEVER
        if role is None:
            return self._drop_cost()
        spoken = bool(target or words["label"] or words["fg_bg"] or words["bg"])
        eye = 1.0 if words["eye"] else 0.0
        if role in ("mask", "depth"):
            if words[role]:
                return eye
            if role == "mask" and (words["trimap"] or words["cutout"]):
                return 0.3 if words["trimap"] else 0.6
            if role == "depth" and words["validity"]:
                return 1.0
            if words["label"] and not target:
                return 0.8 if role == "mask" else 1.2
            if spoken or words["fg"] or words["picture"]:
                return self._against_words(role)
            return 2.0 + eye + 0.3 * self.photographs
        if role == "bg":
            if words["bg"] and not target:
                return 0.0
            return 0.1 if words["numbered"] and not spoken else _NEVER
        if target or words["label"]:
            against = self._against_words(role)
            return min(0.6, against) if words["fg_bg"] and against < _NEVER else against
        if words["fg_bg"] or words["picture"]:
            return eye
        if words["bg"] or words["fg"] or words["cutout"] or words["validity"]:
            return self._against_words(role)
        return 1.0 + eye + 0.3 * (not self.photographs)

    def _against_words(self, role: str) -> float:
        """Words that say something else are overruled by pixels alone."""
        shown = {"mask": "two", "depth": "gray", "fg_bg": "picture"}[role]
        return _AGAINST_WORDS if self.kind == shown else _NEVER

    def _drop_cost(self) -> float:
        words = self.words
        if words["validity"] or words["fg"]:
            return 0.0
        if words["eye"] or words["cutout"] or words["trimap"]:
            return 0.5
        if any(words[each] for each in ("mask", "depth", "fg_bg", "bg", "numbered")):
            return _DROPPED
        return 1.5 if words["picture"] or words["label"] or self.kind in ("two", "gray") else 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One role for each class."""

    classes: Sequence[FileClass]
    roles: tuple[str | None, ...]
    """Of the classes."""

    cost: float

    def twins(self) -> tuple[str, FileClass, FileClass] | None:
        """Return a role, the class that has it, and one left aside that has the same claim."""
        pairs = list(zip(self.classes, self.roles, strict=True))
        for role in ("mask", "depth", "fg_bg"):
            used = max((each for each, its in pairs if its == role), key=_files, default=None)
            for each, its in pairs:
                claims = its is None and each.words[role] and each.word_cost(None) >= _DROPPED
                if used and claims and 2 * each.files >= used.files:
                    return role, used, each
        return None

    def of_groups(self, count: int) -> tuple[str | None, ...]:
        """The role of each of the census's ``count`` groups."""
        found: list[str | None] = [None] * count
        for each, role in zip(self.classes, self.roles, strict=True):
            for group in each.groups:
                found[group] = role
        return tuple(found)


def _files(each: FileClass) -> int:
    return each.files


def file_classes(census: NameGroups) -> list[list[FileClass]]:
    """Return the partitions of the census's groups into classes, the coarsest first."""
    counts = census.counts()
    partitions: list[list[FileClass]] = []
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for key in (_by_folder_words, _by_folder_names, _by_stems):
        parts = _parted(census.groups, key)
        shape = tuple(sorted(map(tuple, parts)))
        if shape not in seen and len(parts) <= _MOST_PARTS:
            seen.add(shape)
            partitions.append(_classes_of(census, counts, parts))
    return partitions


def _parted(groups: Sequence[Group], key: Callable[[Group], Key]) -> list[list[int]]:
    """Put groups of equal keys together; where there are too many, all that no word tells."""
    parts: dict[Key, list[int]] = {}
    for number, group in enumerate(groups):
        parts.setdefault(key(group), []).append(number)
    if len(parts) > _MOST_PARTS:
        merged: dict[Key, list[int]] = {}
        for (words, _, *rest), numbers in parts.items():
            merged.setdefault((words, "", *rest), []).extend(numbers)
        parts = merged
    return list(parts.values())


def candidates(partitions: Sequence[Sequence[FileClass]]) -> list[Candidate]:
    """Return candidates that have composites and masks or depth maps, in the order of cost."""
    found: list[Candidate] = []
    for number, classes in enumerate(partitions):
        extra = number * _PARTITION
        found += [
            Candidate(classes=classes, roles=roles, cost=cost + extra)
            for roles, cost in _Assignments(classes).ranked()
        ]
    found.sort(key=lambda each: (each.cost, str(each.roles)))
    return found[:_MOST_KEPT]


def _by_folder_words(group: Group) -> Key:
    spoken = tuple(words for words in _spoken(group) if words)
    # The innermost folder that says more than a split tells where no word does.
    parts = [part for part in group.outline.lower().split("/") if not filenames.split_of(part)]
    return spoken, "" if spoken or not parts else parts[-1]


def _by_folder_names(group: Group) -> Key:
    parts = group.outline.lower().split("/")
    spoken = tuple(part for part, words in zip(parts, _spoken(group), strict=False) if words)
    plain = "/".join(part for part in parts if not filenames.split_of(part))
    return spoken, "" if spoken else plain


def _by_stems(group: Group) -> Key:
    extension = "jpg" if group.extension in _PHOTOGRAPHS else group.extension
    return (*_by_folder_words(group), group.stem, extension)


def _spoken(group: Group) -> list[Words]:
    """Words of the folders; a folder such as bg_007 may hold whatever lies on that background."""
    return [() if words == ("numbered",) else words for words in group.folders]


def _classes_of(
    census: NameGroups, counts: Sequence[int], parts: Sequence[list[int]]
) -> list[FileClass]:
    most = max(sum(counts[number] for number in groups) for groups in parts)
    found: list[tuple[FileClass, Counter[str]]] = []
    for groups in parts:
        files = sum(counts[number] for number in groups)
        words: Counter[str] = Counter()
        stems: Counter[tuple[str, int]] = Counter()
        for number in groups:
            group = census.groups[number]
            words |= Counter(word for part in _spoken(group) for word in part)
            for word, times in Counter(group.stem).items():
                for time in range(times):
                    stems[word, time] += counts[number]
        group = census.groups[max(groups, key=counts.__getitem__)]
        name = f"{group.outline}/*.{group.extension}".lstrip("/")
        each = FileClass(
            name=name, groups=groups, files=files, words=words,
            photographs=group.extension in _PHOTOGRAPHS,
        )  # fmt: skip
        # What nearly all stems say is said of the class; what some say belongs to these samples.
        said = Counter(word for (word, _), many in stems.items() if many >= 0.9 * files)
        found.append((each, said))
    # Words that the stems of all companions have are part of the samples' names; words that the
    # folders of all have tell nothing apart.
    in_names = _common([said for each, said in found if 2 * each.files >= most])
    around = _common([each.words for each, _ in found if 1000 * each.files >= most])
    for each, said in found:
        each.words = each.words - around + (said - in_names)
    return sorted((each for each, _ in found), key=lambda each: (-each.files, each.name))


def _common(counts: Sequence[Counter[str]]) -> Counter[str]:
    return functools.reduce(operator.and_, counts) if len(counts) > 1 else Counter()


class _Assignments:
    """Roles for all classes of one partition, and what they cost together."""

    def __init__(self, classes: Sequence[FileClass]) -> None:
        self._classes = classes
        self._most = classes[0].files
        self._costs = [
            {role: each.role_cost(role) for role in (*filenames.ROLES, None)} for each in classes
        ]
        self._dropped = [costs[None] >= _DROPPED for costs in self._costs]
        """Classes that a word tells: to leave some aside costs as much as to leave all."""
        self._spoken = [
            role
            for role in filenames.ROLES
            if any(each.words[role] and each.word_cost(role) < 0.5 for each in classes)
        ]
        self._cutouts = any(each.words["cutout"] or each.words["trimap"] for each in classes)
        self._plain = max((each.files for each in classes if not +each.words), default=0)

    def ranked(self) -> list[tuple[tuple[str | None, ...], float]]:
        """Assignments with their costs, roughly the best first."""
        options = []
        for number, costs in enumerate(self._costs):
            weighed = [
                (
                    self._weight(number, role) * min(cost, _DROPPED_TWIN if role is None else cost),
                    role,
                )
                for role, cost in costs.items()
                if cost < _NEVER
            ]
            weighed.sort(key=lambda pair: (pair[0], str(pair[1])))
            options.append(weighed if number < _MOST_CLASSES else weighed[:1])
        start = (0,) * len(options)
        heap = [(sum(each[0][0] for each in options), start)]
        seen = {start}
        found: list[tuple[tuple[str | None, ...], float]] = []
        best = float("inf")
        while heap and len(seen) < _MOST_TRIED:
            least, places = heapq.heappop(heap)
            if least > best + _HOPELESS:
                break
            roles = tuple(each[place][1] for each, place in zip(options, places, strict=True))
            cost = self._total(roles)
            if cost is not None:
                found.append((roles, cost))
                best = min(best, cost)
            for number, place in enumerate(places):
                if place + 1 < len(options[number]):
                    following = (*places[:number], place + 1, *places[number + 1 :])
                    if following not in seen:
                        seen.add(following)
                        step = options[number][place + 1][0] - options[number][place][0]
                        heapq.heappush(heap, (least + step, following))
        return found

    def _weight(self, number: int, role: str | None) -> float:
        """The share of a full role that a class has; backgrounds are few by nature."""
        each = self._classes[number]
        if role == "bg" or each.words["bg"] or (role is None and self._dropped[number]):
            return 1.0
        return each.files / self._most

    def _total(self, roles: tuple[str | None, ...]) -> float | None:
        """How ill all roles together suit; None without composites, or without any target."""
        files = dict.fromkeys((*filenames.ROLES, None), 0)
        for each, role in zip(self._classes, roles, strict=True):
            files[role] += each.files
        composites = files["fg_bg"]
        if not composites or not (files["mask"] or files["depth"]):
            return None
        cost = 0.0
        for number, role in enumerate(roles):
            own = self._costs[number][role]
            if role is None and self._dropped[number] and self._has_twin(number, roles):
                # Another class of the same word has the role: a copy of it is easily let go.
                own = _DROPPED_TWIN
            cost += self._weight(number, role) * own
        for role in ("mask", "depth"):
            if files[role]:
                cost += 3 * (1 - min(files[role], composites) / max(files[role], composites))
        cost += _MISSING_ROLE * sum(not files[role] for role in self._spoken)
        if self._cutouts and not files["mask"]:
            cost += 1.0
        return cost + 3 * max(0.0, 1 - composites / self._plain if self._plain else 0.0)

    def _has_twin(self, number: int, roles: tuple[str | None, ...]) -> bool:
        words = self._classes[number].words
        return any(
            role is not None and other.words[role] and words[role]
            for other, role in zip(self._classes, roles, strict=True)
        )
