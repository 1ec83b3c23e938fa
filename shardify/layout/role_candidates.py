"""List candidate assignments of roles to classes of files, the cheapest first.

Groups of names are merged into classes that share a role: by the role words of folders, by the
names of folders, or by role words and extensions of stems. A candidate gives each class one role;
its cost measures how badly the roles match the words and pixels. ``roles`` joins the files.
"""

import functools
import heapq
import itertools
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardify.layout import filenames
from shardify.layout.name_groups import Group, NameGroups, Words
from shardify.layout.thumbnails import KINDS

Key = tuple[Any, ...]
"""Role words of folders, name of a folder without role words, and more that splits classes."""

_PHOTOGRAPHS = frozenset({"jpg", "jpeg", "jpe", "jfif"})

_MAX_VARIED_CLASSES = 10
"""The largest classes are tried in every role; smaller ones get their cheapest role."""

_MAX_CLASSES = 40
"""A partition with more classes than this is not used."""

_MAX_SEARCHED = 4_000
"""Number of assignments that are examined for one partition."""

_MAX_EXTRA_COST = 8.0
"""The search stops at assignments that cost this much more than the best."""

_MAX_CANDIDATES = 64
"""Number of candidates that are returned."""

_EXCLUDED = 9.0
"""Cost of a role that is never assigned."""

_AGAINST_WORDS_COST = 3.0
_MISSING_ROLE_COST = 6.0
_PIXELS_ONLY_COST = 0.8
"""Files without role words, in the role of their pixels: cheaper than not to use them."""

_UNUSED_COST = 3.5
_UNUSED_DUPLICATE_COST = 1.2
_FINER_PARTITION_COST = 0.05
"""Extra cost of a finer partition: the coarser one wins if both match as well."""

_PIXEL_COST = {
    "mask": {"gray": 4.0, "picture": 4.0, "few": 0.7, "cutout": 0.7},
    "depth": {"two": 3.0, "few": 1.5, "picture": 1.0, "cutout": 3.0},
    "fg_bg": {"two": 3.0, "few": 2.0, "gray": 0.5, "cutout": 0.5},
    "bg": {"two": 3.0, "few": 1.0, "gray": 0.3, "cutout": 1.0},
}
"""Role -> kind of pixels -> cost. The costs are chosen so that one clear word outweighs unclear
pixels, and clear pixels of two classes outweigh the words of both."""


