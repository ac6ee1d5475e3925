"""Runs of several processes: what they train, and the script that each process executes.

torchrun --nproc_per_node 2 -m tests.training.two_processes FOLDER CASE...
"""

import atexit
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hfsae import SAE, SAETrainer, capture
from hfsae.architectures import config_class_of
from hfsae.autoencoder.initialisation import initialise
from hfsae.parallel import process_watch
from hfsae.training.output import TrainOutput
from tests.data.tiny import WORDS, language_model
from tests.training.test_device_map import PLACES
from tests.training.tiny import ARCHITECTURES, OF_TWO_PLACES, At, make_sae, sparse_rows, stop_at, trainer

STEPS = 20
ROWS = 64
"""Rows of a step over all processes."""

HALF = 60
"""Steps of one process, of half as many rows, after which a run goes on elsewhere."""

ON_GPUS = "HFSAE_TEST_ON_GPUS"
"""Set in the environment of processes that are to train on a GPU each."""

# Whose features and loss are chosen token by token, so that it does not matter which process sees which.
PER_TOKEN = ("standard", "topk", "gated")


SEVERAL = {"topk": 96, "jumprelu": 64, "batch_topk": 32}


def train_alike(folder: Path, saes: SAE | dict[str, SAE] | None, processes: int, **more: Any) -> TrainOutput:
    """A run that does the same work in any number of processes: fixed rows, in order, in full precision."""
    given = saes.values() if isinstance(saes, dict) else [saes]
    penalised = any(getattr(sae, "default_sparsity_coefficient", None) is not None for sae in given)
    options = {
        "steps": STEPS,
        "train_batch_tokens": ROWS // processes,
        "training_tokens": STEPS * ROWS,
        "shuffle_window_tokens": 0,
        "activation_dtype": "float32",
        "learning_rate": 0.003,
        "adam_epsilon": 1e-4,  # where a gradient is next to nothing, Adam would turn its rounding into a whole step
        "revival": "none",
        **({"sparsity_coefficient": 0.3} if penalised else {}),
        "use_cpu": ON_GPUS not in os.environ,
        **more,
    }
    inputs = options.pop("inputs", {"activations": sparse_rows(2000)})
    inputs = {"saes": saes, **inputs}
    return trainer(folder, inputs=inputs, callbacks=[stop_at(STEPS)], **options).train()


def train_several_alike(folder: Path, processes: int, **options: str) -> TrainOutput:
    """The same for three SAEs of different widths at once; what those of a batch share is spent over all rows."""
    saes = {name: make_sae(name, n_features=width) for name, width in SEVERAL.items()}
    return train_alike(folder, saes, processes, **options)


def train_text(folder: Path, inputs: dict[str, Any] | None = None, **options: Any) -> TrainOutput:
    """A whole run on text, in which features die and come back."""
    tiny = {"dead_feature_window": 100, "resample_every": 200, "gradient_accumulation_steps": 2, "eval_tokens": 100}
    tiny["use_cpu"] = ON_GPUS not in os.environ
    return trainer(folder, inputs=inputs, training_tokens=12 * 128, logging_steps=4, **tiny, **options).train()


def train_in_two_parts(folder: Path, inputs: dict[str, Any] | None = None, **options: Any) -> TrainOutput:
    """A run that is stopped and resumed, and the same without a break beside it."""

    def part(name: str, stop: int) -> SAETrainer:
        tiny = {"training_tokens": 20 * 64, "dead_feature_window": 100, **options}
        return trainer(folder / name, inputs=inputs, callbacks=[stop_at(stop)], **tiny)

    part("whole", 12).train()
    part("broken", 5).train()
    return part("broken", 12).train(resume_from_checkpoint=True)


def spread_over_text(folder: Path) -> TrainOutput:
    """A whole run of three SAEs at two places, each in one of the processes; features die, the LM is read in both."""
    saes: dict[str, Any] = {
        "wide": {"n_features": 96, "hook_point": "resid_post.0"},
        "resampled": {"architecture": "gated", "revival": "resample", "learning_rate": 0.1},  # at which features die
        "narrow": {"n_features": 32},
    }
    return train_text(folder, {"saes": saes}, sae_placement="spread")


