"""Mean opinion scores: sheets of ratings → mean ± standard error, and whether two systems differ.

A sheet is a CSV with the columns system, sample, rater, score (1 to 5). Raters of the same sample are averaged first:
samples are the units, as in the paper. Systems are compared on the samples that both have, by a paired two-sided t
test, with Student's interval of the difference.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from fog_a.errors import BadArgument, BadManifest

COLUMNS = ("system", "sample", "rater", "score")
LOWEST, HIGHEST = 1.0, 5.0


@dataclass(frozen=True)
class Opinion:
    """A system's mean over samples, its standard error and interval."""

    mean: float
    error: float
    low: float
    high: float
    samples: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.error:.2f}"


@dataclass(frozen=True)
class Difference:
    """system − reference over common samples: mean, interval, t, two-sided p, and how many samples."""

    mean: float
    low: float
    high: float
    t: float
    p: float
    samples: int


Sheet = dict[str, dict[str, float]]
"""system → sample → mean score of its raters."""


def read_sheet(path: str | Path) -> Sheet:
    """A sheet of ratings.

    Raises BadManifest: no file, missing columns, a score that is no number from 1 to 5, a rating given twice, no line.
    """
    path = Path(path)
    if not path.is_file():
        raise BadManifest(f"no sheet of ratings at {path}; expected a CSV with the columns {', '.join(COLUMNS)}")
    ratings: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if missing := [c for c in COLUMNS if c not in (rows.fieldnames or ())]:
            raise BadManifest(f"{path} has no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
        for line, row in enumerate(rows, 2):
            key, rater = (row["system"], row["sample"]), row["rater"]
            if rater in ratings[key]:
                raise BadManifest(f"{path}, line {line}: rater {rater!r} rates {key} twice; delete one")
            ratings[key][rater] = _score(path, line, row["score"])
    if not ratings:
        raise BadManifest(f"{path} has no ratings")
    sheet: Sheet = defaultdict(dict)
    for (system, sample), given in ratings.items():
        sheet[system][sample] = statistics.fmean(given.values())
    return dict(sheet)


def _score(path: Path, line: int, text: str) -> float:
    try:
        score = float(text)
    except (TypeError, ValueError):
        score = math.nan
    if not LOWEST <= score <= HIGHEST:
        raise BadManifest(f"{path}, line {line}: score {text!r}, expected a number from {LOWEST:g} to {HIGHEST:g}")
    return score


def opinion(sheet: Sheet, system: str, level: float = 0.95) -> Opinion:
    """Mean ± SE of a system; the interval is infinite for one sample. Raises BadArgument at an unknown system."""
    x = np.array(list(_of(sheet, system).values()))
    if len(x) < 2:
        return Opinion(float(x.mean()), math.nan, -math.inf, math.inf, len(x))
    error = float(x.std(ddof=1) / math.sqrt(len(x)))
    half = float(stats.t.ppf(0.5 + level / 2, len(x) - 1)) * error
    return Opinion(float(x.mean()), error, float(x.mean()) - half, float(x.mean()) + half, len(x))


def compare(sheet: Sheet, system: str, reference: str, level: float = 0.95) -> Difference:
    """The paired difference. Raises BadArgument: an unknown system, fewer than two common samples."""
    a, b = _of(sheet, system), _of(sheet, reference)
    common = sorted(set(a) & set(b))
    if len(common) < 2:
        raise BadArgument(
            f"{system} and {reference} have {len(common)} samples in common; a paired test needs at least 2"
        )
    x, y = np.array([a[s] for s in common]), np.array([b[s] for s in common])
    mean = float((x - y).mean())
    if np.ptp(x - y) == 0:  # no scatter: t is 0/0 or infinite
        return Difference(mean, mean, mean, math.copysign(math.inf, mean) if mean else 0.0, float(mean == 0), len(x))
    found = stats.ttest_rel(x, y)
    low, high = found.confidence_interval(level)
    return Difference(mean, float(low), float(high), float(found.statistic), float(found.pvalue), len(x))


def table(sheet: Sheet, reference: str | None = None) -> str:
    """Markdown: every system's mean ± SE, and its difference from the reference (default: the first system)."""
    reference = reference or next(iter(sheet))
    _of(sheet, reference)
    lines = ["| system | MOS | samples | difference | 95% interval | p |", "|---|---|---|---|---|---|"]
    for system in sheet:
        o = opinion(sheet, system)
        cells = [system, str(o), str(o.samples), "", "", ""]
        if system != reference:
            d = compare(sheet, system, reference)
            cells[3:] = [f"{d.mean:+.2f}", f"[{d.low:+.2f}, {d.high:+.2f}]", f"{d.p:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _of(sheet: Sheet, system: str) -> dict[str, float]:
    if system not in sheet:
        raise BadArgument(f"no ratings of {system!r}; there are some of {', '.join(sheet)}")
    return sheet[system]