@dataclass(kw_only=True, slots=True)
class FileClass:
    """Files that get the same role."""

    name: str
    """For messages: a folder's outline and an extension."""

    groups: list[int]
    """Indexes of its groups in ``NameGroups.groups``."""

    files: int
    words: Counter[str]
    """Role words of its folders and of nearly all its stems."""

    photographs: bool
    """Whether its extension is one of JPEG."""

    kind: str | None = None
    """Kind of its pixels, see ``thumbnails.KINDS``; None if unknown."""

    kinds: Counter[str] = field(default_factory=Counter)
    """Number of files of each kind among those that were read."""

    @property
    def contents(self) -> str:
        """Number and kinds of the files, for messages: ``20 files, two values``."""
        kinds = [KINDS[kind] for kind, _ in self.kinds.most_common(2)]
        return ", ".join([f"{self.files} files", *kinds])

    def role_cost(self, role: str | None) -> float:
        """Return how badly a role matches the words and pixels of this class; 0 for a good match.

        Args:
            role: One of ``filenames.ROLES``, or None not to use the class.
        """
        words, kind, by_words = self.words, self.kind, self.word_cost(role)
        if role is None:
            unlike_validity = words["validity"] and kind in ("gray", "picture")
            return by_words + (2.0 if unlike_validity else 0.0)
        if not words and (role, kind) in (("mask", "two"), ("depth", "gray")):
            return _PIXELS_ONLY_COST
        if role in ("mask", "depth") and not words[role]:
            weak = role == "mask" and (words["label"] or words["trimap"] or words["cutout"])
            if self.kinds and not weak and not self.kinds["two" if role == "mask" else "gray"]:
                return _EXCLUDED
            # Without a role word the meaning of several values or of alpha is unknown.
            if kind in ("few", "cutout") and not (role == "mask" and words["trimap"]):
                return _EXCLUDED
        return by_words + _PIXEL_COST[role].get(kind or "", 0.0)

    def word_cost(self, role: str | None) -> float:
        """Return the part of ``role_cost`` that depends on words."""
        words = self.words
        target = words["mask"] or words["depth"]
        if words["other"]:
            return 0.0 if role is None else _EXCLUDED
        if role is None:
            return self._unused_cost()
        has_role_word = bool(target or words["label"] or words["fg_bg"] or words["bg"])
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
            if has_role_word or words["fg"] or words["picture"]:
                return self._against_words_cost(role)
            return 2.0 + eye + 0.3 * self.photographs
        if role == "bg":
            if words["bg"] and not target:
                return 0.0
            return 0.1 if words["numbered"] and not has_role_word else _EXCLUDED
        if target or words["label"]:
            against = self._against_words_cost(role)
            return min(0.6, against) if words["fg_bg"] and against < _EXCLUDED else against
        if words["fg_bg"] or (words["picture"] and not words["fg"]):
            return eye
        if words["bg"] or words["fg"] or words["cutout"] or words["validity"]:
            return self._against_words_cost(role)
        return 1.0 + eye + 0.3 * (not self.photographs)

    def _against_words_cost(self, role: str) -> float:
        """Return the cost of a role other than the words name: only clear pixels allow it."""
        clear_kind = {"mask": "two", "depth": "gray", "fg_bg": "picture"}[role]
        return _AGAINST_WORDS_COST if self.kind == clear_kind else _EXCLUDED

    def _unused_cost(self) -> float:
        words = self.words
        if words["validity"] or words["fg"]:
            return 0.0
        if words["eye"] or words["cutout"] or words["trimap"]:
            return 0.5
        if any(words[word] for word in ("mask", "depth", "fg_bg", "bg", "numbered")):
            return _UNUSED_COST
        return 1.5 if words["picture"] or words["label"] or self.kind in ("two", "gray") else 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One role for each class."""

    classes: Sequence[FileClass]
    roles: tuple[str | None, ...]
    """Role of each class; None if it is not used."""

    cost: float

    def role_classes(self, role: str | None) -> list[FileClass]:
        """Return the classes that have a role."""
        pairs = zip(self.classes, self.roles, strict=True)
        return [file_class for file_class, class_role in pairs if class_role == role]

    def duplicate_claim(self) -> tuple[str, FileClass, FileClass] | None:
        """Return a role, its class, and an unused class with the same role words; else None."""
        for role in ("mask", "depth", "fg_bg"):
            used = max(self.role_classes(role), key=operator.attrgetter("files"), default=None)
            if used is None:
                continue
            for unused in self.role_classes(None):
                claims = unused.words[role] and unused.word_cost(None) >= _UNUSED_COST
                if claims and 2 * unused.files >= used.files:
                    return role, used, unused
        return None

    def group_roles(self, count: int) -> tuple[str | None, ...]:
        """Return the role of each of the ``count`` groups."""
        roles: list[str | None] = [None] * count
        for file_class, role in zip(self.classes, self.roles, strict=True):
            for group in file_class.groups:
                roles[group] = role
        return tuple(roles)


def file_classes(name_groups: NameGroups) -> list[list[FileClass]]:
    """Return the partitions of the groups into classes, the coarsest first."""
    counts = name_groups.counts()
    partitions: list[list[FileClass]] = []
    shapes: set[tuple[tuple[int, ...], ...]] = set()
    for key in (_by_folder_words, _by_folder_names, _by_stems):
        parts = _partition_groups(name_groups.groups, key)
        shape = tuple(sorted(map(tuple, parts)))
        if shape not in shapes and len(parts) <= _MAX_CLASSES:
            shapes.add(shape)
            partitions.append(_build_classes(name_groups, counts, parts))
    return partitions


def _partition_groups(groups: Sequence[Group], key: Callable[[Group], Key]) -> list[list[int]]:
    """Merge groups of equal keys; if that leaves too many, also all without role words."""
    parts: dict[Key, list[int]] = {}
    for number, group in enumerate(groups):
        parts.setdefault(key(group), []).append(number)
    if len(parts) > _MAX_CLASSES:
        merged: dict[Key, list[int]] = {}
        for (words, _, *rest), numbers in parts.items():
            merged.setdefault((words, "", *rest), []).extend(numbers)
        parts = merged
    return list(parts.values())


def candidates(partitions: Sequence[Sequence[FileClass]]) -> list[Candidate]:
    """Return candidates that have composites and masks or depth maps, the cheapest first."""
    ranked: list[Candidate] = []
    for number, classes in enumerate(partitions):
        extra = number * _FINER_PARTITION_COST
        ranked += [
            Candidate(classes=classes, roles=roles, cost=cost + extra)
            for roles, cost in _Assignments(classes).ranked()
        ]
    ranked.sort(key=lambda candidate: (candidate.cost, str(candidate.roles)))
    return ranked[:_MAX_CANDIDATES]


def _by_folder_words(group: Group) -> Key:
    role_words = tuple(words for words in _folder_words(group) if words)
    # Without role words, the innermost folder that is no split name decides.
    parts = [part for part in group.outline.lower().split("/") if not filenames.split_in_path(part)]
    return role_words, "" if role_words or not parts else parts[-1]


def _by_folder_names(group: Group) -> Key:
    parts = group.outline.lower().split("/")
    pairs = zip(parts, _folder_words(group), strict=False)
    named = tuple(part for part, words in pairs if words)
    plain = "/".join(part for part in parts if not filenames.split_in_path(part))
    return named, "" if named else plain


def _by_stems(group: Group) -> Key:
    extension = "jpg" if group.extension in _PHOTOGRAPHS else group.extension
    return (*_by_folder_words(group), group.stem, extension)


def _folder_words(group: Group) -> list[Words]:
    """Return the role words of folders; bg_007 may hold any files, so it does not count."""
    return [() if words == ("numbered",) else words for words in group.folders]


def _build_classes(
    name_groups: NameGroups, counts: Sequence[int], parts: Sequence[list[int]]
) -> list[FileClass]:
    classes: list[FileClass] = []
    class_stem_words: list[Counter[str]] = []
    for groups in parts:
        files = sum(counts[number] for number in groups)
        words: Counter[str] = Counter()
        stems: Counter[tuple[str, int]] = Counter()
        for number in groups:
            group = name_groups.groups[number]
            words |= Counter(itertools.chain.from_iterable(_folder_words(group)))
            for word, times in Counter(group.stem).items():
                for time in range(times):
                    stems[word, time] += counts[number]
        group = name_groups.groups[max(groups, key=counts.__getitem__)]
        classes.append(
            FileClass(
                name=group.label, groups=groups, files=files, words=words,
                photographs=group.extension in _PHOTOGRAPHS,
            )
        )  # fmt: skip
        # Words of nearly all stems belong to the class; words of some belong to the samples.
        class_stem_words.append(
            Counter(word for (word, _), count in stems.items() if count >= 0.9 * files)
        )
    pairs = list(zip(classes, class_stem_words, strict=True))
    most = max(file_class.files for file_class in classes)
    # Words in the stems of all large classes are part of the samples' names; words in the folders
    # of all classes do not tell them apart.
    in_all_stems = _shared_words([words for each, words in pairs if 2 * each.files >= most])
    in_all_folders = _shared_words([each.words for each in classes if 1000 * each.files >= most])
    for file_class, stem_words in pairs:
        file_class.words = file_class.words - in_all_folders + (stem_words - in_all_stems)
        words = file_class.words
        if words["fg"] and words["mask"] and not words["fg_bg"]:
            # Masks in a folder of foregrounds: those of the cut-outs.
            words["cutout"] += words.pop("mask")
    return sorted(classes, key=lambda file_class: (-file_class.files, file_class.name))


def _shared_words(counts: Sequence[Counter[str]]) -> Counter[str]:
    return functools.reduce(operator.and_, counts) if len(counts) > 1 else Counter()


class _Assignments:
    """Searches the assignments of roles to all classes of one partition."""

    def __init__(self, classes: Sequence[FileClass]) -> None:
        self._classes = classes
        self._most_files = classes[0].files
        self._costs = [
            {role: file_class.role_cost(role) for role in (*filenames.ROLES, None)}
            for file_class in classes
        ]
        self._costly_to_leave_out = [costs[None] >= _UNUSED_COST for costs in self._costs]
        """Classes with clear role words: not to use one costs the same whatever its size."""
        self._named_roles = [
            role
            for role in filenames.ROLES
            if any(each.words[role] and each.word_cost(role) < 0.5 for each in classes)
        ]
        self._cutouts = any(each.words["cutout"] or each.words["trimap"] for each in classes)
        unnamed = [file_class.files for file_class in classes if not +file_class.words]
        self._most_unnamed_files = max(unnamed, default=0)

    def ranked(self) -> list[tuple[tuple[str | None, ...], float]]:
        """Return assignments with their costs, roughly the cheapest first."""
        options = []
        for number, costs in enumerate(self._costs):
            costs = costs | {None: min(costs[None], _UNUSED_DUPLICATE_COST)}
            weighted = sorted(
                ((self._weight(number, role) * cost, role) for role, cost in costs.items()
                 if cost < _EXCLUDED),
                key=lambda pair: (pair[0], str(pair[1])),
            )  # fmt: skip
            options.append(weighted if number < _MAX_VARIED_CLASSES else weighted[:1])
        start = (0,) * len(options)
        heap = [(sum(class_options[0][0] for class_options in options), start)]
        visited = {start}
        assignments: list[tuple[tuple[str | None, ...], float]] = []
        best = float("inf")
        while heap and len(visited) < _MAX_SEARCHED:
            least, places = heapq.heappop(heap)
            if least > best + _MAX_EXTRA_COST:
                break
            roles = tuple(options[number][place][1] for number, place in enumerate(places))
            cost = self._total(roles)
            if cost is not None:
                assignments.append((roles, cost))
                best = min(best, cost)
            for number, place in enumerate(places):
                following = (*places[:number], place + 1, *places[number + 1 :])
                if place + 1 < len(options[number]) and following not in visited:
                    visited.add(following)
                    step = options[number][place + 1][0] - options[number][place][0]
                    heapq.heappush(heap, (least + step, following))
        return assignments

    def _weight(self, number: int, role: str | None) -> float:
        """Return the weight of a class by its size; backgrounds are few, so they count fully."""
        file_class = self._classes[number]
        if role is None and self._costly_to_leave_out[number]:
            return 1.0
        if role == "bg" or file_class.words["bg"]:
            return 1.0
        return file_class.files / self._most_files

    def _total(self, roles: tuple[str | None, ...]) -> float | None:
        """Return the cost of all roles together; None without composites, or without any target."""
        files: Counter[str | None] = Counter()
        cost = 0.0
        for number, role in enumerate(roles):
            files[role] += self._classes[number].files
            own = self._costs[number][role]
            if role is None and self._costly_to_leave_out[number]:
                # Another class with the same word may have the role: this one may be its copy.
                own = _UNUSED_DUPLICATE_COST if self._has_duplicate(number, roles) else own
            cost += self._weight(number, role) * own
        composites = files["fg_bg"]
        if not composites or not (files["mask"] or files["depth"]):
            return None
        for role in ("mask", "depth"):
            if files[role]:
                cost += 3 * (1 - min(files[role], composites) / max(files[role], composites))
        cost += _MISSING_ROLE_COST * sum(not files[role] for role in self._named_roles)
        if self._cutouts and not files["mask"]:
            cost += 1.0
        if self._most_unnamed_files:
            cost += 3 * max(0.0, 1 - composites / self._most_unnamed_files)
        return cost

    def _has_duplicate(self, number: int, roles: tuple[str | None, ...]) -> bool:
        words = self._classes[number].words
        return any(
            role is not None and other.words[role] and words[role]
            for other, role in zip(self._classes, roles, strict=True)
        )