def spread_a_set(folder: Path) -> TrainOutput:
    """A set of three transcoders, of which one process has two."""
    return train_text(folder, hook_point="mlp_in.*", target_hook_point="mlp_out.*", sae_placement="spread")


SOURCES = {"source_names": ["base", "tuned"], "source_widths": [6, 10]}
# Every architecture and what changes its loss or its selection: its name, its own options, those of its training.
CUT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "topk": ("topk", {}, {}),
    "aligned": ("topk", {"aligned": True}, {}),
    "groupmax": ("topk", {"activation": "groupmax"}, {}),
    "multi_topk": ("topk", {"multi_topk": True}, {}),
    "hierarchical": ("topk", {"hierarchical": True, "hierarchical_ks": [1, 3, 4]}, {}),
    "abs_topk": ("abs_topk", {}, {}),
    "batch_topk": ("batch_topk", {}, {}),
    "matryoshka": ("matryoshka", {"prefix_sizes": [10, 30, 40, 100, 160]}, {}),
    "jumprelu": ("jumprelu", {"pre_act_coefficient": 0.01}, {}),
    "frequency": ("jumprelu", {"frequency_scale": 0.05}, {}),
    "quadratic": ("jumprelu", {"sparsity": "l0_quadratic"}, {"sparsity_coefficient": None, "target_l0": 6}),
    "standard": ("standard", {}, {"revival": "resample", "resample_every": 5 * ROWS}),
    "gated": ("gated", {}, {"revival": "resample", "resample_every": 5 * ROWS}),
    "crosscoder": ("crosscoder", SOURCES, {}),
    "standard_crosscoder": ("standard_crosscoder", SOURCES, {}),
}


def train_cut(folder: Path, case: str, processes: int, **more: Any) -> TrainOutput:
    """As `train_wide`, an SAE of any architecture."""
    architecture, own, options = CUT[case]
    return train_wide(folder, processes, make_sae(architecture, n_features=160, **own), **options, **more)


LAYERED = ("cross_layer_transcoder", "topk_cross_layer_transcoder", "jumprelu_cross_layer_transcoder")
_ENDS = {"hook_point": "x0+x1", "target_hook_point": "y0+y1"}
_EARLY = {"save_steps": 5, "save_total_limit": 3}


def rows_of_layers() -> dict[str, torch.Tensor]:
    """What two layers read, and what they and later ones write."""
    maps = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = sparse_rows(2000), sparse_rows(2000, seed=1)
    here = torch.relu(first @ maps[0])
    return {"x0": first, "x1": second, "y0": here, "y1": torch.relu(first @ maps[1]) + torch.relu(second @ maps[2])}


def make_layers(architecture: str, n_features: int = 160, **options: Any) -> SAE:
    """A cross-layer transcoder of two layers, started from the first rows of `rows_of_layers`."""
    rows = rows_of_layers()
    x, y = (torch.cat([rows[name][:256] for name in names], 1) for names in (("x0", "x1"), ("y0", "y1")))
    sources = {"source_names": ["x0", "x1"], "source_widths": [16, 16]}
    config_class = config_class_of(architecture)
    options |= {"k": 4} if "k" in config_class.__dataclass_fields__ else {}
    torch.manual_seed(0)
    return initialise(SAE.from_config(config_class(n_features=n_features, **sources, **_ENDS, **options)), x, target=y)


def train_layers(folder: Path, architecture: str, processes: int, **options: Any) -> TrainOutput:
    """As `train_wide`, a cross-layer transcoder; of the second layer, features of the first process alone are dead."""
    sae = make_layers(architecture, skip=True, tied_decoder=architecture.startswith("topk"))
    with torch.no_grad():
        sae.encoder.bias[80:90] -= 100
    inputs = {"activations": rows_of_layers()}
    return train_wide(folder, processes, sae, **{"inputs": inputs, **_ENDS, **options})


