"""A dataset as one web page that needs no network: findings, plan, sizes, intensities, classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from training.data.raw.formats.geometry import spacing_text
from training.data.raw.layouts import RawDataset
from training.data.statistics.findings import KINDS
from training.data.statistics.measures import PERCENTILES, CaseMeasures
from training.data.statistics.typical import CaseRank
from tuner.report.data_pictures import class_colour
from tuner.report.data_plots import Spread, Strip, spread_plot, strip_plot
from tuner.report.numbers import number_of
from tuner.report.tables import html_table

if TYPE_CHECKING:
    from training.data.statistics.check import DataCheck

STYLE = """
:root { color-scheme: light dark; --text: #1e293b; --muted: #64748b; --line: #e2e8f0;
        --page: #ffffff; --card: #f8fafc; --accent: #0e7490; --error: #b91c1c; --warn: #b45309 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e2e8f0; --muted: #94a3b8; --line: #334155; --page: #0f172a; --card: #1e293b;
          --accent: #22d3ee; --error: #f87171; --warn: #fbbf24 } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem;
       padding: 0 1rem; color: var(--text); background: var(--page) }
h1, h2, h3 { font-weight: 600; line-height: 1.25 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem }
p.note, figcaption, .way { color: var(--muted) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top; white-space: nowrap }
td.sentence { min-width: 22rem; white-space: normal }
.scroll { overflow-x: auto }
svg { width: 100%; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: var(--muted) }
svg .grid { stroke: var(--line) }
svg .dot { fill: var(--accent); fill-opacity: .55 }
svg .median, svg .whisker { stroke: var(--text) }
svg .whisker { stroke-opacity: .5 }
svg .box { stroke: var(--accent) }
svg .middle { fill: var(--text) }
.figures { display: flex; gap: 2.5rem; flex-wrap: wrap }
.figures b { display: block; font-size: 1.6rem }
.error { color: var(--error) } .warning { color: var(--warn) }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); gap: 1rem }
figure { margin: 0; padding: .75rem; background: var(--card); border-radius: .5rem }
figure div { display: flex; gap: .4rem; align-items: center; flex-wrap: wrap }
figure img { background: #000; display: block; max-width: 32% }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: .2em }
@media (max-width: 34rem) { .cases { grid-template-columns: 1fr } }
"""

SHOWN_FINDINGS = 20
"""Findings of a kind that are listed on the page."""


def data_page(
    check: DataCheck,
    plan: Sequence[tuple[str, str]],
    ranks: Sequence[CaseRank],
    pictures: Mapping[str, Sequence[str]],
    *,
    typical: Sequence[str],
) -> str:
    """The page of a dataset.

    Args:
        check: What the check of the data found.
        plan: What a study would make of them, each with its name; empty without a usable case.
        ranks: Its cases, the most typical first.
        pictures: Thumbnails of some cases, as addresses of images.
        typical: Which of those are typical; the others are outlying.
    """
    name = check.dataset.name if check.dataset else check.folder.name
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escape(name)}: data report</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(name)}</h1>",
        _figures(check),
        *_findings(check),
    ]
    dataset = check.dataset
    if dataset is not None and check.cases:
        parts += _plan(plan)
        parts += _pictures(check, dataset, ranks, pictures, typical)
        parts += _sizes(check.cases)
        parts += _intensities(dataset, check.cases)
        parts += _classes(dataset, check.cases)
        parts += _outliers(ranks)
        parts += _all_cases(dataset, check.cases)
    parts.append("</body></html>")
    return "\n".join(part for part in parts if part)


def _figures(check: DataCheck) -> str:
    dataset = check.dataset
    figures = [("errors", str(len(check.errors))), ("warnings", str(len(check.warnings)))]
    if dataset is not None:
        figures = [
            ("cases", str(len(dataset.cases))),
            ("channels", ", ".join(dataset.channels)),
            ("classes", str(len(dataset.labels) - 1)),
            *figures,
        ]
    shown = "".join(f"<div>{escape(title)}<b>{escape(value)}</b></div>" for title, value in figures)
    return f"<p class='note'>{escape(str(check.folder))}</p><div class='figures'>{shown}</div>"


def _findings(check: DataCheck) -> list[str]:
    if not check.findings:
        return ["<h2>Findings</h2><p>Nothing is wrong or doubtful.</p>"]
    parts = ["<h2>Findings</h2>"]
    for kind_name, members in groupby(check.findings, key=lambda finding: finding.kind):
        kind, found = KINDS[kind_name], list(members)
        listed = "".join(f"<li>{escape(each.message)}</li>" for each in found[:SHOWN_FINDINGS])
        more = len(found) - SHOWN_FINDINGS
        parts.append(
            f"<details{' open' if kind.severity == 'error' else ''}>"
            f"<summary><b class='{kind.severity}'>{kind.severity}</b>: {escape(kind.title)} "
            f"({len(found)})</summary><ul>{listed}"
            f"{f'<li>... and {more} more: `tune data check --all`</li>' if more > 0 else ''}</ul>"
            f"<p class='way'>{escape(kind.way_out)}</p></details>"
        )
    return parts


def _plan(plan: Sequence[tuple[str, str]]) -> list[str]:
    if not plan:
        return []
    return [
        "<h2>Plan</h2>",
        "<p class='note'>What a study would make of the data, as nnU-Net plans it, for a GPU of "
        "8 GB and nnU-Net's U-Net: depth, height and width are superior, anterior and right. "
        "Volumes are cropped to the body first, which may make it a little smaller.</p>",
        html_table(["", "value"], plan),
    ]


def _pictures(
    check: DataCheck,
    dataset: RawDataset,
    ranks: Sequence[CaseRank],
    pictures: Mapping[str, Sequence[str]],
    typical: Sequence[str],
) -> list[str]:
    if not pictures:
        return []
    by_name = {rank.case.case_id: rank for rank in ranks}
    legend = " &ensp; ".join(
        f"<span class='swatch' style='background:{class_colour(value)}'></span> {escape(name)}"
        for value, name in enumerate(dataset.labels[1:], start=1)
    )
    parts = [
        "<h2>Cases</h2>",
        f"<p>{legend}</p>",
        "<p class='note'>Planes through the largest part of the label: axial, coronal, sagittal, "
        "with the patient's right on the left. A CT is shown around its labelled intensities, "
        "everything else from its own lowest to its highest.</p>",
    ]
    for title, names in (
        ("Typical", [name for name in pictures if name in typical]),
        ("Outlying", [name for name in pictures if name not in typical]),
    ):
        if names:
            figures = "".join(
                _figure(
                    by_name[name],
                    pictures[name],
                    [KINDS[each.kind].title for each in check.findings if each.case == name],
                )
                for name in names
            )
            parts.append(f"<h3>{title}</h3><div class='cases'>{figures}</div>")
    return parts


def _figure(rank: CaseRank, images: Sequence[str], findings: Sequence[str]) -> str:
    name = escape(rank.case.case_id)
    shown = "".join(f"<img alt='{name}' src='{image}'>" for image in images)
    why = [*rank.reasons[:3], *dict.fromkeys(findings)]
    reasons = f": {escape('; '.join(why))}" if why else ""
    return f"<figure><div>{shown}</div><figcaption><b>{name}</b>{reasons}</figcaption></figure>"


def _sizes(cases: Sequence[CaseMeasures]) -> list[str]:
    names = [case.case_id for case in cases]
    axes = ("superior", "anterior", "right")
    shapes = [
        Strip(axis, [case.grid.shape[index] for case in cases], names)
        for index, axis in enumerate(axes)
    ]
    spacings = [
        Strip(axis, [case.grid.spacing[index] for case in cases], names)
        for index, axis in enumerate(axes)
    ]
    extents = [
        Strip(axis, [case.grid.extent[index] for case in cases], names)
        for index, axis in enumerate(axes)
    ]
    orders = Counter(case.grid.axes for case in cases).most_common()
    listed = ", ".join(f"{axes} ({count})" for axes, count in orders)
    return [
        "<h2>Sizes and spacings</h2>",
        "<p class='note'>A dot is a case: its name shows under the pointer. A line is the "
        f"median.</p><h3>Voxels</h3>{strip_plot(shapes, 'voxels')}",
        f"<h3>Spacing</h3>{strip_plot(spacings, 'mm')}",
        f"<h3>Extent</h3>{strip_plot(extents, 'mm')}",
        f"<p>Axes of the files: {escape(listed)}.</p>",
    ]


def _intensities(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> list[str]:
    measured = [case for case in cases if case.channels]
    if not measured:
        return []
    low, first, median, third, high = (PERCENTILES.index(each) for each in (0.5, 25, 50, 75, 99.5))
    parts = [
        "<h2>Intensities</h2>",
        "<p class='note'>Of the labelled voxels of each case: percentiles 0.5 to 99.5, thick "
        "between the quartiles, with a dot at the median.</p>",
    ]
    for index, channel in enumerate(dataset.channels):
        spreads = [
            Spread(case.case_id, (f[low], f[first], f[median], f[third], f[high]))
            for case in measured
            if (f := case.channels[index].foreground) is not None
        ]
        rows = []
        for value, name in enumerate(dataset.labels):
            medians = [
                known
                for case in measured
                if (known := case.channels[index].classes[value]) is not None
            ]
            if medians:
                rows.append([name, *(f"{each:.4g}" for each in _range_of(medians))])
        parts += [
            f"<h3>{escape(channel)}</h3>",
            spread_plot(spreads),
            html_table(["median of", "lowest case", "median case", "highest case"], rows),
        ]
    return parts


def _classes(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> list[str]:
    labelled = [case for case in cases if case.classes]
    if not labelled:
        return []
    strips, rows = [], []
    foreground = max(sum(case.foreground for case in labelled), 1)
    for value, name in enumerate(dataset.labels[1:], start=1):
        having = [case for case in labelled if case.classes[value].voxels]
        volumes = [case.classes[value].volume for case in having]
        names = [case.case_id for case in having]
        strips.append(Strip(name, volumes, names, class_colour(value)))
        share = sum(case.classes[value].voxels for case in having) / foreground
        cells = [name, f"{len(having)} of {len(labelled)}", f"{share:.2%}"]
        if having:
            components = [case.classes[value].components for case in having]
            cells += [f"{each:.4g}" for each in _range_of(volumes)]
            cells += [f"{each:.3g}" for each in _range_of(components)[1:]]
        rows.append([*cells, *[""] * (8 - len(cells))])
    columns = ["class", "cases", "share of the foreground", "lowest ml", "median ml", "highest ml"]
    patterns = Counter(
        ", ".join(
            name
            for name, measured in zip(dataset.labels[1:], case.classes[1:], strict=True)
            if measured.voxels
        )
        or "none"
        for case in labelled
    ).most_common(20)
    return [
        "<h2>Classes</h2>",
        strip_plot(strips, "ml", logarithmic=True),
        html_table([*columns, "median components", "most components"], rows),
        "<h3>Which classes come together</h3>",
        html_table(["classes", "cases"], [[text, str(count)] for text, count in patterns]),
    ]


def _outliers(ranks: Sequence[CaseRank]) -> list[str]:
    unusual = [rank for rank in reversed(ranks) if rank.reasons]
    if not unusual:
        return ["<h2>Outliers</h2><p>No case is far from the others in what is compared.</p>"]
    rows = [[rank.case.case_id, "; ".join(rank.reasons)] for rank in unusual[:50]]
    return [
        "<h2>Outliers</h2>",
        f"<p class='note'>{number_of(len(unusual), 'case')} more than 3.5 robust standard "
        "deviations from the median in one measure or more, the most unusual first.</p>",
        html_table(["case", "what is unusual"], rows),
    ]


def _all_cases(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> list[str]:
    columns = ["case", "voxels", "spacing (mm)", "axes"]
    for name in dataset.labels[1:]:
        columns += [f"{name} (ml)", "components"]
    rows = []
    for case in cases:
        cells = [
            case.case_id,
            _size(case.grid.shape),
            spacing_text([round(step, 3) for step in case.grid.spacing]),
            case.grid.axes,
        ]
        for measured in case.classes[1:]:
            cells += [f"{measured.volume:.4g}", str(measured.components)]
        rows.append(cells)
    return [f"<details><summary>All cases</summary>{html_table(columns, rows)}</details>"]


def _range_of(values: Sequence[float]) -> tuple[float, float, float]:
    """Lowest, median and highest."""
    return min(values), float(np.median(values)), max(values)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
