"""`hfsae info`: what an SAE or a set is, from configs alone."""

import json
from typing import Annotated

from hfsae.cli.measuring_options import OnHub, SAESource
from hfsae.command_line import option


def run(
    path: SAESource,
    as_json: Annotated[bool, option("--json", "Print the whole config as JSON, of a set its record.")] = False,
    *,
    on_hub: OnHub,
) -> int:
    """Prints a description, or the config; weights are fetched of other projects' SAEs alone."""
    from hfsae.loading import load_config
    from hfsae.saved.info import describe, describe_set
    from hfsae.saved.sets import find_set

    where = on_hub.keywords()
    found = None if on_hub.subfolder or on_hub.allow_pickle else find_set(path, revision=on_hub.revision)
    if found is not None:
        print(json.dumps(found.record, indent=2) if as_json else describe_set(found))
    elif as_json:
        print(load_config(path, fetch_weights=True, **where).to_json_string(use_diff=False))
    else:
        print(describe(path, **where))
    return 0
