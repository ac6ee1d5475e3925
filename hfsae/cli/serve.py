"""`hfsae serve`: a page of this machine in which the real model runs."""

from typing import Annotated

from hfsae.cli.measuring_options import Collecting, OnHub, SAESource
from hfsae.command_line import option


def run(
    path: SAESource,
    port: Annotated[int, option("--port", "Port on 127.0.0.1; 0 takes a free one.")] = 8765,
    prompt_tokens: Annotated[int, option("--prompt_tokens", "Most tokens of a text.")] = 256,
    new_tokens: Annotated[int, option("--new_tokens", "Most tokens of a continuation.")] = 100,
    *,
    collecting: Collecting,
    on_hub: OnHub,
) -> int:
    """Serves the page until Ctrl-C."""
    from hfsae.saved.kept_features import SavedFeatures
    from hfsae.serving import Limits, Playground, local_server

    if not 0 <= port < 65536:
        raise ValueError(f"--port is {port}: expected 0 to 65535.")
    if min(prompt_tokens, new_tokens) < 1:
        raise ValueError("--prompt_tokens and --new_tokens are 1 or more.")
    opened = SavedFeatures(path, **collecting.keywords(), **on_hub.keywords())
    playground = Playground(
        opened.sae,
        opened.model,
        opened.tokenizer,
        opened.collection,
        {feature: label.text for feature, label in opened.labels.items()},
        name=path,
        limits=Limits(prompt_tokens=prompt_tokens, new_tokens=new_tokens),
    )
    with local_server(playground, port) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            playground.finish()
            print("ended")
    return 0
