"""What every call that reports its progress must keep."""

from itertools import groupby, pairwise


def stages_of(events):
    """The unit of each stage, in order, after a check: steady, within bounds, and each stage to its end."""
    assert events
    found = {}
    for stage, group in groupby(events, lambda event: event.stage):
        assert stage not in found, "a stage that is over came back"
        of_stage = list(group)
        ((total, unit),) = {(event.total, event.unit) for event in of_stage}
        assert of_stage[0].done >= 0 and of_stage[-1].done == total > 0
        assert all(before.done <= after.done for before, after in pairwise(of_stage))
        shares = [event.work_fraction for event in of_stage if event.work_fraction is not None]
        assert not shares or (shares == sorted(shares) and shares[-1] == 1.0)
        found[stage] = unit
    return found
