"""`hfsae verify`: whether the card of an SAE is true."""

from hfsae.cli.measuring_options import Measuring, OnHub, SAESource


def run(path: SAESource, on_hub: OnHub, measuring: Measuring) -> int:
    """Measures and prints the comparison; 1 where the card is not true."""
    from hfsae.saved import verify
    from hfsae.saved.sets import find_set
    from hfsae.saved.verify_set import verify_found

    found = None if on_hub.subfolder or on_hub.allow_pickle else find_set(path, revision=on_hub.revision)
    if found is None:
        outcome = verify(path, **measuring.keywords(), **on_hub.keywords())
    else:
        outcome = verify_found(found, **measuring.keywords())
    print(outcome)
    return 0 if outcome.ok else 1
