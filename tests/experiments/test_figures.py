"""The figure of docs/results.md, from made-up runs."""

import pytest

pytest.importorskip("matplotlib")

RUNS = {
    "plain": (0.7075, 0.7038), "plain, width 0.18": (0.6870, 0.6888), "copying FS-SF": (0.7122, 0.7038),
    "KernelDNA FS-SF": (0.7119,), "deeper, FF-FF-FF": (0.72, 0.73), "copying FS-SF, widened": (0.72, 0.72),
}  # fmt: skip


@pytest.fixture
def drawn(script, monkeypatch):
    """Return a function that runs the script, and gives the networks and words it drew."""
    figures = script("figures")
    seen = {}

    def watch(networks, **words):
        seen.update(networks=networks, **words)
        return figures_drawn(networks, **words)

    figures_drawn = figures.size_curve
    monkeypatch.setattr(figures, "size_curve", watch)

    def run(*options):
        monkeypatch.setattr("sys.argv", ["figures.py", "equal_size", *map(str, options)])
        figures.main()
        return seen

    return run


def test_equal_size_is_drawn_from_its_runs(drawn, make, tmp_path):
    folder = make("equal_size", "short", RUNS)
    seen = drawn("--size", "short", "--results", folder, "--out", tmp_path / "img")
    assert (tmp_path / "img" / "equal_size.png").read_bytes().startswith(b"\x89PNG")
    assert [(each.series, each.label, len(each.accuracies)) for each in seen["networks"]] == [
        ("plain", "plain", 2),
        ("plain", "width 0.18", 2),
        ("copying", "FS-SF", 2),
        ("KernelDNA", "FS-SF", 1),
        ("deeper", "FF-FF-FF", 2),
        ("copying", "FS-SF, widened", 2),
    ]
    assert seen["networks"][0].accuracies == pytest.approx(RUNS["plain"])
    assert seen["curve"] == "plain"
    assert seen["title"] == "ResNet18 of width 0.25 on CIFAR-10, 16 px, 6 epochs"


def test_the_title_names_the_width_of_the_study(drawn, make, tmp_path):
    folder = make("equal_size", "full", {"plain, width 0.72": (0.9,)}, dataset="cifar100")
    seen = drawn("--size", "full", "--dataset", "cifar100", "--results", folder, "--out", tmp_path)
    assert seen["title"] == "ResNet18 on CIFAR-100, 32 px, 25 epochs"


def test_without_runs_it_says_how_to_make_some(drawn, tmp_path):
    with pytest.raises(
        SystemExit, match="make some with: python experiments/studies.py equal_size:cifar100 --size full"
    ):
        drawn("--size", "full", "--dataset", "cifar100", "--results", tmp_path, "--out", tmp_path)
