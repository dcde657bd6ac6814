"""fog_a beside what others published: one-block-removed perplexities of language models, skip layers of image models.

    python examples/uses/validation.py published                                  # their tables alone; needs no weights
    python examples/uses/validation.py llm FOLDER --beside Llama-2-7b-hf --texts texts.txt   # weights for transformers
    python examples/uses/validation.py diffusion FOLDER --prompts prompts.txt                # a diffusers pipeline

`shortened_llm.csv` holds what Nota-NetsPresso/shortened-llm publishes at commit 4031a92 (output_block_sensitivity): the
perplexity of ten BookCorpus texts without one block, and the sum of each block's first-order (Taylor) scores. Their
texts are not part of it: pass your own by --texts, one a line; ranks are compared, not perplexities.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import fog_a

TABLE = Path(__file__).parent / "shortened_llm.csv"
SKIPPED = {  # what STGuidance (df04da0), diffusers 0.42.1 and Stable Flow (c99ac0e) use or call vital
    "CogVideoXTransformer3DModel": {"STGuidance skips": ["transformer_blocks.11"]},
    "HunyuanVideoTransformer3DModel": {"STGuidance skips": ["transformer_blocks.2"]},
    "LTXVideoTransformer3DModel": {"STGuidance skips": ["transformer_blocks.19"]},
    "MochiTransformer3DModel": {"STGuidance skips": ["transformer_blocks.34"]},
    "SD3Transformer2DModel": {"diffusers skips": [f"transformer_blocks.{i}" for i in (7, 8, 9)]},
    "FluxTransformer2DModel": {
        "Stable Flow, vital": [
            *(f"transformer_blocks.{i}" for i in (0, 1, 17, 18)),
            *(f"single_transformer_blocks.{i}" for i in (9, 34, 35, 37, 6)),
        ]
    },
}


SHORTGPT = {"Llama-2-7b-hf": (27, 26, 25, 28, 24, 29, 23, 21, 22)}
"""The blocks that ShortGPT removes, first to last (arXiv 2403.03853): those whose output is most like their input."""


def published(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Perplexity without each block, and its Taylor score."""
    with open(TABLE, newline="", encoding="utf-8") as f:
        rows = [row for row in csv.DictReader(f) if row["model"] == name]
    if not rows:
        raise SystemExit(f"{name!r} is not in {TABLE.name}, which has {', '.join(models())}")
    return np.array([float(r["perplexity"]) for r in rows]), np.array([float(r["taylor"]) for r in rows])


def models() -> list[str]:
    """The models of the table."""
    with open(TABLE, newline="", encoding="utf-8") as f:
        return list(dict.fromkeys(row["model"] for row in csv.DictReader(f)))


def overlap(a: np.ndarray, b: np.ndarray, k: int) -> int:
    """How many of the k least are the same."""
    return len({*np.argsort(a)[:k]} & {*np.argsort(b)[:k]})


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's."""
    found: Any = stats.spearmanr(a, b)
    return float(found.statistic)


def show_published() -> None:
    """Their exact removal against their first-order score, for each model."""
    heads = ("model", "blocks", "rank corr.", "inner", "of the least quarter", "least spread")
    print("{:18s} {:>6s} {:>10s} {:>6s} {:>21s} {:>13s}".format(*heads))
    for name in models():
        exact, taylor = published(name)
        quarter, inner = round(len(exact) / 4), slice(4, -2)
        least = np.sort(exact)[:quarter]
        print(
            f"{name:18s} {len(exact):6d} {correlation(exact, taylor):10.2f} "
            f"{correlation(exact[inner], taylor[inner]):6.2f} {overlap(exact, taylor, quarter):12d} of {quarter:2d} "
            f"{least[-1] / least[0] - 1:16.1%}"
        )
    for name, order in SHORTGPT.items():
        exact, taylor = published(name)
        print(f"{name}: of the {len(order)} that ShortGPT removes")
        for how, x in (("exact removal", exact), ("Taylor scores", taylor)):
            rank = np.argsort(np.argsort(x))[list(order)] + 1
            rho, count = correlation(rank, np.arange(len(order))), (rank <= len(order)).sum()
            print(
                f"  {count} are among the least by {how}: ranks {rank.tolist()}, correlation with its order {rho:.2f}"
            )


