"""A training step of a set of transcoders against the steps of its members and one pass of the language model.

    python benchmarks/set_step.py [--steps 40] [any option of `hfsae train`]

By default the set of `transcoder_set.yaml`: four transcoders of the embedded language model. A step of the set is
`SAETrainer.training_step()`, with its reading, shuffling, counting and logging. The parts are taken in turn with it:
each member's step by itself on rows that lie ready, and a pass of the language model without its head over as many
tokens as a step takes. One thread, the processor's time of the process, sums over all steps, after two that warm up.
Prints JSON.
"""

import json
import tempfile
import time
from typing import Annotated

import torch

from hfsae import SAETrainer
from hfsae.arguments.command_options import run_script, with_training_options
from hfsae.arguments.config_file import arguments_from
from hfsae.command_line import option
from hfsae.host_memory import freed_memory_kept

_WARM_UP = 2


def trainer_of(given: dict[str, str], folder: str) -> SAETrainer:
    """A trainer of the set, in the middle of a run that is never ended."""
    fixed = {"eval_tokens": 0, "save_steps": 0, "html_report": False, "disable_tqdm": True, "use_cpu": True}
    sizes = {"training_tokens": "4000000", "train_batch_tokens": "2048", "lm_batch_sequences": "16"}
    # So that reading is spread evenly over few steps, and none is fed from what was read before the first one.
    sizes |= {"shuffle_window_tokens": "8192", "init_tokens": "2048"}
    return SAETrainer(args=arguments_from({**sizes, **given, "config": "transcoder_set"}, output_dir=folder, **fixed))


@with_training_options
def main(
    steps: Annotated[int, option("--steps", "Steps that count.")] = 40,
    *,
    given: dict[str, str],
) -> None:
    """Times both in turn."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts, freed_memory_kept():
        together, alone = trainer_of(given, whole), trainer_of(given, parts)
        run = alone._prepared()
        assert run.base is not None
        model = run.base.model.base_model
        length = run.args.context_length
        ids = torch.randint(model.config.vocab_size, (-(-run.tokens_per_step // (length - 1)), length))

        def members(step: int) -> None:
            rows = ready[step]
            for name, learner in run.learners.items():
                points = run.hook_points[name]
                learner.step([rows[points.reads]], step, [rows[points.writes]])

        def language_model(_: int) -> None:
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)

        todo = {"set": lambda _: together.training_step(), "members": members, "language_model": language_model}
        seconds = dict.fromkeys(todo, 0.0)
        # The same rows as those of the set, read beforehand: as many features are dead on both sides.
        ready = [run.next_batches(step)[0] for step in range(steps + _WARM_UP)]
        for step in range(steps + _WARM_UP):
            for name in sorted(todo, reverse=bool(step % 2)):
                started = time.process_time()
                todo[name](step)
                seconds[name] += (time.process_time() - started) * (step >= _WARM_UP)
        per_step = {name: round(total / steps, 4) for name, total in seconds.items()}
        ratio = seconds["set"] / (seconds["members"] + seconds["language_model"])
        sizes = {"members": len(run.learners), "tokens": run.tokens_per_step, "steps": steps}
        print(json.dumps({"seconds": per_step, "ratio": round(ratio, 3), **sizes}))


if __name__ == "__main__":
    run_script(main)
