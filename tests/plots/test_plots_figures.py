"""Pictures: valid files with the right numbers in them, the same every time, whole or absent."""

import random
import re
import warnings
from collections import Counter
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
import report_cases as cases
from matplotlib.text import Text
from PIL import Image

from intruscope.errors import OutputConflict, ResourceExhausted
from intruscope.plots import draw, figures
from intruscope.plots.figures import write_plots
from intruscope.plots.style import drawable, picture_style

NAMES = ("heat-map", "epsilon-curve", "alignment", "effective-rank", "similarity")
HOSTILE = "$\\frac{1}{0}$ <b>&\x00\u202e模型"


@pytest.fixture(scope="module")
def report():
    return cases.scan(41, layers=2, kinds={"q": "q_proj", "up": "up_proj"}, maps=5, null=True)


@pytest.fixture(scope="module")
def folder(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots") / "new"
    write_plots([(HOSTILE, report)], folder)
    return folder


def texts(path):
    """All texts of an SVG, in order."""
    root = ElementTree.parse(path).getroot()
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def styled(function, *arguments):
    with picture_style():
        return function(*arguments)


def test_every_picture_is_there_as_png_and_svg(folder):
    assert {path.name for path in folder.iterdir()} == {f"{n}.{s}" for n in NAMES for s in ("png", "svg")}
    for name in NAMES:
        with Image.open(folder / f"{name}.png") as image:
            image.verify()
            assert min(image.size) >= 300, name
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o644"}


def test_pictures_are_not_blank(folder):
    for name in NAMES:
        with Image.open(folder / f"{name}.png") as image:
            assert len(set(image.convert("L").resize((200, 100)).tobytes())) > 20, name


def test_the_heat_map_writes_each_count_in_its_place(report):
    figure = styled(draw.heat_map_figure, [("a", report)])
    axes = figure.axes[0]
    kinds, layers = ["q", "up"], [0, 1]
    assert [label.get_text() for label in axes.get_yticklabels()] == kinds
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1"]
    wanted = {(m.kind, m.layer): m.sides[0].num_intruders for m in report.matrices}
    written = {
        (kinds[round(text.get_position()[1])], layers[round(text.get_position()[0])]): int(text.get_text())
        for text in axes.texts
    }
    assert written == wanted
    (cells,) = axes.collections
    coloured = cells.get_array().filled(-1).reshape(2, 2)
    assert {(k, n): coloured[i][j] for i, k in enumerate(kinds) for j, n in enumerate(layers)} == wanted
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first kind on top
    total = sum(wanted.values())
    assert f"{total} of 40 leading left vectors are intruders" in axes.get_title(loc="left")


def test_a_cell_without_a_matrix_is_not_a_zero():
    settings = cases.scan().settings
    lone = cases.matrix(random.Random(1), "x", "down", 5, intruders=3, settings=settings)
    report = cases.scan(41, layers=2, kinds={"q": "q_proj"}, extra=(lone,))
    axes = styled(draw.heat_map_figure, [("a", report)]).axes[0]
    assert len(axes.texts) == 3
    assert int(axes.collections[0].get_array().mask.sum()) == 3


def test_numbers_of_the_heat_map_are_in_the_svg(folder, report):
    told = Counter(texts(folder / "heat-map.svg"))
    counts = Counter(str(m.sides[0].num_intruders) for m in report.matrices)
    assert not counts - told


def test_the_curve_shows_shares_for_every_k(report):
    axes = styled(draw.curve_figure, [("a", report)]).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines() if line.get_label().startswith("top")}
    assert list(lines) == ["top 1", "top 2", "top 5", "top 10"]
    for label, line in lines.items():
        cut = int(label[4:])
        for epsilon, share in zip(line.get_xdata(), line.get_ydata(), strict=True):
            found = sum(
                c.num_intruders
                for m in report.matrices
                for c in m.sides[0].grid
                if (c.epsilon, c.k) == (epsilon, cut)
            )
            assert share == pytest.approx(100 * found / (4 * cut))


def test_chance_stands_at_its_threshold(report):
    axes = styled(draw.curve_figure, [("a", report)]).axes[0]
    (bar,) = axes.containers
    chance = report.totals.chance
    (place,), (mean,) = bar.lines[0].get_xdata(), bar.lines[0].get_ydata()
    assert (place, mean) == (0.5, pytest.approx(100 * chance.expected / 40))
    ((low, high),) = [[y for _, y in segment] for segment in bar.lines[2][0].get_segments()]
    assert [low, high] == pytest.approx([100 * chance.low / 40, 100 * chance.high / 40])
    without = cases.scan(41, layers=1)
    assert not styled(draw.curve_figure, [("a", without)]).axes[0].containers


def test_the_vectors_stand_between_their_bounds(report):
    axes = styled(draw.alignment_figure, [("a", report)]).axes[0]
    segments = [segment for lines in axes.collections for segment in lines.get_segments()]
    drawn = sorted((x, low, high) for (x, low), (_, high) in segments)
    for index, name in ((1, "alignment_lower"), (2, "alignment_upper")):
        wanted = [value for m in report.matrices for value in getattr(m.sides[0], name)]
        assert [mark[index] for mark in drawn] == pytest.approx(wanted)
    verdicts = Counter(v for m in report.matrices for v in m.sides[0].verdicts)
    labels = {text.get_text() for text in axes.get_legend().get_texts()}
    assert labels == {f"{verdict} ({count})" for verdict, count in verdicts.items()}