def train_joined(folder: Path, processes: int, **options: Any) -> TrainOutput:
    """A crosscoder of two layers and a cross-layer transcoder of the same, at once."""
    rows = rows_of_layers()
    x = torch.cat([rows["x0"][:256], rows["x1"][:256]], 1)
    own = {"source_names": ["x0", "x1"], "source_widths": [16, 16], "hook_point": "x0+x1"}
    saes = {"layers": make_layers(LAYERED[1]), "shared": make_sae("topk_crosscoder", x, d_in=32, **own)}
    return train_alike(folder, saes, processes, inputs={"activations": rows}, revival="none", **options)


@cache
def rows_of_models() -> dict[str, torch.Tensor]:
    """What two language models have at one place on the same tokens."""
    torch.manual_seed(3)
    ids, rows = torch.randint(3, 40, (180, 12)), {}
    for name in ("base", "tuned"):
        lm = language_model()
        with torch.no_grad(), capture(lm, "resid_post.1") as read:
            if name == "tuned":
                lm.transformer.h[0].mlp.c_proj.weight.mul_(1.5)
            lm(input_ids=ids)
        rows[name] = read["resid_post.1"].flatten(0, 1)
    return rows


def train_models(folder: Path, processes: int, **options: Any) -> TrainOutput:
    """As `train_alike`, a crosscoder of two language models."""
    rows = rows_of_models()
    widths = {"source_names": list(rows), "source_widths": [part.shape[1] for part in rows.values()]}
    sae = make_sae(
        "topk_crosscoder", torch.cat(list(rows.values()), 1)[:256], d_in=sum(widths["source_widths"]), **widths
    )
    return train_alike(folder, sae, processes, inputs={"activations": rows}, **options)


