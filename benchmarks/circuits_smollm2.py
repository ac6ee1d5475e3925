"""Attribution graphs of SmolLM2-135M: a transcoder for each of its 30 MLPs, trained on two cores, then three prompts.

    python benchmarks/circuits_smollm2.py --model SMOLLM2 --books BOOKS.jsonl --output_dir runs/smollm2

SMOLLM2 is a folder of the model, BOOKS.jsonl has a paragraph in `text` a line. Half of the text is books, half
Python's standard library. What is there already is not made again: the text, the transcoders (an interrupted training
goes on from its last checkpoint), each graph. Writes a page and a graph for each prompt, and `figures/`.
`--tokens 0` trains nothing: transcoders of random weights say what a graph takes, and how exact it is.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

from kept import begun, kept, whole_run
from mixed_text import LENGTH, books_and_library
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfsae import SAE, Graph, SAETrainer, SAETrainingArguments, TopKSAEConfig, evaluate_together, load_saes, trace
from hfsae.data.stdlib_text import stdlib_documents

# How many documents of each kind.
_DOCUMENTS = 600

PROMPTS = {
    "induction": "Mr. Cavendish met Elinor Prewett at noon. After dinner Mr. Cavendish wrote to Elinor",
    "bracket": 'names = ["north", "south", "east", "west',
    "capital": "Paris is the capital of France. Rome is the capital of",
}


def train(options: argparse.Namespace, text: Path, run: Path) -> dict[str, Any]:
    """The transcoders, and what their training took."""
    resumed = begun(run)
    arguments = SAETrainingArguments(
        model_name_or_path=str(options.model),
        hook_point="mlp_in.*",
        target_hook_point="mlp_out.*",
        architecture="batch_topk",
        architecture_options={"skip": True},
        n_features=options.n_features,
        k=options.k,
        learning_rate=options.learning_rate,
        dataset_name=str(text),
        context_length=128,
        training_tokens=options.tokens,
        train_batch_tokens=options.batch_tokens,
        lm_batch_sequences=8,
        bf16=True,
        save_steps=25,
        save_total_limit=1,
        init_tokens=2048,
        eval_tokens=0,
        calibration_tokens=2048,
        output_dir=str(run),
        resume_from_checkpoint="last" if resumed else None,
        html_report=False,
        logging_steps=1,
    )
    start = time.perf_counter()
    whole_run(SAETrainer(args=arguments))
    return {"tokens": options.tokens, "minutes": (time.perf_counter() - start) / 60, "resumed": resumed}


def untrained(options: argparse.Namespace, model: Any) -> dict[str, SAE]:
    """Transcoders as they are made, for what does not depend on their weights."""
    width, layers = model.config.hidden_size, range(model.config.num_hidden_layers)
    options_of = {"d_in": width, "n_features": options.n_features, "k": options.k, "subtract_b_dec": False}
    return {
        f"mlp_in.{layer}": SAE.from_config(
            TopKSAEConfig(hook_point=f"mlp_in.{layer}", target_hook_point=f"mlp_out.{layer}", **options_of)
        )
        for layer in layers
    }


def graph_of(name: str, model: Any, saes: Any, tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one prompt; writes its page and its graph."""
    start, used = time.perf_counter(), time.process_time()
    prompt = PROMPTS[name]
    graph = trace(model, saes, prompt, tokenizer=tokenizer, max_features=options.max_features, disable_tqdm=True)
    traced, used = time.perf_counter() - start, time.process_time() - used
    validation = graph.validate(20)
    graph.write_page(options.output_dir / f"{name}.html")
    graph.save(options.output_dir / f"{name}.safetensors")
    print(f"\n{prompt!r}\n{graph}\n{validation}")
    return {
        "prompt": prompt,
        "tokens": len(graph.tokens),
        "seconds": traced,
        "processor_seconds": used,
        "active": graph.n_active,
        "features": int(graph.is_kind("feature").sum()),
        "says": [(node.label, node.probability) for node in graph.nodes if node.kind == "logit"],
        "replacement": graph.replacement_score,
        "completeness": graph.completeness_score,
        "exactness": vars(graph.exactness),
        "validation": validation.to_dict(),
        "strongest": paths(graph),
    }


def paths(graph: Graph) -> list[dict[str, Any]]:
    """The strongest features, each with what makes it and what it makes."""
    return [
        {
            "name": node.name,
            "token": graph.tokens[node.position],
            "influence": float(graph.influence[graph.index(node)]),
            "inputs": [(source.name, round(weight, 3)) for source, weight in graph.inputs(node, 3)],
            "outputs": [(target.name, round(weight, 3)) for target, weight in graph.outputs(node, 3)],
        }
        for node in graph.strongest(12)
    ]


def main() -> None:
    """Makes what is missing, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--books", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--batch_tokens", type=int, default=1024)
    parser.add_argument("--n_features", type=int, default=2048)
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="the automatic one is too high here")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--eval_tokens", type=int, default=2048)
    parser.add_argument("--max_features", type=int, default=2000)
    parser.add_argument("--prompts", nargs="+", choices=list(PROMPTS), default=list(PROMPTS))
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    text, run, figures = (options.output_dir / name for name in ("text.jsonl", "set", "figures"))
    books_and_library(text, options.books, _DOCUMENTS)
    if not options.tokens:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = AutoModelForCausalLM.from_pretrained(options.model)
        name = options.prompts[0]
        made = partial(graph_of, name, model, untrained(options, model), tokenizer, options)
        kept(figures / f"untrained-{name}.json", made)
        return
    kept(figures / "training.json", partial(train, options, text, run))
    saes = load_saes(run)
    first = next(iter(saes.values()))
    model, tokenizer = first.load_base_model(), first.load_tokenizer()
    held_out = [document["text"][:LENGTH] for document in stdlib_documents("held_out")]
    measured = partial(evaluate_together, saes, model, held_out, tokenizer, max_tokens=options.eval_tokens)
    kept(figures / "together.json", measured)
    for name in options.prompts:
        kept(figures / f"{name}.json", partial(graph_of, name, model, saes, tokenizer, options))


if __name__ == "__main__":
    main()
