"""Positions of a block that were left out in training, as SAELens says it: by the slice that was kept."""

from collections.abc import Sequence

from hfsae.interop.settings import Settings


def excluded_positions(metadata: Settings, context_length: int | None) -> list[int]:
    """The positions that SAELens' `seqpos_slice` leaves out.

    Args:
        metadata: Holds `seqpos_slice`, start, stop and step of a slice, each a number or null; nothing keeps all.
        context_length: Tokens a block, which an end of the slice counts from.

    Raises:
        ValueError: If it is no slice, or it has an end and the length of a block is not known.
    """
    kept = metadata.get("seqpos_slice")
    if kept is None:
        return []
    whole = isinstance(kept, list) and all(part is None or type(part) is int for part in kept)
    if not whole or not 1 <= len(kept) <= 3 or (len(kept) == 3 and kept[2] == 0):
        raise metadata.unexpected("seqpos_slice", "start, stop and step of a slice")
    start, stop, step = slice_of(kept)
    from_start = stop is None and step in (None, 1) and (start or 0) >= 0
    if context_length is None and from_start:
        return list(range(start or 0))
    if context_length is None:
        raise ValueError(
            f"{metadata.called} keeps the positions {kept} of a block and does not say how long a block is: pass "
            "context_length=...."
        )
    positions = set(range(context_length)[start:stop:step])
    return [position for position in range(context_length) if position not in positions]


def kept_slice(excluded: Sequence[int], context_length: int | None) -> list[int | None] | None:
    """The slice that leaves out exactly these positions of a block; None where nothing is left out.

    Raises:
        ValueError: If there is none.
    """
    left_out = sorted(set(excluded))
    if not left_out:
        return None
    if left_out == list(range(len(left_out))):
        return [len(left_out), None]
    kept = [position for position in range(context_length or 0) if position not in left_out]
    if len(kept) > 1:
        step = kept[1] - kept[0]
        if kept == list(range(kept[0], kept[-1] + 1, step)):
            return [kept[0], kept[-1] + 1, *([] if step == 1 else [step])]
    raise ValueError(
        f"SAELens keeps one slice of the positions of a block, and leaving out exclude_positions={left_out} of "
        f"{context_length} is none. Set config.exclude_positions to the first few positions, or to []."
    )


def slice_of(parts: Sequence[int | None]) -> tuple[int | None, int | None, int | None]:
    """Start, stop and step as `slice(*parts)` has them: one number alone is the stop."""
    whole = slice(*parts)
    return whole.start, whole.stop, whole.step
