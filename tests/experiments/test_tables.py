"""The tables of docs/results.md: what stands in them follows from made-up runs."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SIZES = ("short", "medium", "full")


@pytest.fixture(scope="module")
def scripts(script):
    return script("studies"), script("study_results"), script("tables")


def lines_of(scripts, study, size, folder):
    _, _, tables = scripts
    page = tables.written(f"before\n<!-- {study}:{size} -->\nold\n<!-- end -->\nafter\n", folder)
    start, *lines, end, after = page.splitlines()[1:]
    assert (start, end, after) == (f"<!-- {study}:{size} -->", "<!-- end -->", "after")
    return lines


@pytest.mark.parametrize("size", SIZES)
def test_a_table_has_means_and_differences_seed_by_seed(scripts, make, size):
    stats = pytest.importorskip("scipy.stats", reason="needs kerneldna[train]: scipy")
    plain, narrow, copied = (0.7075, 0.7038, 0.7100), (0.6870, 0.6888, 0.6990), (0.7122, 0.7038, 0.7065)
    narrowed = "plain, width 0.72" if size == "full" else "plain, width 0.18"
    runs = {"plain": plain, narrowed: narrow, "copying FS-SF": copied}
    lines = lines_of(scripts, "equal_size", size, make("equal_size", size, runs))

    def spread(values):
        return f"{100 * mean(values):.2f} ± {100 * stdev(values):.2f}"

    def difference(values, others):
        result = stats.ttest_rel([100 * v for v in values], [100 * o for o in others])
        low, high = result.confidence_interval()
        return f"{100 * (mean(values) - mean(others)):+.2f} ({low:+.2f} to {high:+.2f})"

    assert lines == [
        "|  | parameters | M MACs | CIFAR-10, % (3 seeds) | difference (95 %) |",
        "| --- | ---: | ---: | ---: | ---: |",
        f"| plain | 1,234 | 35.0 | {spread(plain)} |  |",
        f"| {narrowed} | 1,235 | 35.0 | {spread(narrow)} | {difference(narrow, plain)} to plain |",
        f"| copying FS-SF | 1,236 | 35.0 | {spread(copied)} "
        f"| {difference(copied, plain)} to plain<br>{difference(copied, narrow)} to {narrowed} |",
        "",
        "9 of 12 rows not run.",
    ]


def test_only_seeds_of_both_make_a_difference(scripts, make):
    runs = {"none": (0.50, 0.52, 0.51), "channel": (0.51, 0.54), "spatial": (0.53,), "filter": (0.51, 0.53)}
    lines = lines_of(scripts, "table5", "cpu", make("table5", "cpu", runs))
    assert lines[0].startswith("|  | parameters | M MACs | CIFAR-10, % (seeds) | difference to none (95 %) |")
    assert lines[2] == "| none | 1,234 | 35.0 | 51.00 ± 1.00 (3) |  | 69.85 |"
    assert lines[3] == "| channel | 1,235 | 35.0 | 52.50 ± 2.12 (2) | +1.50 (-4.85 to +7.85) | 71.82 |"
    assert lines[4] == "| spatial | 1,236 | 35.0 | 53.00 (1) | - | 70.90 |"
    assert lines[5] == "| filter | 1,237 | 35.0 | 52.00 ± 1.41 (2) | +1.00 (-) | 70.29 |"  # equal by chance


def test_a_reference_that_is_not_run_gives_no_difference(scripts, make):
    lines = lines_of(
        scripts, "equal_size", "short", make("equal_size", "short", {"copying FS-SF": (0.7, 0.71)})
    )
    assert lines[2] == "| copying FS-SF | 1,234 | 35.0 | 70.50 ± 0.71 | - |"
    assert lines[-1] == "11 of 12 rows not run."


def test_a_study_without_runs_says_so(scripts, tmp_path):
    assert lines_of(scripts, "adapter", "medium", tmp_path) == ["Not run yet (18 rows)."]


def test_another_data_set_has_a_table_of_its_own(scripts, make):
    _, _, tables = scripts
    folder = make("equal_size", "short", {"plain": (0.4, 0.42)}, dataset="cifar100")
    page = tables.written("<!-- equal_size:cifar100:short -->\n<!-- end -->\n", folder)
    assert "CIFAR-100, % (2 seeds)" in page
    assert "Not run yet" in tables.written("<!-- equal_size:short -->\n<!-- end -->\n", folder)


@pytest.mark.parametrize("study", [
    "equal_size", "bottleneck", "pointwise", "adapter", "table5", "table3", "peers", "larger", "table1", "table4", "modulation"
])  # fmt: skip
@pytest.mark.parametrize("size", SIZES)
def test_every_row_stands_against_rows_of_its_study(scripts, tmp_path, study, size):
    _, results, _ = scripts
    rows = results.read(study, size, tmp_path)
    alone = [row for row in rows if not results.references(row, rows)]
    assert [row.cell.label for row in alone] == [
        next(row.cell.label for row in rows if row.cell.backbone == backbone)
        for backbone in dict.fromkeys(row.cell.backbone for row in rows)
    ]


@pytest.mark.parametrize(("page", "message"), [
    ("<!-- equal_size:shrt -->\n<!-- end -->", "with a size of cpu, short, medium, full"),
    ("<!-- equal_size:mnist:short -->\n<!-- end -->", "a data set of cifar10, cifar100"),
    ("<!-- equal_sise:short -->\n<!-- end -->", "no study 'equal_sise'; known: equal_size"),
    ("<!-- equal_size:short -->\n\n<!-- table5:cpu -->\n<!-- end -->", "equal_size:short --> has no end; close it by"),
])  # fmt: skip
def test_a_place_that_cannot_be_filled(scripts, tmp_path, page, message):
    _, _, tables = scripts
    with pytest.raises(ValueError, match=message):
        tables.written(page, tmp_path)


@pytest.mark.parametrize(("study", "label", "expected"), [
    ("table1", "kernelwarehouse", 73.67), ("table3", "FS-SSF", 73.42), ("table4", "direct copying", 69.85),
    ("table5", "channel + filter", 71.98), ("table5", "none", 69.85), ("equal_size", "plain", None),
])  # fmt: skip
def test_each_row_has_the_figure_of_the_paper(scripts, study, label, expected):
    studies, results, _ = scripts
    cells = studies.cells(study, "full")
    for cell in cells:
        results.paper(study, cell)
    assert results.paper(study, next(cell for cell in cells if cell.label == label)) == expected


def test_the_page_of_results_is_as_its_runs_make_it(scripts):
    _, _, tables = scripts
    page = (EXPERIMENTS.parent / "docs/results.md").read_text(encoding="utf-8")
    assert tables.written(page, EXPERIMENTS / "results") == page