def perplexity(model: Any, ids: Sequence[torch.Tensor]) -> float:
    """exp of the mean loss of a token, each text by itself."""
    with torch.no_grad():
        losses = [model(input_ids=i[None], labels=i[None]).loss * (len(i) - 1) for i in ids]
    return float((torch.stack(losses).sum() / sum(len(i) - 1 for i in ids)).exp())


def llm(model: Any, ids: Sequence[torch.Tensor], beside: str | None) -> None:
    """Contribution to the logits, and the perplexity with each block closed, beside the published ones."""
    batches = [{"input_ids": i[None]} for i in ids]
    scores = fog_a.attribute(model, batches, progress=False)
    blocks = fog_a.find_blocks(model, batches[0]).named(scores.layers)
    exact = []
    for name in blocks.names:
        with fog_a.gate(blocks.named(name), 0):
            exact.append(perplexity(model, ids))
    theirs, taylor = published(beside) if beside else (np.full(len(blocks), np.nan),) * 2
    if len(theirs) != len(blocks):
        raise SystemExit(f"{beside} has {len(theirs)} blocks, this model {len(blocks)}: another one, or another name")
    print(f"perplexity with all blocks {perplexity(model, ids):.2f}")
    print(f"{'block':24s} {'contribution':>12s} {'perplexity':>11s} {'published':>10s} {'Taylor':>8s}")
    for row in zip(blocks.names, scores.mean(), exact, theirs, taylor, strict=True):
        print("{:24s} {:12.3f} {:11.4g} {:10.4g} {:8.4g}".format(*row))
    columns = {"contribution": scores.mean(), "perplexity": np.array(exact), "published": theirs, "Taylor": taylor}
    for a, b in (("contribution", "perplexity"), ("perplexity", "published"), ("contribution", "published")):
        print(f"rank correlation of {a} and {b}: {correlation(columns[a], columns[b]):.2f}")


def diffusion(pipe: Any, prompts: Sequence[str], steps: int, **options: Any) -> fog_a.Scores:
    """Contribution along the pipeline's own runs, and where the layers in use stand in it."""
    net, calls = pipe.transformer, list[fog_a.Inputs]()
    hook = net.register_forward_pre_hook(lambda m, a, k: calls.append(fog_a.Inputs(*a, **k)), with_kwargs=True)
    try:
        for prompt in prompts:
            pipe(prompt, num_inference_steps=steps, output_type="latent", **options)
    finally:
        hook.remove()
    scores = fog_a.attribute(net, calls, progress=False)
    print(scores.table())
    order = [scores.layers[i] for i in np.argsort(-scores.mean())]
    for who, names in SKIPPED.get(type(net).__name__, {}).items():
        print(f"{who}: " + ", ".join(f"{n} is rank {order.index(n) + 1} of {len(order)}" for n in names if n in order))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("published", "llm", "diffusion"))
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--beside", help="a model of shortened_llm.csv")
    parser.add_argument("--texts", type=Path, help="a file, one text a line")
    parser.add_argument("--prompts", type=Path, help="a file, one prompt a line")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--options", type=json.loads, default={}, help="for the pipeline: '{\"height\": 256}'")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    file = {"llm": "texts", "diffusion": "prompts"}.get(a.what)
    if file and (missing := [name for name in ("folder", file) if getattr(a, name) is None]):
        parser.error(f"{a.what} needs {' and '.join(missing)}: {a.what} FOLDER --{file} FILE")
    if file and not getattr(a, file).is_file():
        parser.error(f"there is no file {getattr(a, file)} for --{file}: give one {file[:-1]} a line")
    try:
        run(a)
    except OSError as error:
        parser.error(f"{a.folder}: expected a folder with weights. {str(error).splitlines()[0]}")


def run(a: argparse.Namespace) -> None:
    """What was asked for."""
    if a.what == "published":
        show_published()
    elif a.what == "llm":
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model: Any = AutoModelForCausalLM.from_pretrained(a.folder, dtype=torch.bfloat16).eval().to(a.device)
        tokenizer: Any = AutoTokenizer.from_pretrained(a.folder)
        ids = [tokenizer(t, return_tensors="pt").input_ids[0].to(a.device) for t in a.texts.read_text().splitlines()]
        llm(model, ids, a.beside)
    else:
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        pipe: Any = DiffusionPipeline.from_pretrained(a.folder, dtype=torch.bfloat16)
        diffusion(pipe.to(a.device), a.prompts.read_text().splitlines(), a.steps, **a.options)


if __name__ == "__main__":
    main()
