"""One page of a run: tables, what is to be heard, how it was made, the probes' pictures with the SCD figure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fog_a.scores.scores import Scores
from fog_a.scores.tables import Table
from fog_a.shell.report import report
from fog_a_adapters.compare.arms import ARMS
from unified_audio.clips import DOMAINS, Clip
from unified_audio.paper_tables import PaperTable, shown

SHORT = 36
"""Facts of at most so many letters are cards; longer ones stand in a table below."""


def paper_page(
    data: str, result: Mapping[str, Any], tables: Sequence[PaperTable], scores: Sequence[Scores], sounds: Table,
    facts: Mapping[str, Any],
) -> str:  # fmt: skip
    """The page as HTML that needs nothing from outside."""
    cards = {k: v for k, v in facts.items() if len(str(v)) <= SHORT}
    long = [[k, str(v)] for k, v in facts.items() if k not in cards]
    return report(
        scores,
        tables=[*(_table(t) for t in tables if t.rows), sounds, Table("How it was made", ("", ""), long)],
        facts=cards,
        title="Which layers should be aligned?",
        lead=f"One model for speech and sound, on {data}. {verdict(result)}",
    )


def verdict(result: Mapping[str, Any]) -> str:
    """Which arms differ from base, by tests that know how many arms there are."""
    alpha = 1 - result["summary"]["level"]
    said = []
    for metric, name in (("loss", "held-out flow loss"), ("frechet", "Fréchet distance"), ("wer", "word error rate")):
        if metric in result["summary"]["metrics"]:
            found = result["summary"]["metrics"][metric]["against base"]
            sure = {a: c for a, c in found.items() if c["p_adjusted"] is not None and c["p_adjusted"] < alpha}
            arms = [f"{a} ({_signed(c['difference']['mean'])})" for a, c in sure.items()]
            said.append(f"{name}: {', '.join(arms) or 'none'}")
    others = len(result["plan"]["arms"]) - 1
    return (
        f"Arms that differ from base, by paired t tests over seeds adjusted for {others} (Holm, {alpha:.0%}); less "
        f"is better: {'; '.join(said)}."
    )


def _signed(x: float) -> str:
    return f"{x:+.4f}".replace("-", "−")


def _table(t: PaperTable) -> Table:
    end = "" if t.title.endswith("?") else "."
    return Table(
        f"Table {t.number}. {t.title}{end} {t.note}".rstrip().replace("`", ""),
        t.columns,
        [[shown(x) for x in row] for row in t.rows],
    )


def sounds(folder: Path, arms: Sequence[str], clips: Mapping[str, Clip], vocoder: str) -> Table:
    """Players: a row for the recording, its mel through the vocoder, the arms, and all stages from the text alone.

    Variants of foga sound as foga does; theirs are in the folder.
    """
    names = {"real": "recording", "ceiling": "its mel, through the vocoder", **{a: a for a in arms if a in ARMS},
             "all-stages": "from text: all stages"}  # fmt: skip
    rows = []
    for name, said in names.items():
        paths = [folder / f"{name}-{d}.wav" for d in DOMAINS]
        if any(p.exists() for p in paths):
            rows.append([said, *(_player(p, f"{said}, {d}") for d, p in zip(DOMAINS, paths, strict=True))])
    heads = [f"{d}: {c.text if len(c.text) < 40 else c.text[:39] + '…'}" for d, c in clips.items()]
    return Table(f"To listen to; mel made sound by {vocoder}", ("", *heads), rows)


def _player(path: Path, label: str) -> Markup:
    if not path.exists():
        return Markup("–")
    data = base64.b64encode(path.read_bytes()).decode()
    player = '<audio controls preload="metadata" aria-label="{}" src="data:audio/wav;base64,{}"></audio>'
    return Markup(player).format(label, data)
