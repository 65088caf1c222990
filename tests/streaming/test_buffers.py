"""Class buffers and capped mixes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_runs import held_samples

from lightning_fair.streaming.buffers import ClassBuffers, cap_mix
from lightning_fair.streaming.packing import pack, unpack

shares = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=8)


@given(shares, st.data())
def test_cap_mix_keeps_proportions_below_caps(values, data):
    """Capped classes are at their cap, and the others keep their proportions."""
    p = np.array(values) / np.sum(values)
    caps = np.array(data.draw(st.lists(st.floats(0.0, 2.0), min_size=p.size, max_size=p.size)))
    if caps.sum() < 1.0:
        caps += (1.001 - caps.sum()) / p.size
    mix = cap_mix(p, caps)
    assert mix.sum() == pytest.approx(1.0)
    assert (mix <= caps + 1e-12).all()
    free = mix < caps - 1e-9
    levels = mix[free] / p[free]
    assert np.allclose(levels, levels[:1])
    # A capped class would have at least its cap at that level.
    assert (mix[~free] <= p[~free] * levels.max(initial=0.0) + 1e-9).all() or not free.any()


def test_cap_mix_without_effect():
    """A mix within its caps is returned unchanged."""
    p = np.array([0.7, 0.3])
    assert cap_mix(p, np.array([0.7, 5.0])) is p


def test_cap_mix_of_missing_class():
    """The share of a missing class goes to the others in proportion."""
    assert cap_mix(np.array([0.5, 0.3, 0.2]), np.array([0.0, 9.0, 9.0])) == pytest.approx([0.0, 0.6, 0.4])


def test_cap_mix_uses_other_classes_last():
    """A class with probability zero gets only the share that no other class can fill."""
    assert cap_mix(np.array([0.0, 1.0]), np.array([2.0, 0.25])) == pytest.approx([0.75, 0.25])


class SlowBuffer:
    """A slow reference of the buffer of one class: a list of ``[uses, age, sample]``."""

    def __init__(self, limit, reuse):
        self.limit, self.reuse, self.items, self.clock = limit, reuse, [], 0

    def add(self, samples):
        for sample in samples:
            if len(self.items) == self.limit:
                self.items.remove(max(self.items, key=lambda item: (item[0], -item[1])))
            self.items.append([0, self.clock, sample])
            self.clock += 1

    def take(self, count):
        taken = []
        for _ in range(count):
            item = min(self.items, key=lambda item: (item[0], item[1]))
            taken.append(item[2])
            item[0], item[1] = item[0] + 1, self.clock  # among samples with equal uses, the oldest comes first
            self.clock += 1
            if item[0] == self.reuse:
                self.items.remove(item)
        return taken


@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=30),
)
def test_buffer_equals_slow_buffer(limit, reuse, moves):
    """The buffer hands out and holds the same samples as a slow reference."""
    buffers, slow, number = ClassBuffers(1, limit, reuse), SlowBuffer(limit, reuse), 0
    for added, taken in moves:
        new = list(range(number, number + added))
        number += added
        # One by one, because of several samples at once only the newest can be held.
        for sample in new:
            buffers.add({0: [sample]})
        slow.add(new)
        taken = min(taken, int(buffers.available[0]))
        assert sorted(buffers.take(np.array([taken]))) == sorted(slow.take(taken))
        assert sorted(held_samples(buffers, 0)) == sorted(item[2] for item in slow.items)
        assert len(held_samples(buffers, 0)) == len(slow.items) <= limit
        assert buffers.available[0] == sum(reuse - item[0] for item in slow.items)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_captured_buffers_go_on(seed, max_reuse):
    """Buffers that are captured at any time and restored hand out the same samples, and count the same."""
    rng = np.random.default_rng(seed)
    one, other = (ClassBuffers(3, 4, max_reuse) for _ in range(2))
    used = set()
    for number in range(12):
        if number == 6:
            other.restore(unpack(pack(one.capture(), "")))
        by_class = {label: [(number, label, i) for i in range(rng.integers(4))] for label in range(3)}
        one.add(by_class)
        counts = rng.integers(one.available + 1)
        taken = one.take(counts)
        if number >= 6:
            other.add(by_class)
            assert other.take(counts) == taken
        used |= set(taken)
        held = [sample for levels in one.capture() for level in levels for sample in level]
        assert one.num_held == len(held)
        assert one.num_unused == len(set(held) - used)
    assert other.available.tolist() == one.available.tolist()
    assert (other.num_held, other.num_unused) == (one.num_held, one.num_unused)
