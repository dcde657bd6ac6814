"""The page stands alone, shows what the scores say, and lets nothing of the data run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from fog_a.scores.scores import Scores
from fog_a.scores.tables import Table
from fog_a.shell.report import picture, report

MEANS = np.array([0.17, 0.02, 0.09, 0.03])


def make(kind: str = "contribution", n: int = 20, timed: bool = True, **fields: Any) -> Scores:
    values = np.random.default_rng(0).gamma(25.0, MEANS / 25.0, size=(2 * n, 2 if timed else 1, 4))
    layers = tuple(f"blocks.{i}" for i in range(4))
    times = (0.25, 0.75) if timed else None
    return Scores(values, layers, times=times, domains=("speech", "sound") * n, kind=kind, **fields)


class Page(HTMLParser):
    """Checks that tags nest, and collects what a test asks for."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_page_asks_for_nothing_and_runs_nothing() -> None:
    html = report([make(), make("storage")], title="t")
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        assert (attrs.get("src") or "data:").startswith("data:image/png;base64,") or "src" not in attrs
        assert "href" not in attrs
    assert not re.findall(r"url\(|@import|https?:", html)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert "prefers-color-scheme: dark" in html


def test_words_and_tables_say_the_scores() -> None:
    scores = make(info={"seed": 7, "notes": ["2 blocks of text left out"], "versions": {"torch": "2.13.0"}})
    text = Page(report(scores, k=2)).text
    mean, interval = scores.mean("speech"), scores.interval(domain="speech")
    assert f"Without L1 the velocity changes by {mean[0]:.1%} of its norm" in text
    assert f"{mean[2]:.4f}" in text and f"{interval[2, 0]:.4f} … {interval[2, 1]:.4f}" in text
    assert "is the top 2 in 100% of bootstrap resamples" in text
    assert "2 blocks of text left out" in text and "torch version 2.13.0" in text and "seed 7" in text


def test_pictures_have_alternative_text() -> None:
    page = Page(report(make()))
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 2 and all(attrs["alt"] and attrs["width"] for attrs in images)
    assert len([1 for tag, _ in Page(report(make(timed=False))).tags if tag == "img"]) == 1


def test_storage_and_contribution_together() -> None:
    both = Page(report([make(), make("storage")])).text
    assert "Where it is stored, and where it acts" in both
    other = Scores(make().values, ("a", "b", "c", "d"), times=(0.25, 0.75), domains=make().domains, kind="storage")
    assert "Where it is stored" not in Page(report([make(), other])).text


def test_few_samples_and_missing_layers_are_said() -> None:
    values = np.array(make(n=5).values)
    values[..., 1] = np.nan
    text = Page(report(Scores(values, make().layers, times=(0.25, 0.75)))).text
    assert "10 samples: intervals cannot promise their level below 16" in text
    assert "20 of 80 values are missing" in text and "missing" in text and "nan" not in text.lower().split()


def test_everything_given_is_escaped() -> None:
    evil = '<script>alert(1)</script>"onerror="x'
    values = np.random.default_rng(0).random((20, 1, 2))
    scores = Scores(values, (evil, "b"), domains=(evil,) * 20, info={"seed": evil, "notes": [evil]})
    png = report_png()
    html = report(scores, [(evil, png)], [Table(evil, (evil,), [(evil,)])], title=evil, lead=evil, facts={evil: evil})
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert html.count("&lt;script&gt;") > 10


def report_png() -> bytes:
    import io

    from fog_a.scores.canvas import panels

    buffer = io.BytesIO()
    panels(1, 1)[0].savefig(buffer, format="png")
    return buffer.getvalue()


def test_further_pictures_and_tables(tmp_path: Path) -> None:
    png = report_png()
    (tmp_path / "a.png").write_bytes(png)
    tables = [Table("Selections", ("domain", "λ", "n"), [("speech", -0.25, 3), ("sound", None, 4)])]
    page = Page(report((), [("from bytes", png), ("from a file", tmp_path / "a.png")], tables, facts={"steps": 600}))
    assert sum(tag == "img" for tag, _ in page.tags) == 2
    assert "steps 600" in page.text and "−0.25" in page.text and "–" in page.text
    assert sum(attrs.get("class") == "number" for tag, attrs in page.tags if tag == "td") == 4
    with pytest.raises(ValueError, match="the picture 'x' is no PNG"):
        picture(b"GIF89a", "x")