def test_effective_ranks_with_their_intervals(report):
    figure = styled(draw.effective_rank_figure, [("a", report)])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["q", "up"]
    for axes, kind in zip(figure.axes, ("q", "up"), strict=True):
        (bar,) = axes.containers
        ranks = {m.layer: m.update.effective_rank for m in report.matrices if m.kind == kind}
        line = bar.lines[0]
        assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == pytest.approx(
            {layer: rank.value for layer, rank in ranks.items()}
        )
        ends = [[y for _, y in segment] for segment in bar.lines[2][0].get_segments()]
        for (low, high), rank in zip(ends, ranks.values(), strict=True):
            assert [low, high] == pytest.approx([rank.low, rank.high])


def test_similarity_has_base_down_and_tuned_across():
    report = cases.scan(42, layers=1, maps=5)
    figure = styled(draw.similarity_figure, "a", report)
    most = sorted(report.matrices, key=lambda m: -m.sides[0].num_intruders)
    for axes, matrix in zip(figure.axes, most, strict=False):
        assert axes.get_title(loc="left") == matrix.name
        (image,) = axes.get_images()
        levels = matrix.sides[0].similarity.levels
        assert [[round(255 * x) for x in row] for row in image.get_array()] == [
            list(levels[5 * row : 5 * row + 5]) for row in range(5)
        ]
        assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first base vector on top


def test_many_maps_are_cut_and_said():
    report = cases.scan(42, layers=3, maps=2)
    figure = styled(draw.similarity_figure, "a", report)
    assert len([axes for axes in figure.axes if axes.get_images()]) == draw.MAX_MAPS
    assert figure.get_suptitle() == "a: the 12 of 21 with most intruders"


def test_several_scans_share_their_pictures():
    first = cases.scan(42, layers=1, kinds={"q": "q_proj"}, maps=3)
    other = cases.scan(43, layers=1, kinds={"q": "q_proj"}, rate=0)
    with picture_style():
        drawn = dict(figures._figures([("first one", first), ("second one", other)]))
    assert list(drawn) == ["heat-map", "epsilon-curve", "alignment", "effective-rank", "similarity-1"]
    for name in ("heat-map", "epsilon-curve", "alignment", "effective-rank"):
        told = " ".join(text.get_text() for text in drawn[name].findobj(Text))
        assert told.index("first one") < told.index("second one"), name


def test_the_same_records_give_the_same_bytes(report, folder, tmp_path):
    write_plots([(HOSTILE, report)], tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_names_are_text_and_never_markup(folder):
    told = " ".join(texts(folder / "heat-map.svg"))
    assert "$\\frac{1}{0}$ <b>&\\x00\\u202e" in told
    assert "<b>" not in (folder / "heat-map.svg").read_text()


def test_what_the_font_lacks_is_escaped():
    assert drawable("模型 é") == "\\u6a21\\u578b é"
    assert drawable("a" * 50 + "b" * 50, limit=21) == "a" * 10 + "…" + "b" * 10


def test_nothing_measured_gives_an_empty_folder(tmp_path):
    assert write_plots([("a", cases.scan(layers=0, extra=(cases.refused(),)))], tmp_path / "p") == ()
    assert list((tmp_path / "p").iterdir()) == []


def test_global_settings_stay(report, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "_figures", lambda reports: [("curve", draw.curve_figure(reports))])
    before = dict(mpl.rcParams)
    assert write_plots([("a", report)], tmp_path / "p") == ("curve.png", "curve.svg")
    assert dict(mpl.rcParams) == before


FILES = {f"{name}.png": name.encode() for name in "abcdef"}


def test_a_folder_in_use_keeps_what_is_foreign(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "b.png").write_bytes(b"old")
    figures._publish(FILES, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {**FILES, "mine.txt": b"mine"}


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_nothing_new(tmp_path, monkeypatch, exists):
    folder = tmp_path / "p"
    if exists:
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
    calls = []

    def full(path, writer):
        calls.append(path)
        if len(calls) == 4:
            raise ResourceExhausted("no room", remedy="free some space")
        write(path, writer)

    write = figures.write_atomically
    monkeypatch.setattr(figures, "write_atomically", full)
    with pytest.raises(ResourceExhausted):
        figures._publish(FILES, folder)
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert sorted(left) == (["p", "p/mine.txt"] if exists else [])


def test_a_place_that_cannot_be_is_a_conflict(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "no" / "where", tmp_path / "file" / "under", tmp_path / "file"):
        with pytest.raises(OutputConflict, match="could not be made"):
            figures._publish(FILES, folder)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_text() == "x"


def test_a_large_scan_is_drawn_without_a_warning():
    report = cases.scan(44, layers=64, side="both")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = styled(draw.heat_map_figure, [("x" * 500, report)])
        styled(figure.draw_without_rendering)
    assert not figure.axes[0].texts  # too many cells for numbers
    assert all(re.fullmatch(r"\d+", label.get_text()) for label in figure.axes[0].get_xticklabels())
