"""A comparison's numbers: arms over seeds, each against base and FoG-A against each, as data and as Markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fog_a_adapters.compare.benefits import markdown_lines
from fog_a_adapters.compare.contrasts import Contrast, contrast, estimate, holm

NAMES = {
    "loss": "held-out flow loss",
    "frechet": "Fréchet distance",
    "frechet2": "Fréchet distance under the second embedder",
    "wer": "word error rate",
    "cost": "time of a step, relative to base",
}


def summary(results: Sequence[Mapping[str, Any]], arms: Sequence[str], level: float = 0.95) -> dict[str, Any]:
    """metric → {"arms": arm → estimate, "against base": arm → contrast, "foga against": arm → contrast}.

    p-values are adjusted (Holm) over the contrasts of one metric and one table.
    """
    metrics = list(results[0]["metrics"])
    made: dict[str, Any] = {"level": level, "metrics": {}}
    for metric in metrics:
        values = {
            arm: [r["metrics"][metric] for r in sorted(results, key=lambda r: r["seed"]) if r["arm"] == arm]
            for arm in arms
        }
        others = [a for a in arms if a != "base"]
        against = {a: contrast(values[a], values["base"], level) for a in others}
        controls = [a for a in others if a != "foga"] if "foga" in arms else []
        versus = {a: contrast(values["foga"], values[a], level) for a in controls}
        made["metrics"][metric] = {
            "arms": {a: plain(asdict(estimate(values[a], level))) for a in arms},
            "against base": _adjusted(against),
            "foga against": _adjusted(versus),
        }
    return made


def _adjusted(contrasts: Mapping[str, Contrast]) -> dict[str, dict[str, Any]]:
    adjusted = holm([c.p for c in contrasts.values()])
    return {
        arm: plain({**asdict(c), "p_adjusted": p, "seen": c.seen})
        for (arm, c), p in zip(contrasts.items(), adjusted, strict=True)
    }


def plain(value: Any) -> Any:
    """None for numbers that are not finite: what JSON can hold."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(report: Mapping[str, Any]) -> str:
    """The report to read: what was done, every metric, and what it does not show."""
    plan, made = report["plan"], report["summary"]
    seeds = plan["seeds"]
    lines = [
        f"# {report['task']}: which layers should be aligned?",
        "",
        f"{plan['warmup']} steps of warm-up, then {plan['steps']} steps of each arm from the same checkpoint, with the "
        f"same clips, noise and learning rates; {_count(len(seeds), 'seed')} ({', '.join(map(str, seeds))}); "
        f"{plan['k']} layers per domain, λ = {plan['total']} in all.",
        "",
        *(f"* {name}: {value}" for name, value in report["facts"].items()),
        "",
    ]
    for metric in [m for m in NAMES if m in made["metrics"]]:
        lines += _metric(metric, made, plan["arms"])
    lines += markdown_lines(report.get("benefits", {}), made["level"])
    lines += [
        "## Layers",
        "",
        *_layers(report["results"], plan["arms"]),
        "",
        "## How to read this",
        "",
        *_caution(made),
    ]
    return "\n".join(lines) + "\n"


def _metric(metric: str, made: Mapping[str, Any], arms: Sequence[str]) -> list[str]:
    """The tables of one metric; domains apart where there are several."""
    table, level = made["metrics"][metric], made["level"]
    parts = [m for m in made["metrics"] if m.startswith(f"{metric}/")]
    split = [m.split("/", 1)[1] for m in parts] if len(parts) > 1 else []
    heads = ["arm", "mean", f"{level:.0%} interval", *split, "arm − base", f"{level:.0%} interval", "detectable", "p"]
    lines = [f"## {NAMES[metric][0].upper()}{NAMES[metric][1:]}", "", *_head(heads)]
    for arm in arms:
        e = table["arms"][arm]
        row = [arm, _number(e["mean"]), _interval(e)]
        row += [_number(made["metrics"][m]["arms"][arm]["mean"]) for m in parts[: len(split)]]
        row += _against(table["against base"].get(arm))
        lines.append(f"| {' | '.join(row)} |")
    if table["foga against"] and metric != "cost":
        lines += ["", *_head(["foga − arm", "difference", f"{level:.0%} interval", "detectable", "p"])]
        lines += [f"| {' | '.join([arm, *_against(c)])} |" for arm, c in table["foga against"].items()]
    return [*lines, ""]


def _against(c: Mapping[str, Any] | None) -> list[str]:
    """Difference, interval, smallest detectable difference, adjusted p; bold where the interval excludes 0."""
    if c is None:
        return ["", "", "", ""]
    mean = f"{c['difference']['mean']:+.4f}".replace("-", "−")
    p = c["p_adjusted"]
    shown = [f"**{mean}**" if c["seen"] else mean, _interval(c["difference"], sign="+")]
    return [*shown, _number(c["detectable"]), "–" if p is None else f"{p:.3f}"]


def _layers(results: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> list[str]:
    """Which layers each arm took, over all seeds."""
    lines = _head(["arm", "domain", "layers (in how many seeds)"])
    for arm in arms:
        chosen: dict[str, Counter[str]] = {}
        for r in results:
            for domain, weights in r.get("layers", {}).items() if r["arm"] == arm else ():
                chosen.setdefault(domain, Counter()).update(list(weights))
        for domain, counts in chosen.items():
            said = ", ".join(f"{name} ({n})" for name, n in counts.most_common())
            lines.append(f"| {arm} | {domain} | {said} |")
    return lines


def _caution(made: Mapping[str, Any]) -> list[str]:
    """What the intervals mean, and how many differences were seen at all."""
    loss = made["metrics"]["loss"]
    seen = [a for a, c in loss["against base"].items() if c["seen"]]
    found = f"differ from base: {', '.join(seen)}" if seen else "none differs detectably from base"
    return [
        f"Seeds are the units. Intervals are Student's at {made['level']:.0%}, each for itself; p is of the paired t "
        "test, adjusted (Holm) over the arms of a table. “Detectable” is the smallest difference that this run would "
        "have found with 80 % power: a smaller one that was not found may well be there. "
        f"In held-out flow loss, by their intervals, {found}. Lower is better throughout. The flow loss is the "
        "model's own, without the alignment term. Times are medians of pairs of steps, one of base and one of the arm, "
        "taken in turn.",
    ]


def _head(names: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{'|'.join('---' for _ in names)}|"]


def _number(x: float | None) -> str:
    return "∞" if x is None else f"{x:.4f}"


def _interval(e: Mapping[str, Any], sign: str = "") -> str:
    if e["low"] is None:
        return "one seed"
    return f"[{e['low']:{sign}.4f}, {e['high']:{sign}.4f}]".replace("-", "−")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")
