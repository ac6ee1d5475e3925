"""`hfsae info`: what an SAE or a set is, from configs alone."""

import json
from typing import Annotated

from hfsae.cli.measuring_options import AllowPickle, Revision, SAESource, Subfolder, hub_options
from hfsae.command_line import option


def run(
    path: SAESource,
    as_json: Annotated[bool, option("--json", "Print the whole config as JSON, of a set its record.")] = False,
    subfolder: Subfolder = "",
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
) -> int:
    """Prints a description, or the config; weights are fetched of other projects' SAEs alone."""
    from hfsae.loading import load_config
    from hfsae.saved.info import describe, describe_set
    from hfsae.saved.sets import find_set

    where = hub_options(subfolder, revision, allow_pickle)
    found = None if subfolder or allow_pickle else find_set(path, revision=revision)
    if found is not None:
        print(json.dumps(found.record, indent=2) if as_json else describe_set(found))
    elif as_json:
        print(load_config(path, fetch_weights=True, **where).to_json_string(use_diff=False))
    else:
        print(describe(path, **where))
    return 0
