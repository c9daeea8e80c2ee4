"""Pictures on paper: what matplotlib holds is what the picture says, and nothing runs over its edge."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from simulated_study import study

from intruscope.plots.study import study_pictures
from intruscope.plots.study_draw import DASHES, legend_names, picture_figure
from intruscope.plots.study_layout import layout
from intruscope.plots.study_picture import Axis, Line, LineStyle, MapPanel, Panel, Picture, Point, mean_point
from intruscope.plots.style import MARKERS, SERIES, picture_style
from intruscope.studies.judge import study_rows

NAMES = {"intruders": "the edit", "uniform": "whole update shrunk", "matched_change": "same change"}


def points(*places):
    return tuple(Point(x=x, y=y, low=y - 0.5, high=y + 1, tooltip="told") for x, y in places)


def panel(*lines, **options):
    return Panel(**{"title": "t", "x": Axis(title="along"), "y": Axis(title="up"), "lines": lines, **options})


def figure_of(*panels, columns=1, kind="rates"):
    with picture_style():
        figure = picture_figure(Picture(kind=kind, panels=panels, columns=columns))
        figure.draw_without_rendering()
    return figure


def marks(axes):
    """Places, colour, mark and inside of every line with marks, last drawn first."""
    return [
        (
            list(zip(*each.get_data(), strict=True)),
            each.get_color(),
            each.get_marker(),
            each.get_markerfacecolor(),
        )
        for each in reversed(axes.lines)
        if each.get_marker() not in ("None", None)
    ]


@pytest.mark.parametrize("kind", ["mean", "band", "marks", "course"])
def test_marks_stand_where_the_points_are_in_the_looks_that_were_asked_for(kind):
    first = Line(name="a", look=LineStyle(1, 2, 3), kind=kind, points=points((1, 2), (3, 5)))
    second = Line(name="b", look=LineStyle(4, 0, 0, is_hollow=True), kind=kind, points=points((2, 1)))
    (axes,) = figure_of(panel(first, second)).axes
    (a, colour, mark, inside), (b, _, _, hollow) = marks(axes)
    assert (a, b) == ([(1, 2), (3, 5)], [(2, 1)])
    assert (colour, mark, inside, hollow) == (SERIES[1], MARKERS[2], SERIES[1], "white")
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["a", "b"]
    assert (axes.get_xlabel(), axes.texts[0].get_text(), axes.get_title(loc="left")) == ("along", "up", "t")


def test_whiskers_and_bands_reach_from_low_to_high():
    line = Line(name="a", look=LineStyle(0, 0), kind="mean", points=points((1, 2), (3, 5)))
    (axes,) = figure_of(panel(line)).axes
    (whiskers,) = axes.collections
    assert [segment.tolist() for segment in whiskers.get_segments()] == [
        [[1, 1.5], [1, 3]],
        [[3, 4.5], [3, 6]],
    ]
    band = Line(name="a", look=LineStyle(0, 0), kind="band", points=points((1, 2), (3, 5)))
    (axes,) = figure_of(panel(band)).axes
    corners = {tuple(each) for each in axes.collections[0].get_paths()[0].vertices.tolist()}
    assert corners == {(1, 1.5), (1, 3), (3, 4.5), (3, 6)}


def test_named_rows_have_their_reach_across_and_their_names_once():
    rows = Axis(title="", ticks=((0.0, "one"), (-1.0, "two")))
    lines = [
        Line(
            name=name,
            look=LineStyle(0, 0),
            kind="across",
            points=(Point(x=2, y=y, low=1, high=4, tooltip=""),),
        )
        for y, name in rows.ticks
    ]
    left, right = figure_of(panel(*lines, y=rows), panel(*lines, y=rows), columns=2, kind="alpha").axes
    assert [each.get_segments()[0].tolist() for each in left.collections] == [
        [[1, -1], [4, -1]],
        [[1, 0], [4, 0]],
    ]
    assert left.get_ylim()[0] < left.get_ylim()[1]
    assert [text.get_text() for text in left.get_yticklabels()] == ["one", "two"]
    assert not right.yaxis.get_tick_params()["labelleft"]
    assert left.figure.legends == []


def test_lines_are_shifted_by_shares_of_the_width_and_never_on_a_logarithmic_axis():
    line = Line(name="a", look=LineStyle(0, 0), kind="mean", points=points((1, 2), (5, 5)), shift=0.1)
    (axes,) = figure_of(panel(line)).axes
    assert marks(axes)[0][0] == [(1.4, 2), (5.4, 5)]
    (axes,) = figure_of(panel(line, x=Axis(title="along", is_log=True))).axes
    assert marks(axes)[0][0] == [(1, 2), (5, 5)]
    assert axes.get_xscale() == "log"


def test_a_map_has_base_vectors_down_and_tuned_ones_across():
    figure = figure_of(
        MapPanel(title="m", num_base=2, num_tuned=3, hundredths=(100, 0, 0, 0, 0, 50)), kind="similarity"
    )
    image = np.asarray(figure.axes[0].images[0].get_array())
    assert image.shape == (2, 3)
    assert image[0, 0] == 1.0
    assert image[1, 2] == pytest.approx(0.5, abs=0.005)
    assert image[1, 0] == 0.0


def test_what_chance_makes_is_drawn_above_all_and_can_be_seen_through():
    chance = Line(
        name="by chance", look=LineStyle(None, 0, 1, is_hollow=True), kind="marks", points=points((1, 1))
    )
    line = Line(name="a", look=LineStyle(0, 0), kind="mean", points=points((1, 1)))
    (axes,) = figure_of(panel(line, chance)).axes
    assert [inside for *_, inside in marks(axes)] == ["none", SERIES[0]]


def test_zero_and_threshold_are_lines_of_their_own():
    line = Line(name="a", look=LineStyle(0, 0), kind="mean", points=points((1, 2)))
    (axes,) = figure_of(panel(line, has_zero=True, threshold=0.5)).axes
    assert [each.get_ydata()[0] for each in axes.lines if each.get_xdata()[0] == 0] == [0, 0.5]


def test_a_lone_name_needs_no_legend_unless_it_is_of_chance():
    line = Line(name="a", look=LineStyle(0, 0), kind="mean", points=points((1, 2)))
    assert legend_names(Picture(kind="rates", panels=(panel(line),), columns=1)) == []
    chance = Line(name="by chance", look=LineStyle(None, 0), kind="marks", points=points((1, 2)))
    across = Line(name="r", look=LineStyle(0, 0), kind="across", points=points((1, 2)))
    assert legend_names(Picture(kind="alpha", panels=(panel(across, chance),), columns=1)) == ["by chance"]


def test_a_mean_says_how_many_runs_it_is_of():
    point = mean_point(3.0, [1.0, 2.0, 6.0], "what", unit="%")
    assert (point.y, point.low, point.high) == (3.0, 1.0, 6.0)
    assert point.tooltip == "what\n3% (1 to 6), 3 runs"
    assert mean_point(3.0, [-2.0], "what").tooltip == "what\n−2, one run"


def test_every_dash_is_another():
    assert len(set(DASHES)) == len(DASHES) == len(SERIES) == len(MARKERS)


@pytest.fixture(scope="module")
def pictures():
    return study_pictures(study_rows("mini", study(seeds=(0,))), NAMES)


def test_no_two_panels_share_a_place_and_all_lie_on_the_paper(pictures):
    for picture in pictures:
        found = layout(picture, legend_names(picture))
        for left, bottom, width, height in found.boxes:
            assert left > 0
            assert bottom > 0.4
            assert left + width < found.width
            assert bottom + height < found.height - 0.2
        for (a, b, w, h), (c, d, e, f) in itertools.combinations(found.boxes, 2):
            assert a + w <= c or c + e <= a or b + h <= d or d + f <= b
        assert found.width < 13
        assert found.height < 14


def test_no_text_runs_over_the_edge_or_into_the_next_panel(pictures):
    """The two with the most words; drawing all takes a minute."""
    for name in ("epsilon", "equal-fit"):
        (picture,) = [each for each in pictures if each.name == name]
        with picture_style():
            figure = picture_figure(picture)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
        renderer = canvas.get_renderer()
        edge = figure.bbox
        boxes = [axes.xaxis.label.get_window_extent(renderer) for axes in figure.axes]
        boxes += [axes.get_tightbbox(renderer) for axes in figure.axes]
        boxes += [each.get_window_extent(renderer) for each in figure.legends]
        for box in boxes:
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= edge.x1
            assert box.y1 <= edge.y1
        labels = boxes[: len(figure.axes)]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(labels, 2))


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
@pytest.mark.parametrize("num_names", [4, 5, 6])
def test_a_legend_stays_on_the_paper_however_few_panels_there_are(columns, num_names):
    """A study that is not whole has fewer tasks, and as many names."""
    names = [f"neighbour number {place} turned down"[: 17 + 4 * place] for place in range(num_names)]
    lines = [
        Line(name=name, look=LineStyle(place, place, place), kind="mean", points=points((1, place)))
        for place, name in enumerate(names)
    ]
    figure = figure_of(*[panel(*lines)] * columns, columns=columns)
    (legend,) = figure.legends
    canvas = FigureCanvasAgg(figure)
    found = legend.get_window_extent(canvas.get_renderer())
    assert [text.get_text() for text in legend.get_texts()] == names
    assert found.x0 >= 0
    assert found.x1 <= figure.bbox.x1
