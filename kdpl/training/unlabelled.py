"""Whether a trainer that learns without labels is at work in this process (kdpl.trainers.truth)."""


class State:
    """What such a trainer is doing; counted, since its methods call each other."""

    hiding = 0  # a data set that is constructed now is closed
    constructing = 0  # a data set is under construction, and may read labels
    readable: frozenset[str] = frozenset()  # splits whose labels may be read now


def hiding() -> bool:
    """Whether a data set that is constructed now is for training without labels."""
    return State.hiding > 0
