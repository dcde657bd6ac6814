"""One HTML page that shows scores: what they say in words, pictures, every layer's number, how they were measured.

The page is self-contained: styles and pictures are inside, there is no script and no request; it follows the reader's
light or dark setting and prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fog_a.scores import statistics
from fog_a.scores import text as score_text
from fog_a.scores.canvas import NAME, UNIT
from fog_a.scores.curves import plot_curves
from fog_a.scores.plots import plot_scatter, plot_scd, plot_scores
from fog_a.scores.scores import Scores
from fog_a.shell import page
from fog_a.shell.page import Html, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = tuple[str, "Figure | bytes | str | os.PathLike[str]"]
"""A caption, and a Figure, PNG bytes or the path of a PNG."""

FIGURE_1 = (
    "Left: how much of the teacher's information a layer holds. Right: how far the velocity moves without it. "
    "The layer with the largest mean is framed."
)


def report(
    scores: Scores | Sequence[Scores] = (),
    figures: Iterable[Picture] = (),
    tables: Iterable[Table] = (),
    *,
    title: str = "Which layers drive the output?",
    lead: str = "",
    facts: Mapping[str, Any] | None = None,
    k: int = 3,
    level: float = 0.95,
) -> str:
    """The page as a string; write it with `Path("report.html").write_text(page, encoding="utf-8")`.

    Args:
        scores: one or several; each gets a section with pictures and a table per domain. One of kind "storage" and
            one of "contribution" over the same layers also get the paper's Figure 1 and a scatter.
        figures: further pictures, each with its caption.
        tables: further tables.
        title, lead: heading and first paragraph.
        facts: name → value, shown as cards under the heading.
        k: how many layers are marked per domain.
        level: of the intervals.

    Example:
        >>> scores = Scores(np.random.default_rng(0).random((16, 1, 2)), ("blocks.0", "blocks.1"))
        >>> report(scores, title="A small net").startswith("<!doctype html>")
        True
    """
    several = [scores] if isinstance(scores, Scores) else list(scores)
    body = [f"<h1>{page.text(title)}</h1>"]
    if lead:
        body.append(f'<p class="lead">{page.text(lead)}</p>')
    body.append(page.facts(facts or {}))
    body += [page.picture(image, caption) for caption, image in figures]
    body += [page.table(t) for t in tables]
    for one in several:
        body += _section(one, min(k, len(one.layers)), level)
    body += _together(several, k, level)
    body += [_measured(one) for one in several]
    return page.page(title, [part for part in body if part], _foot(several))


def _section(scores: Scores, k: int, level: float) -> list[str]:
    """Words, pictures and tables of one Scores."""
    name = NAME.get(scores.kind, scores.kind)
    parts = [f"<h2>{page.text(name[0].upper() + name[1:])}</h2>"]
    parts += [f"<p>{_words(scores, d, k)}</p>" for d in scores.domain_names]
    parts += [page.note(n) for n in dict.fromkeys(n for d in scores.domain_names for n in score_text.notes(scores, d))]
    timed = scores.times is not None and len(scores.times) > 1
    caption = f"Mean per layer with {level:.0%} intervals; the best {k} of each domain in color"
    caption += ", and over flow time below." if timed else "."
    parts.append(page.picture(plot_scores(scores, k=k, level=level), caption))
    if timed:
        caption = f"The best {k} layers over flow time, with {level:.0%} bands."
        parts.append(page.picture(plot_curves(scores, k=k, level=level), caption))
    for domain in scores.domain_names:
        summary = f"All {len(scores.layers)} layers" + ("" if domain == "all" else f", {domain}")
        parts.append(page.folded(summary, page.table(_layers(scores, domain, k, level)), len(scores.layers) <= 12))
    return parts


def _words(scores: Scores, domain: str, k: int) -> Html:
    """What the numbers say, in a sentence or two."""
    best = scores.top(k, domain)
    if not best:
        return Html("No layer has a finite score.")
    number = {name: f"L{i + 1}" for i, name in enumerate(scores.layers)}
    names = ", ".join(f"<strong>{number[r.layer]}</strong> <code>{page.text(r.layer)}</code>" for r in best)
    first = best[0]
    low, high = first.interval
    whose = "" if domain == "all" else f"For <strong>{page.text(domain)}</strong>: "
    said = f"{whose}{names}."
    if scores.kind == "contribution":
        said += (
            f" Without {number[first.layer]} the velocity changes by {first.mean:.1%} of its norm"
            f" (interval {low:.1%} to {high:.1%})."
        )
    if len(best) < len(scores.layers):
        sure = scores.top_probability(len(best), domain)
        said += f" This set is the top {len(best)} in {sure:.0%} of bootstrap resamples."
    return Html(said)


def _layers(scores: Scores, domain: str, k: int, level: float) -> Table:
    """All layers in order of execution."""
    mean, interval = scores.mean(domain), scores.interval(level, domain, warn=False)
    sure = scores.inclusion_probability(k, domain)
    order = statistics.top(mean, len(mean)).tolist()
    largest = float(np.nanmax(np.abs(mean))) if np.isfinite(mean).any() else 1.0
    rows = []
    for i, name in enumerate(scores.layers):
        finite = bool(np.isfinite(mean[i]))
        share = 100 * abs(float(mean[i])) / (largest or 1.0) if finite else 0.0
        low, high = interval[i]
        rank = order.index(i) + 1
        rows.append(
            [
                Html(f'<span class="rank">{rank if finite else "–"}</span>'),
                f"L{i + 1}",
                Html(f"<code>{page.text(name)}</code>"),
                Html(f"{mean[i]:.4f}" if finite else "missing"),
                Html(f"{low:.4f} … {high:.4f}" if np.isfinite(low) else "–"),
                f"{sure[i]:.0%}",
                Html(f'<span class="bar" style="width:{share * 0.12:.2f}rem"></span>'),
            ]
        )
    named = "" if domain == "all" else f"{domain}: "
    caption = f"{named}{score_text.count(len(scores.only(domain).ids), 'sample')}; mean is {UNIT.get(scores.kind, '')}"
    columns = ("rank", "", "layer", "mean", f"{level:.0%} interval", f"in the top {k}", "")
    return Table(caption, columns, rows, frozenset(int(i) for i in order[:k]))


def _together(several: Sequence[Scores], k: int, level: float) -> list[str]:
    """Storage beside contribution, for each pair over the same layers with a common domain."""
    parts = []
    for storage in (s for s in several if s.kind == "storage"):
        for contribution in (s for s in several if s.kind == "contribution"):
            if storage.layers != contribution.layers or not set(storage.domains) & set(contribution.domains):
                continue
            scd = plot_scd(storage, contribution, level=level)
            scatter = plot_scatter(storage, contribution, k=min(k, len(storage.layers)), level=level)
            parts += [
                "<h2>Where it is stored, and where it acts</h2>",
                page.picture(scd, FIGURE_1),
                page.picture(scatter, "A point per layer, with both intervals; colored by depth."),
            ]
    return parts


def _measured(scores: Scores) -> str:
    """How it was measured: the options and versions that repeat it."""
    info = dict(scores.info)
    shown: dict[str, Any] = {"samples": len(scores.ids), "layers": len(scores.layers)}
    if scores.times is not None:
        shown["flow times"] = ", ".join(f"{t:.3g}" for t in scores.times)
    signature = info.get("signature") or {}
    if isinstance(signature, Mapping):
        shown |= {"model": signature.get("class"), "parameters": _thousands(signature.get("parameters"))}
    shown |= {name: info.get(name) for name in ("strategy", "seed", "level", "teacher", "step")}
    shown |= {f"{name} version": number for name, number in dict(info.get("versions") or {}).items()}
    shown = {name: value for name, value in shown.items() if value is not None}
    kind = page.text(NAME.get(scores.kind, scores.kind))
    return f"<h2>How it was measured: {kind}</h2>" + page.facts(shown)


def _thousands(number: Any) -> str | None:
    return f"{number:,}" if isinstance(number, int) else None


def _foot(several: Sequence[Scores]) -> str:
    few = any(len(s.only(d).ids) < statistics.FEW for s in several for d in s.domain_names)
    said = "Intervals are bootstrap-t over samples (a sample's flow times are averaged first), stratified by domain."
    if few:
        said += f" Below {statistics.FEW} samples they cannot promise their level."
    return said + " Made with fog_a."
