"""Does a probe predict which layer is worth aligning? From the arms that align each layer alone.

    benefit of layer k = held-out loss of base − held-out loss with layer k alone aligned

Within each seed the layers' benefits are rank-correlated with what each probe said of them at the branch, and with
depth; then the correlations of the seeds get a Student interval. `given depth` is the partial rank correlation: what
the probe says beyond a layer's place.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from fog_a.scores.scores import Scores
from fog_a_adapters.compare.arms import ALONE, numbers_of
from fog_a_adapters.compare.contrasts import estimate

Array = np.ndarray
PROBES = {"foga": "FoG-A", "lasp": "LASP", "probe": "own probe", "gradnorm": "gradient norm", "depth": "depth"}


def spearman(a: Float[Array, " L"], b: Float[Array, " L"], given: Float[Array, " L"] | None = None) -> float:
    """Rank correlation; with `given`, the partial one. NaN where a ranking is constant or follows from `given`.

    >>> a, b, c = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4]), np.array([4.0, 1, 2, 3])
    >>> round(spearman(a, b), 3), round(spearman(a, b, c), 3)
    (0.8, 0.802)
    """
    ranks = [stats.rankdata(x) for x in (a, b, *(() if given is None else (given,)))]
    if any(np.ptp(r) == 0 for r in ranks):
        return math.nan
    r = np.corrcoef(ranks)
    if given is None:
        return float(r[0, 1])
    rest = (1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2)
    return math.nan if rest < 1e-9 else float((r[0, 1] - r[0, 2] * r[1, 2]) / math.sqrt(rest))


def correlations(
    benefit: Float[Array, "S L"], scores: Mapping[str, Float[Array, "S L"]], level: float = 0.95
) -> dict[str, Any]:
    """For each score and depth: the seeds' correlations with benefit, and their mean with its interval."""
    depth = np.arange(benefit.shape[1], dtype=float)
    made: dict[str, Any] = {}
    for name, values in {**scores, "depth": np.broadcast_to(depth, benefit.shape)}.items():
        plain = [spearman(b, v) for b, v in zip(benefit, values, strict=True)]
        made[name] = {"per seed": plain, **_within(over_seeds(plain, level))}
        if name != "depth":
            partial = [spearman(b, v, depth) for b, v in zip(benefit, values, strict=True)]
            made[name]["given depth"] = {"per seed": partial, **_within(over_seeds(partial, level))}
    return made


def _within(e: dict[str, Any]) -> dict[str, Any]:
    """A correlation's interval, cut at −1 and 1 where there is one."""
    if not math.isfinite(e["low"]):
        return e
    return e | {"low": max(-1.0, e["low"]), "high": min(1.0, e["high"])}


def over_seeds(values: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """Mean over the seeds that have one, with its Student interval."""
    return asdict(estimate([v for v in values if not math.isnan(v)] or [math.nan], level))


def benefits(results: Sequence[Mapping[str, Any]], out: Path, level: float = 0.95) -> dict[str, Any]:
    """ "each" and "each-local", where such arms were run → the layers' benefits, and what predicts them."""
    loss = {(r["arm"], r["seed"]): r["metrics"]["loss"] for r in results}
    seeds = sorted({seed for _, seed in loss})
    scores = {seed: _scores(out / f"seed{seed}") for seed in seeds}
    made: dict[str, Any] = {}
    for way in ALONE:
        numbers = sorted({numbers_of(a)[0] for a, _ in loss if a.rsplit("-", 1)[0] == way})
        if len(numbers) < 3:
            continue
        table = [[loss["base", s] - loss[f"{way}-{n}", s] for n in numbers] for s in seeds]
        of = {name: np.array([[scores[s][name][n - 1] for n in numbers] for s in seeds]) for name in scores[seeds[0]]}
        made[way] = {
            "layers": numbers,
            "seeds": seeds,
            "benefit": table,
            "mean": [asdict(estimate(column, level)) for column in zip(*table, strict=True)],
            "of any layer": asdict(estimate([statistics.fmean(row) for row in table], level)),
            "scores": {name: values.tolist() for name, values in of.items()},
            "rank correlation": correlations(np.array(table), of, level),
        }
    return made


def _scores(folder: Path) -> dict[str, list[float]]:
    """What each probe said of each layer at a seed's branch: the mean over domains."""
    made: dict[str, list[float]] = {}
    for name in ("foga", "lasp", "gradnorm"):
        path = folder / f"scores-{name}.json"
        if path.exists():
            scores = Scores.load(path)
            made[name] = np.mean([scores.mean(d) for d in scores.domain_names], axis=0).tolist()
            own = scores.info.get("beside", {}).get("probe", {})
            if own and all(x is not None for rows in own.values() for row in rows for x in row):
                made["probe"] = np.mean([np.mean(rows, axis=0) for rows in own.values()], axis=0).tolist()
    return made


def markdown_lines(made: Mapping[str, Any], level: float) -> list[str]:
    """The section of compare.md; nothing where no layer was aligned alone."""
    if not made:
        return []
    lines = [
        "## Each layer alone",
        "",
        "Benefit: held-out flow loss of base − that with this layer alone aligned; above 0 is better than base.",
        "",
        f"| layer | {' | '.join(f'{way}, {level:.0%} interval' for way in made)} |",
        "|---" * (1 + len(made)) + "|",
    ]
    for i, n in enumerate(next(iter(made.values()))["layers"]):
        lines.append(f"| {n} | {' | '.join(_interval(m['mean'][i], 4) for m in made.values())} |")
    lines += [f"| mean | {' | '.join(_interval(m['of any layer'], 4) for m in made.values())} |", ""]
    lines += ["Rank correlation of benefit with what is known at the branch, within a seed; mean over seeds.", ""]
    lines += ["| arms | known | rank correlation | given depth |", "|---|---|---|---|"]
    for way, m in made.items():
        for name, c in m["rank correlation"].items():
            given = _interval(c["given depth"], 2) if "given depth" in c else ""
            lines.append(f"| {way} | {PROBES[name]} | {_interval(c, 2)} | {given} |")
    return [*lines, ""]


def _interval(e: Mapping[str, Any], digits: int) -> str:
    if e["mean"] is None:
        return "–"
    if e["low"] is None:
        return f"{e['mean']:+.{digits}f} (one seed)".replace("-", "−")
    return f"{e['mean']:+.{digits}f} [{e['low']:+.{digits}f}, {e['high']:+.{digits}f}]".replace("-", "−")
