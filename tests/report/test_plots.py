"""The charts: what is drawn is what was given, stays inside its box, and is well-formed whatever the labels."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_trl.report.plots import (
    Line,
    _moving_mean,
    _thinned,
    histogram,
    interval_plot,
    line_chart,
    range_plot,
    ticks,
)


settings.register_profile("tuna", deadline=None, max_examples=50)
settings.load_profile("tuna")


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 6))
def test_ticks_are_few_evenly_spaced_and_inside(low, width, count):
    some = ticks(low, low + width, count)
    assert 1 <= len(some) <= 3 * count
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in some)
    assert np.allclose(np.diff(some), np.diff(some)[:1], rtol=1e-3)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(-1e9, 1e9) | st.just(math.nan), max_size=60))
def test_a_histogram_counts_every_finite_value_once(values):
    svg = histogram(values, label="h", x_label="x")
    finite = [v for v in values if math.isfinite(v)]
    assert sum(int(n) for n in re.findall(r": (\d+)</title>", svg)) == len(finite)
    assert bool(svg) == bool(finite)


def test_few_distinct_values_have_a_bar_each():
    svg = histogram([1, 1, 2, 4, 4, 4], label="h", x_label="x")
    assert re.findall(r": (\d+)</title>", svg) == ["2", "1", "3"]


@given(st.lists(st.tuples(st.integers(0, 99), st.floats(-1e3, 1e3)), min_size=1, max_size=120))
def test_a_moving_mean_is_that_of_a_loop(points):
    half = max(1, len(points) // 20)
    for i, (x, y) in enumerate(_moving_mean(points)):
        around = [v for _, v in points[max(0, i - half) : i + half + 1]]
        assert x == points[i][0]
        assert y == pytest.approx(sum(around) / len(around), abs=1e-6)


def test_a_long_line_keeps_its_mean_when_it_is_thinned():
    points = [(float(i), math.sin(i)) for i in range(40_000)]
    thin = _thinned(points)
    assert len(thin) == 400
    assert np.mean([y for _, y in thin]) == pytest.approx(np.mean([y for _, y in points]), abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 9), st.floats()), max_size=50))
def test_every_coordinate_drawn_is_a_finite_number_inside_the_box(points):
    svg = line_chart([Line("a", [(float(x), y) for x, y in points if abs(y) < 1e12 or y != y])], label="l")
    for path in re.findall(r' d="([^"]*)"', svg):
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", path)]
        assert all(-1 <= n <= 341 for n in numbers)
    assert "nan" not in svg and "inf" not in svg


def test_an_interval_that_holds_the_reference_is_pale():
    svg = interval_plot([("a", 0.1, -0.1, 0.3), ("b", 0.2, 0.1, 0.3)], label="i", reference=0.0)
    assert svg.count('"interval pale"') == 1 and svg.count('"interval"') == 1


def test_a_range_plot_names_the_median_and_the_number():
    svg = range_plot([("rank 1", [1, 2, 3, 10]), ("rank 2", [])], label="r", x_label="tokens")
    assert "rank 1: median 2.5, n = 4" in svg and "rank 2" not in svg


def test_labels_are_escaped():
    name = '<b>&"'
    svgs = [
        histogram([1.0], label=name, x_label=name),
        interval_plot([(name, 1, 0, 2)], label=name),
        range_plot([(name, [1])], label=name, x_label=name),
        line_chart([Line(name, [(0, 0)])], label=name, x_label=name),
    ]
    for svg in svgs:
        assert not [element for element in ElementTree.fromstring(svg).iter() if element.tag == "b"]
