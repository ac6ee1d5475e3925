"""`hfsae serve`: a page of this machine in which the real model runs."""

from typing import Annotated

from hfsae.cli.measuring_options import Collecting, OnHub, SAESource
from hfsae.command_line import option


def run(
    path: SAESource,
    port: Annotated[int, option("--port", "Port on 127.0.0.1; 0 takes a free one.")] = 8765,
    prompt_tokens: Annotated[int, option("--prompt_tokens", "Most tokens of a text.")] = 256,
    new_tokens: Annotated[int, option("--new_tokens", "Most tokens of a continuation.")] = 100,
    traced_tokens: Annotated[int, option("--traced_tokens", "Most tokens of a text whose graph is made.")] = 64,
    traced_features: Annotated[int, option("--traced_features", "Most features of a graph.")] = 500,
    *,
    collecting: Collecting,
    on_hub: OnHub,
) -> int:
    """Serves the page until Ctrl-C."""
    from hfsae.circuits.trace_saved import ALONE
    from hfsae.saved.kept_features import saved_features
    from hfsae.serving import Limits, Playground, ServedSAE, local_server

    if not 0 <= port < 65536:
        raise ValueError(f"--port is {port}: expected 0 to 65535.")
    limits = Limits(
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        traced_tokens=traced_tokens,
        traced_features=traced_features,
    )
    opened = saved_features(path, **collecting.keywords(), **on_hub.keywords())
    first = next(iter(opened.values()))
    saes = {
        name or ALONE: ServedSAE(
            one.sae, one.collection, {feature: label.text for feature, label in one.labels.items()}
        )
        for name, one in opened.items()
    }
    playground = Playground(saes, first.model, first.tokenizer, name=path, limits=limits)
    with local_server(playground, port) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            playground.finish()
            print("ended")
    return 0
