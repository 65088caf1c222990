"""Compares the labels that a batch shows with those that were drawn for it."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_fair.common.sample_labels import extract_labels
from lightning_fair.common.saved_states import check_state, describe_damage, integer, of_type, one_of
from lightning_fair.dataloaders.batch_columns import as_column, leaves, read_columns
from lightning_fair.dataloaders.column_evidence import (
    CERTAIN_CHANCE,
    ColumnEvidence,
    describe_counts,
    is_index,
    is_part_of,
)

_FIRST_BATCHES = 4  # of each epoch, which are always checked
_LATER_BATCHES = 64  # one of so many later ones is checked
_LIKELY_CHANCE = math.log(0.05)  # a column that may hold the labels in another order is followed below this chance
_MAX_UNDECIDED = 8  # batches that may leave samples out before the check says that it is not certain
_MAX_SHOWN = 10  # values in a message

_RELATIONS = ("labels", "renumbered", "groups", "finer")
_REMEDY = (
    "labels='scan' reads the label of each sample once, as the training gets it; labels=<function of the data set> is "
    "called at the start of each epoch."
)


class _Fit(NamedTuple):
    """A relation of a column to the drawn labels that no batch has contradicted; the smallest chance comes first."""

    chance: float  # logarithm of the chance that an unrelated column would have fitted
    relation: str  # see `LabelCheck.relation`, or "reordered"
    column: str


class LabelCheck:
    """Verifies that the batches of a loader hold the classes that were drawn, and finds their labels.

    A batch is verified if one of its columns of whole numbers or strings, in any structure, equals the drawn labels or
    is a one-to-one function of them. A function that merges classes is accepted only for groups. If the loader can
    change the order of the samples or leave samples out, a column that holds a part of the drawn labels in another
    order holds the batch's labels, provided it is the only such column in all batches so far. It is followed when the
    chance that an unrelated column would have fitted is below 5 %. Any relation is certain below one in a million.

    The first four batches of each epoch are compared and one in 64 of the others, and all of them until a column is
    certain. What is certain is not decided again. A contradiction is one warning.

    Args:
        num_classes: Number of classes ``K``.
        can_reorder: Whether the loader can deliver other samples, or another order, than drawn.
        names: Names of the classes, for messages. None: their numbers.
        are_groups: Whether the user passed the labels, so that they may divide the batch's classes into groups.
        were_numbered: Whether the class numbers are lightning-fair's own, for example those of strings.
        inform: Takes a message that says which groups are in which class.
        warn: Takes a warning.

    Attributes:
        column: Name of the column that was verified, for example ``"batch[1]"``; None before.
        relation: ``"labels"`` if that column holds the drawn labels, ``"renumbered"`` if it numbers the classes in
            another way, ``"groups"`` if it holds the classes of the drawn groups, ``"finer"`` if it divides them.

    Example:
        >>> from types import SimpleNamespace
        >>> check, rng = LabelCheck(3, can_reorder=True), np.random.default_rng(0)
        >>> for draw_id in range(4):
        ...     draw = SimpleNamespace(draw_id=draw_id, labels=rng.integers(0, 3, 60))
        ...     y = torch.from_numpy(draw.labels).sort().values
        ...     labels, as_drawn = check((torch.zeros(60, 8), y), draw)
        >>> check.column, torch.equal(labels, y), as_drawn
        ('batch[1]', True, False)
    """

    _absent: ClassVar[str] = "column of whole numbers on the CPU, one per sample, except perhaps an index"

    def __init__(
        self,
        num_classes: int,
        *,
        can_reorder: bool = False,
        names: Sequence[str] | None = None,
        are_groups: bool = False,
        were_numbered: bool = False,
        inform: Callable[[str], None] | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.num_classes, self.can_reorder, self.names = num_classes, can_reorder, names
        self.are_groups, self.were_numbered, self.inform, self.warn = are_groups, were_numbered, inform, warn
        self.column: str | None = None
        self.relation: str | None = None
        self._columns: dict[str, ColumnEvidence] = {}
        self._followed: str | None = None  # column that was followed before it was certain
        self._has_failed = False  # whether the batches contradict the drawn labels
        self._position = 0  # batches of this epoch
        self._num_checked = 0
        self._newest = -1  # number of the newest draw that was compared
        self._given_warnings: set[str] = set()

    def start_epoch(self) -> None:
        """Compare the next batches again."""
        self._position = 0

    def __call__(self, batch: Any, draw: Any) -> tuple[Tensor, bool]:
        """Return the class of each sample of the batch, shape ``(n,)`` on the CPU, and whether all are as drawn."""
        drawn: NDArray[Any] = draw.labels
        self._position += 1
        is_due = self._position <= _FIRST_BATCHES or zlib.crc32(b"%d" % draw.draw_id) % _LATER_BATCHES == 0
        labels = None
        if self.num_classes == 1:
            pass  # any batch holds this class
        elif self.relation == "labels" and self.can_reorder:
            labels = self._follow(batch, drawn)
        elif self.relation is None and not self._has_failed and (self._columns or is_due):
            labels = self._compare(batch, drawn, is_new=draw.draw_id > self._newest)
            self._newest = max(self._newest, draw.draw_id)
        elif is_due:
            self._compare_again(batch, drawn)
        if labels is None or np.array_equal(labels, drawn):
            return torch.from_numpy(drawn), True
        return torch.from_numpy(labels.copy()), False  # the user may change the batch in place

    def _follow(self, batch: Any, drawn: NDArray[Any]) -> NDArray[Any] | None:
        values = self._read(batch, len(drawn))
        if values is None:  # for example soft labels in some batches
            self._warn_of_no_column()
        elif np.array_equal(values, drawn) or is_part_of(values, drawn):
            return values
        else:
            self._fail(batch, drawn)
        return None

    def _compare_again(self, batch: Any, drawn: NDArray[Any]) -> None:
        values = self._read(batch, len(drawn))
        if self.column is None or values is None or len(values) != len(drawn):
            return
        if self.relation == "labels":
            fits = np.array_equal(values, drawn)
        else:
            evidence = self._columns.setdefault(self.column, self._new_evidence())
            evidence.update(values, drawn)
            fits = (evidence.finer if self.relation == "finer" else evidence.function) is not None
        if not fits:
            self._fail(batch, drawn)

    def _read(self, batch: Any, size: int) -> NDArray[Any] | None:
        return next((self._to_column(leaf) for name, leaf in leaves(batch, size) if name == self.column), None)

    def _new_evidence(self) -> ColumnEvidence:
        return ColumnEvidence(self.num_classes)

    def _to_column(self, leaf: Any) -> NDArray[Any] | None:
        """Return the labels that an array or a list of a batch can hold."""
        return as_column(leaf)

    def _compare(self, batch: Any, drawn: NDArray[Any], *, is_new: bool) -> NDArray[Any] | None:
        """Update the evidence of all columns, and decide if it is enough; return labels that are not as drawn."""
        columns = read_columns(batch, len(drawn), self._to_column, can_be_shorter=self.can_reorder)
        columns = {name: column for name, column in columns.items() if not is_index(column, drawn, self.num_classes)}
        if not columns:
            self._warn_of_no_column()
            return None
        self._num_checked += is_new  # after a resume, a batch may come again
        # A column that appears later was not in every batch.
        self._columns = self._columns or {name: self._new_evidence() for name in columns}
        for name in self._columns.keys() & columns.keys() if is_new else ():
            self._columns[name].update(columns[name], drawn)
        fits = sorted([*self._fits_in_order(), *self._fits_reordered(columns)])
        if fits and fits[0].chance < CERTAIN_CHANCE:
            self._accept(fits[0])
            return self._follow(batch, drawn) if self.relation == "labels" and self.can_reorder else None
        if not fits and not any(each.is_pending for each in self._columns.values()):
            self._fail(batch, drawn)
            return None
        return self._guess(batch, columns, fits, drawn)

    def _fits_in_order(self) -> list[_Fit]:
        """Return the relations of the columns whose order is the drawn one."""
        columns = self._columns.items()
        fits = [_Fit(each.equal or 0.0, "labels", name) for name, each in columns if each.is_equal]
        others = [(name, each) for name, each in columns if each.is_one_to_one and not each.is_equal]
        fits += [_Fit(each.function or 0.0, "renumbered", name) for name, each in others]
        if fits:
            return fits
        finer = [(each.finer, name) for name, each in columns if self.are_groups and each.finer is not None]
        merging = [(each.function or 0.0, name) for name, each in columns if each.is_merging]
        return [_Fit(chance, "finer", name) for chance, name in finer] + [_Fit(c, "groups", n) for c, n in merging]

    def _fits_reordered(self, columns: Mapping[str, NDArray[Any]]) -> list[_Fit]:
        """Return the columns that may hold the drawn labels, or a part of them, in another order."""
        names: list[str] = []
        for name in columns if self.can_reorder else ():
            evidence = self._columns.get(name)
            # Labels in two forms, such as one-hot rows beside numbers, are one column.
            is_known = any(np.array_equal(columns[name], columns[other]) for other in names)
            if evidence is not None and evidence.part is not None and not is_known:
                names.append(name)
        # Several columns are no evidence for any of them.
        return [_Fit(self._columns[n].chance_of_order if len(names) == 1 else 0.0, "reordered", n) for n in names]

    def _guess(
        self, batch: Any, columns: Mapping[str, NDArray[Any]], fits: list[_Fit], drawn: NDArray[Any]
    ) -> NDArray[Any] | None:
        """Return the labels of a batch without a certain column; None if the drawn labels are the best guess."""
        reordered = {fit.column: columns[fit.column] for fit in fits if fit.relation == "reordered"}
        if len(next(iter(columns.values()))) < len(drawn):
            equal = {f.column: columns[f.column] for f in fits if f.relation == "labels" and f.column in columns}
            return self._guess_shorter(batch, equal or reordered, drawn)
        if not reordered or fits[0].relation in ("labels", "renumbered"):
            return None
        if fits[0].relation == "reordered" and fits[0].chance < _LIKELY_CHANCE:
            self._followed = fits[0].column
            return reordered[self._followed]
        self._warn_of_order(list(reordered))
        return None

    def _accept(self, fit: _Fit) -> None:
        self.column, self.relation = fit.column, "labels" if fit.relation == "reordered" else fit.relation
        if fit.relation == "renumbered":
            self._warn_of_numbers(fit.column)
        elif fit.relation == "groups":
            self._report_groups(fit.column)

    def _guess_shorter(
        self, batch: Any, candidates: Mapping[str, NDArray[Any]], drawn: NDArray[Any]
    ) -> NDArray[Any] | None:
        """Return the labels of a batch that has fewer samples than drawn, and no certain column."""
        if not candidates:
            return None
        name, values = next(iter(candidates.items()))
        evidence = self._columns[name]
        is_likely = evidence.is_equal or evidence.chance_of_order < _LIKELY_CHANCE
        if len(candidates) == 1 and (is_likely or self._num_checked <= _MAX_UNDECIDED):
            self._followed = name
            return values
        self._warn_of_order(list(candidates))
        usual = self._to_column(extract_labels(batch))
        return usual if usual is not None and is_part_of(usual, drawn) else values

    def _fail(self, batch: Any, drawn: NDArray[Any]) -> None:
        self._has_failed = True
        parts = [(name, self._to_column(leaf)) for name, leaf in leaves(batch, len(drawn))]
        held = [f"{name} holds {describe_counts(x, _MAX_SHOWN)}" for name, x in parts if x is not None]
        shown = "; ".join(held[:4])
        until_now = f" Until now weights and losses followed {self._followed}." if self._followed else ""
        on_purpose = (
            " If you balance groups on purpose that the batch does not show, this is fine: return the group with each "
            "sample to have it verified."
            if self.are_groups
            else ""
        )
        self._warn(
            "contradiction",
            "A batch does not hold the classes that were drawn for it, "
            f"{describe_counts(drawn, _MAX_SHOWN, self.names)} (class: samples): "
            f"{shown or 'it holds no column of labels any more'}.{until_now} The class mix that is trained on may be "
            "another one than FairSampling reports. Usual causes: the data set was changed, split or shuffled after "
            "its labels were read; labels= belongs to other data; target_transform changes the classes; the batch "
            f"holds other numbers, but not its labels. {_REMEDY}{on_purpose}",
        )

    def _warn_of_no_column(self) -> None:
        self._warn(
            "no column",
            "FairSampling could not verify that the batches hold the classes that were drawn, because they show no "
            f"{self._absent}. This is usual for masks, tags, soft labels (MixUp, CutMix) and batches without labels. "
            "To have the class verified, return it as a further element of each sample.",
        )

    def _warn_of_order(self, names: list[str]) -> None:
        if len(names) > 1:
            problem = f"{' and '.join(names)} could each hold the labels in the new order"
        else:
            problem = f"{names[0]} may hold the labels in the new order, but fits by chance too often to be certain yet"
        self._warn(
            "order",
            f"The collate_fn or the data set seems to change the order of the samples: {problem}. Until it is certain, "
            "weights and losses follow the drawn order. Return self.weighted_loss(losses, labels) with the labels of "
            "the batch, or keep the order.",
        )

    def _warn_of_numbers(self, name: str) -> None:
        if self.were_numbered or self._columns[name].holds(self.names or ()):
            return
        shown = self._columns[name].describe(_MAX_SHOWN, self.names)
        self._warn(
            "numbers",
            f"{name} numbers the classes in another way than the labels that FairSampling has ({shown}). The batches "
            "are balanced, but target_probs, the logged classes, and labels that you pass to weighted_loss "
            "use FairSampling's numbers. labels='scan' reads the label of each sample as the training gets it.",
        )

    def _report_groups(self, name: str) -> None:
        shown = self._columns[name].describe(_MAX_SHOWN, self.names)
        if self.are_groups:
            if self.inform:
                self.inform(f"FairSampling balances groups of the classes in {name} (group -> class): {shown}.")
            return
        self._has_failed = True
        self._warn(
            "merged",
            f"{name} merges the classes that FairSampling balances ({shown}), so the batches are not balanced over the "
            f"values of {name}. Usual cause: target_transform changes the classes. {_REMEDY} If you balance groups on "
            "purpose, pass them as labels=<one group per sample>.",
        )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._given_warnings:
            self._given_warnings.add(kind)
            self.warn(message)

    def state_dict(self) -> dict[str, Any]:
        """Return the decision and the evidence, as tensors, plain numbers and strings."""
        evidence = {name: each.state_dict() for name, each in self._columns.items()} if self.column is None else {}
        names = ("column", "relation", "_num_checked", "_newest")
        return {**{name.strip("_"): getattr(self, name) for name in names}, "evidence": evidence}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that ``load_state_dict`` would refuse."""
        words = {"column": of_type(str, type(None)), "relation": one_of(None, *_RELATIONS)}
        numbers, evidence = {"num_checked": integer(), "newest": integer(-1)}, {str: self._new_evidence().spec()}
        check_state("label check's", state, {**words, **numbers, "evidence": evidence})
        if (state["column"] is None) != (state["relation"] is None):
            problem = f"column and relation must both be None or none of them, got {[state[name] for name in words]}"
            raise ValueError(describe_damage("label check's", problem))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned.

        Raises:
            ValueError: If it has a value that no state can have. Nothing is changed then.
        """
        self.check_state(state)
        for name in ("column", "relation", "_num_checked", "_newest"):
            setattr(self, name, state[name.strip("_")])
        self._columns = {name: self._new_evidence() for name in state["evidence"]}
        for name, evidence in self._columns.items():
            evidence.load_state_dict(state["evidence"][name])
