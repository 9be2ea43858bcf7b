"""The benchmark that recipes are decided by, and its hand-written sets."""

import importlib
import sys

import pytest

from fgtune.core.project import project_root
from fgtune.data.examples import first_query, label
from fgtune.data.readers.examples import load_examples
from fgtune.data.readers.tools import load_tools


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # it puts the project's root in the first place
    return importlib.import_module("benchmarks.examples")


def read(name, split):
    folder = project_root() / "benchmarks" / "sets" / name
    tools, findings = load_tools(folder / "tools.json")
    rows, more = load_examples(folder / f"{split}.json", tools)
    return rows, [finding for finding in findings + more if finding.level in ("error", "warning")]


@pytest.mark.parametrize("name", ["heating", "pantry", "workshop"])
def test_the_sets_are_sound_and_share_no_sentence(name):
    (train, wrong), (test, more) = read(name, "train"), read(name, "test")
    assert not wrong and not more
    sentences = [first_query(row).casefold() for row in train + test]
    assert len(set(sentences)) == len(sentences) == len(train) + 133


def test_a_larger_sample_holds_the_smaller_and_each_label_has_its_share(benchmark):
    rows, _ = read("workshop", "train")
    small, large = (benchmark.sample(rows, count, seed=3) for count in (5, 10))
    assert {row["id"] for row in small} < {row["id"] for row in large}
    labels = {label(row) for row in rows}
    assert all(sum(label(row) == each for row in small) == 5 for each in labels)
    assert benchmark.sample(rows, 5, seed=4) != small and benchmark.sample(rows, None, seed=3) == rows


@pytest.mark.parametrize("name", ["everyday", "office"])
def test_the_shipped_sets_are_read_with_the_tools_that_they_call(benchmark, name):
    data = benchmark.load_set(name, "report", None)
    assert len(data.pool) > 900 and len(data.cases) > 200


def test_cases_that_choose_are_not_those_that_report(benchmark):
    parts = [{row["id"] for row in benchmark.load_set("pantry", part, None).cases} for part in ("choose", "report")]
    assert not parts[0] & parts[1] and sum(map(len, parts)) == 133


def test_a_fit_is_kept_under_all_that_it_is_made_of(benchmark, tmp_path):
    def path(recipe, seed=1):
        settings = tuple(sorted(benchmark.settings_of(recipe).items()))
        return benchmark.Fit("pantry", 10, seed, recipe, settings, "choose", 0, "tiny").path(tmp_path)

    assert len({path("slow"), path("before"), path("slow:augment=2"), path("slow", seed=2)}) == 4
    assert benchmark.settings_of("slow:augment=2")["augment"] == 2
    with pytest.raises(SystemExit, match="no recipe 'fast'"):
        benchmark.settings_of("fast")


def test_mcnemar_counts_what_only_one_gets_right(benchmark):
    fit = lambda right: {"results": [{"id": i, "exact": i in right} for i in "abcdefgh"]}
    assert benchmark.mcnemar([fit("abc")], [fit("bcdefgh")]) == (1, 5, pytest.approx(14 / 64))
    assert benchmark.mcnemar([fit("ab"), fit("a")], [fit("ab"), fit("a")]) == (0, 0, 1.0)