def as_dealt(rows: torch.Tensor, processes: int, batch: int = ROWS // 2) -> torch.Tensor:
    """Rows so that one process has in each batch the order in which several put their shares together."""
    whole = len(rows) // batch * batch
    return rows[:whole].view(-1, batch // processes, processes, rows.shape[1]).transpose(1, 2).reshape(whole, -1)


def train_beside_a_map(folder: Path, model_device_map: str | None) -> TrainOutput:
    """SAEs that are spread beside a language model (in `lm`) that lies where a map puts it, in each process."""
    saes = {"inside": {"hook_point": "resid_post.0"}, "after": {"hook_point": "resid_post.1", "n_features": 96}}
    inputs = {"model": str(folder.with_name("lm")), "saes": saes}
    # In full precision passes are the same wherever weights lie.
    options = {"sae_placement": "spread", "activation_dtype": "float32", "model_device_map": model_device_map}
    return train_text(folder, inputs, **options)


def train_wide(folder: Path, processes: int, sae: SAE | None = None, **options: Any) -> TrainOutput:
    """As `train_alike`, an SAE in which features die and the gradient is clipped, in two batches a step."""
    sae = sae or make_sae("topk", n_features=160)
    with torch.no_grad():  # dead from the start, in the first process alone, and more than auxk asks for
        sae.encoder.bias[:70] -= 100
    revival = {"revival": "auxk", "dead_feature_window": ROWS, "gradient_accumulation_steps": 2}
    more = {**revival, "max_grad_norm": 0.1, "train_batch_tokens": ROWS // processes // 2, "save_steps": 10}
    return train_alike(folder, sae, processes, **{**more, **options})


def train_transcoder(folder: Path, processes: int, **options: Any) -> TrainOutput:
    """As `train_alike`, an SAE that writes what stands beside the rows that it reads."""
    rows = sparse_rows(2000)
    beside = torch.relu(rows @ torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))
    inputs = {"activations": {"before": rows, "after": beside}}
    places = {"hook_point": "before", "target_hook_point": "after", "init_tokens": 4 * ROWS}
    return train_alike(folder, None, processes, inputs=inputs, **places, **options)


def train_with_kl(folder: Path, processes: int) -> TrainOutput:
    """A run with a KL finish that does the same work in any number of processes.

    Each sequence has 8 tokens that count. Of a step's 8 sequences every process reads its share, the first one those
    with even numbers; one process reads them in the order in which two put their shares behind each other.
    """
    ids = torch.randint(1, WORDS, (400, 9), generator=torch.Generator().manual_seed(0))
    order = torch.arange(400).view(-1, 4, 2).transpose(1, 2).reshape(-1) if processes == 1 else torch.arange(400)
    told = {"context_length": 9, "mix_documents": False, "shuffle_documents": False, "lm_batch_sequences": 4}
    inputs = {"model": language_model(), "train_dataset": ids[order], "saes": make_sae("topk")}
    exact = {"train_batch_tokens": 32, "gradient_accumulation_steps": 2 // processes, "calibration_tokens": 0}
    return train_alike(folder, None, processes, inputs=inputs, kl_tokens=0.5, **told, **exact)


def train_repointed(folder: Path, architecture: str, processes: int, **options: Any) -> TrainOutput:
    """As `train_alike`, a transcoder of which a third is dead from the start and is pointed anew.

    With `AUTOENCODER` before the name of its architecture it is an autoencoder. One process sees the rows in the order
    in which two put their shares together: by that order they are drawn. Without `auxk`, of which each process has its
    own where they share the rows.
    """
    rows = sparse_rows(2000)
    rows[::50] = rows.mean(0) + 20 * rows[5]  # massive tokens
    beside = torch.relu(rows @ torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))
    own = {"hook_point": "before", "target_hook_point": "after", "subtract_b_dec": False, "d_out": 16}
    if architecture.startswith(AUTOENCODER):
        beside, own = None, {"hook_point": "before"}
        options = {**_EARLY, **options}
    sae = make_sae(architecture.removeprefix(AUTOENCODER), rows, target=beside, n_features=96, **own)
    with torch.no_grad():
        sae.shift_pre_activations(torch.where(torch.arange(96) < 32, -100.0, 0.0))
    given = {"before": rows} if beside is None else {"before": rows, "after": beside}
    return _train_anew(folder, sae, processes, given, **options)


def train_repointed_layers(folder: Path, architecture: str, processes: int, **options: Any) -> TrainOutput:
    """As `train_repointed`, a cross-layer transcoder of which a third of each layer is dead from the start."""
    sae = make_layers(architecture, n_features=192, tied_decoder=architecture.startswith("topk"))
    with torch.no_grad():
        sae.shift_pre_activations(torch.where(torch.arange(192) % 96 < 32, -100.0, 0.0))
    return _train_anew(folder, sae, processes, rows_of_layers(), **{**_ENDS, **_EARLY, **options})


def _train_anew(folder: Path, sae: SAE, processes: int, given: dict[str, torch.Tensor], **options: Any) -> TrainOutput:
    if processes == 1:
        given = {name: as_dealt(tensor, 2, ROWS) for name, tensor in given.items()}
    revived = {"revival": "repoint", "dead_feature_window": 4 * ROWS, "auxk_alpha": 0.0, "learning_rate": 0.001}
    kept = {"save_steps": 8, "training_tokens": 14 * ROWS}
    return train_alike(folder, sae, processes, inputs={"activations": given}, **{**revived, **kept, **options})


def shard_over_text(folder: Path) -> TrainOutput:
    """A whole run of an SAE whose features lie in both processes."""
    return train_text(folder, sae_placement="shard")


def shard_in_two_parts(folder: Path, **options: Any) -> TrainOutput:
    """As `train_in_two_parts`, of an SAE whose features lie in both processes."""
    return train_in_two_parts(folder, sae_placement="shard", **options)


SKIPPING = {"architecture": "jumprelu", "architecture_options": {"skip": True}}
"""A transcoder with what no feature has."""

ALL_LAYERS = {"architecture": LAYERED[0], "hook_point": "mlp_in.*", "target_hook_point": "mlp_out.*"}
LAYERS_OF_TEXT = {
    **{**ALL_LAYERS, "n_features": 3 * 48},
    **{"k": 2, "training_tokens": 40 * ROWS, "dead_feature_window": 64},
}
"""A cross-layer transcoder of a language model."""

BUDGET = {"architecture": "batch_topk", "k": 2, "training_tokens": 40 * ROWS}
"""A run whose features are chosen batch by batch."""


def spread_in_two_parts(folder: Path) -> TrainOutput:
    """As `train_in_two_parts`, each SAE in one of the processes."""
    return train_in_two_parts(folder, {"saes": {"a": {"k": 2}, "b": {"k": 4}}}, sae_placement="spread")


def go_on_with_more(folder: Path, stop: int = HALF, **options: Any) -> TrainOutput:
    """A run that is begun in one process, in steps half as large, and goes on in however many call this."""
    tiny = {"training_tokens": 2 * HALF * ROWS // 2, "dead_feature_window": 200, "eval_tokens": 200, **options}
    return trainer(folder, callbacks=[stop_at(stop)], **tiny).train(resume_from_checkpoint=folder.exists())


def train_until_one_is_told_to_stop(folder: Path) -> TrainOutput:
    """A run of which the last process alone gets a signal, in its third step."""
    last = int(os.environ["RANK"]) == world() - 1
    told = At(3, lambda **_: os.kill(os.getpid(), signal.SIGTERM) if last else None)
    return trainer(folder, callbacks=[told], training_tokens=100 * 64).train()


def train_until_one(folder: Path, which: int, does: Callable[[], Any]) -> TrainOutput:
    """A run of which one process does something in its sixth step, after the checkpoint of the fourth."""
    process_watch._SILENT = 6.0  # a test shall not wait for the better part of a minute
    it = int(os.environ["RANK"]) == which % world()
    at = At(6, lambda **_: does() if it else None)
    return trainer(folder, callbacks=[at], save_steps=4, training_tokens=20 * 64).train()


def fail() -> None:
    """Raises."""
    raise ValueError("this process alone has had enough")


def train_until_one_is_not_a_number(folder: Path, **options: str) -> TrainOutput:
    """A run that spoils the weights of an SAE in the first process in its sixth step, after a checkpoint."""
    saes = {name: make_sae(name, n_features=width) for name, width in SEVERAL.items()}
    first = int(os.environ["RANK"]) == 0
    spoilt = At(6, lambda **_: saes["topk"].encoder.weight.data.fill_(torch.nan) if first else None)
    inputs = {"activations": sparse_rows(2000), "saes": saes}
    run = trainer(folder, inputs=inputs, callbacks=[spoilt], save_steps=4, training_tokens=20 * 64, **options)
    try:
        return run.train()
    except FloatingPointError as error:
        Path(f"{folder}-rank-{os.environ['RANK']}.txt").write_text(str(error))
        raise


CASES = {
    # The first, so that the others find out whether the end of a tracker leaves the processes joined.
    "tracked": lambda folder: train_text(folder, report_to="tensorboard"),
    **{f"alike-{name}": lambda folder, name=name: train_alike(folder, make_sae(name), 2) for name in PER_TOKEN},
    **{f"text-{name}": lambda folder, name=name: train_text(folder, architecture=name) for name in ARCHITECTURES},
    "alike-models": lambda folder: train_models(folder, 2),
    "alike-layers": lambda folder: train_layers(folder, LAYERED[1], 2, revival="none"),
    "text-layers": lambda folder: train_text(folder, **ALL_LAYERS, n_features=3 * 48),
    "resampled": lambda folder: train_text(folder, revival="resample"),
    "two-parts": train_in_two_parts,
    "told-to-stop": train_until_one_is_told_to_stop,
    "text-transcoder": lambda folder: train_text(folder, hook_point="mlp_in.1", target_hook_point="mlp_out.1"),
    "transcoder-shard": lambda folder: train_transcoder(folder, 2, sae_placement="shard"),
    "wide-shard": lambda folder: train_wide(folder, 2, sae_placement="shard"),
    "text-shard": shard_over_text,
    "two-parts-shard": shard_in_two_parts,
    "begun-alone": lambda folder: go_on_with_more(folder),
}

# In as many processes as there are.
SHARDED = {
    **{
        f"cut-{name}": lambda folder, name=name: train_cut(folder, name, world(), sae_placement="shard")
        for name in CUT
    },
    **{
        f"cut-{name}": lambda folder, name=name: train_layers(folder, name, world(), sae_placement="shard")
        for name in LAYERED
    },
    "cut-layers-in-two-parts": lambda folder: shard_in_two_parts(folder, **LAYERS_OF_TEXT),
    "cut-transcoder": lambda folder: train_transcoder(folder, world(), sae_placement="shard", **SKIPPING),
    "cut-in-two-parts": lambda folder: shard_in_two_parts(folder, **BUDGET),
}

# With a KL finish.
FINISHED = {
    "kl": lambda folder: train_with_kl(folder, 2),
    "kl-two-parts": lambda folder: train_in_two_parts(folder, kl_tokens=0.7),
}

# Of which each process ends with SAEs of its own.
SPREAD = {
    "several-spread": lambda folder: train_several_alike(folder, 2, sae_placement="spread"),
    "text-spread": spread_over_text,
    "two-parts-spread": spread_in_two_parts,
    "set-spread": spread_a_set,
    "joined-spread": lambda folder: train_joined(folder, 2, sae_placement="spread"),
    "mapped": lambda folder: train_beside_a_map(folder, json.dumps(PLACES)),
    "unmapped": lambda folder: train_beside_a_map(folder, None),
}


AUTOENCODER = "autoencoder_"
_NOT_NEGATIVE = [name for name in OF_TWO_PLACES if name != "abs_topk"]


def begin_repointed(architecture: str) -> Callable[..., TrainOutput]:
    """What trains an SAE of an architecture whose dead features are pointed anew."""
    return train_repointed_layers if architecture in LAYERED else train_repointed


# Dead features come back, by where the SAE lies.
REPOINTED = {
    f"{placement}-{name}": lambda folder, name=name, placement=placement: begin_repointed(name)(
        folder, name, world(), sae_placement=placement
    )
    for placement in ("replicate", "shard")
    for name in (*_NOT_NEGATIVE, *(f"{AUTOENCODER}{name}" for name in _NOT_NEGATIVE), *LAYERED)
}

# Which never ends well.
BROKEN = {
    "one-dies": lambda folder: train_until_one(folder, -1, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "first-dies": lambda folder: train_until_one(folder, 0, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "one-is-silent": lambda folder: train_until_one(folder, -1, lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "one-fails": lambda folder: train_until_one(folder, -1, fail),
    "nan-spread": lambda folder: train_until_one_is_not_a_number(folder, sae_placement="spread"),
    "nan-replicate": train_until_one_is_not_a_number,
}


def world() -> int:
    """The number of processes."""
    return int(os.environ["WORLD_SIZE"])


def digest(sae: SAE) -> str:
    """Of every tensor of an SAE."""
    content = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        content.update(name.encode() + tensor.numpy().tobytes())
    return content.hexdigest()


def main(folder: str, *cases: str) -> None:
    """Trains the cases one after the other and writes down what this process holds at the end of each."""
    torch.set_num_threads(1)
    atexit.register(write_down_what_is_left, folder)  # last of all: what is registered later runs before
    known, failed = {**CASES, **FINISHED, **SPREAD, **SHARDED, **REPOINTED, **BROKEN}, None
    for case in cases:
        try:
            output = known[case](Path(folder, case))
        except FloatingPointError as error:  # of a loss, in all processes alike: the other cases can go on
            failed = error
            continue
        digests = {name: digest(sae) for name, sae in output.saes.items()}
        found = {"digests": digests, "steps": output.steps, "completed": output.completed, "metrics": output.metrics}
        Path(folder, f"{case}-rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
    if failed is not None:
        raise failed


def write_down_what_is_left(folder: str) -> None:
    """Whether the processes' group is still there, and the threads of gloo's."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    left = {"joined": torch.distributed.is_initialized(), "gloo": [name for name in names if "gloo" in name]}
    Path(folder, f"exit-rank-{os.environ['RANK']}.json").write_text(json.dumps(left))


if __name__ == "__main__":
    main(*sys.argv[1:])
