"""The systems that benchmarks compare."""


def test_count_deficit_never_settles(load):
    """The relative deficit does."""
    systems = load("benchmarks.systems")
    after = systems.HISTORY
    ours, count = (systems.rebalance(system, seed=0) for system in (systems.OURS, systems.COUNT))
    assert systems.batches_to_arrive(ours.trained[after:]) in range(10, 15)
    assert max(systems.batch_distances(ours.share[after + 30 :])) <= 2 / systems.BATCH
    assert systems.one_class_share(count.share[after:]) > 0.98
    assert systems.batches_to_arrive(count.trained[after:]) is None
    assert max(ours.weight[after + 30 :]) < 1.05 < max(count.weight[after + 30 :])


def test_passing_mix_has_not_arrived(load):
    systems = load("benchmarks.systems")
    assert systems.batches_to_arrive([0.3, 0.5, *[0.7] * 20]) is None
    assert systems.batches_to_arrive([0.3, 0.4, *[0.5] * 20]) == 3
