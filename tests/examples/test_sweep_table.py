"""The table and the picture of a sweep."""

import csv
import re

import numpy as np
import pytest
from matplotlib.image import imread
from omegaconf import OmegaConf
from recipes import sweep
from recipes.sweep_chart import chart
from recipes.sweep_table import markdown, read_sweep, rich_table
from rich.console import Console
from sweep_helpers import grid, result, save_sweep

LEGEND = "Bright is good; no color scale is narrower than the noise, where it is known."
FAILURE = {"status": "failed", "error": "RuntimeError: boom", "seconds": 1.0}


def texts(figure):
    """All texts in a figure: ticks, cells and the title."""
    axes = figure.axes[0]
    ticks = [label.get_text() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    title, caption = axes.get_title(loc="left"), figure.get_suptitle().replace("\n", " ")
    return ticks, [text.get_text() for text in axes.texts], title, caption.removesuffix(f" {LEGEND}")


# -- the table -------------------------------------------------------------------------------------------------


def test_runs_are_in_order_of_numbers(tmp_path):
    save_sweep(tmp_path, [(f"experiment=digits +fair.alpha={a}", result(0.5)) for a in range(12)])
    swept = read_sweep(tmp_path)
    assert swept.runs["run"].tolist() == [str(index) for index in range(12)]
    assert (swept.keys, swept.seeds) == (["fair.alpha"], [])
    assert swept.table()["fair.alpha"].tolist() == [str(index) for index in range(12)]


def test_numbers_are_sorted_and_names_are_not(tmp_path):
    runs = [(f"a={a} fair={f}", result(0.5)) for a, f in (("1e-1", "off"), ("2e-3", "default"))]
    swept = read_sweep(save_sweep(tmp_path, runs))
    assert list(swept.runs["a"].cat.categories) == ["2e-3", "1e-1"]
    assert list(swept.runs["fair"].cat.categories) == ["off", "default"]


def test_seeds_are_averaged(tmp_path):
    swept = read_sweep(grid(tmp_path, seeds=(1, 2, 3)))
    assert (swept.keys, swept.seeds) == (["fair.alpha", "fair.min_prob"], ["seed"])
    table = swept.table()
    assert list(table.columns[:3]) == ["fair.alpha", "fair.min_prob", "balanced accuracy"]
    assert len(table) == 6
    # 0.51, 0.52, 0.53: the standard deviation of a sample of three, not of a population
    assert table.iloc[0, :3].tolist() == ["8", "1e-6", "0.520 ± 0.010"]
    assert table["runs"].tolist() == ["3"] * 6
    assert table.iloc[5, :3].tolist() == ["24", "1e-2", "0.640 ± 0.010"]
    assert "0.320 ± 0.005" in markdown(table)  # the worst class has half of it


def test_runs_without_result_are_marked(tmp_path):
    """A run may have failed, have been interrupted, or have left half a file."""
    failure = {**FAILURE, "error": "ValueError: alpha * lambda1 must be below 31; " + "x" * 200}
    outcomes = [result(0.8), failure, '{"status": "done", "metr', None, '{"status": "done"}', "[]"]
    swept = read_sweep(save_sweep(tmp_path, [(f"fair.alpha={a}", outcome) for a, outcome in enumerate(outcomes)]))
    unreadable = "unreadable"
    assert swept.runs["status"].tolist() == ["done", "failed", unreadable, "unfinished", unreadable, unreadable]
    table = swept.table()
    assert table["note"][0] == ""
    assert (table["balanced accuracy"][1], table["runs"][1]) == ("failed", "0 of 1")
    assert table["note"][1].startswith("failed: ValueError: alpha * lambda1")
    assert len(table["note"][1]) <= 60
    assert "interrupted" in table["note"][3]


def test_damaged_settings_are_survived(tmp_path):
    save_sweep(tmp_path, [("a=1", result(0.4)), ("a=2", result(0.5))])
    (tmp_path / "1" / ".hydra" / "overrides.yaml").write_text("- [a=")
    assert read_sweep(tmp_path).table()["a"].tolist() == ["1", "default"]


def test_failed_repeat_is_left_out_of_mean(tmp_path):
    runs = [("a=1 seed=1", result(0.4)), ("a=1 seed=2", FAILURE), ("a=1 seed=3", result(0.6)), ("a=2 seed=1", FAILURE)]
    table = read_sweep(save_sweep(tmp_path, runs)).table()
    assert table["balanced accuracy"].tolist() == ["0.500 ± 0.141", "failed"]
    assert table["runs"].tolist() == ["2 of 3", "0 of 1"]
    assert "boom" in table["note"][0]


def test_csv_has_every_run(tmp_path):
    """Settings, status, numbers, the recall of each class, and the whole error."""
    failure = {**FAILURE, "error": "ValueError: a, b | " + "x" * 100}
    lacking = {**result(0.5, accuracy=None), "recall": {"cat": 0.75, "dog": None}}
    save_sweep(tmp_path, [("a=1", result(0.75, many_shot_accuracy=0.8)), ("a=2", failure), ("a=3", lacking)])
    swept = sweep.summarize(tmp_path, metrics=["many_shot_accuracy"])
    with (tmp_path / "sweep.csv").open(newline="") as file:
        first, second, third = csv.DictReader(file)
    assert (first["run"], first["a"], first["status"], first["balanced_accuracy"]) == ("0", "1", "done", "0.75")
    assert (first["recall/dog"], first["worst_class_recall"], first["seconds"]) == ("0.75", "0.375", "1.0")
    assert (first["many_shot_accuracy"], third["many_shot_accuracy"]) == ("0.8", "")
    assert second["error"] == failure["error"]
    assert second["balanced_accuracy"] == third["accuracy"] == third["recall/dog"] == ""
    text = (tmp_path / "sweep.md").read_text()
    assert text.startswith(markdown(swept.table()))
    assert text.endswith(f"\n{swept.best()}\n\n{swept.verdict()}\n")
    assert "\\|" in text
    assert "| many-shot accuracy |" in text
    assert "few-shot" not in text


def test_narrow_terminal_has_fewer_columns(tmp_path):
    """The numbers stay whole."""
    numbers = {f"{shot}_shot_accuracy": 0.25 for shot in ("many", "medium", "few")}
    runs = [
        (f"fair.alpha={a} seed={s}", result(0.5 + s / 100, val_balanced_accuracy=0.5 + s / 100, **numbers))
        for a in "48"
        for s in (1, 2)
    ]
    swept = read_sweep(save_sweep(tmp_path, runs))
    columns = {}
    for width in (60, 80, 140):
        console = Console(width=width)
        with console.capture() as text:
            console.print(rich_table(swept, console))
        assert not re.search(r"[\d.]…", text.get())
        assert "0.515 ±" in text.get()
        columns[width] = len(text.get().splitlines()[1].split("┳"))
    assert columns[60] < columns[80] < columns[140]


@pytest.mark.parametrize("values", [("[a,b],[/c]", "[unk]"), ("$x_{$", "\\frac$^$")])
def test_settings_are_not_markup(tmp_path, capsys, monkeypatch, values):
    """Neither rich's markup nor mathematics."""
    monkeypatch.setenv("COLUMNS", "200")
    runs = [([f"fair.class_names={value}", f"b={b}"], v / 10) for v, value in enumerate(values) for b in ("x", "y")]
    save_sweep(tmp_path, [("", result(score)) for _, score in runs])
    for number, (overrides, _) in enumerate(runs):
        OmegaConf.save(OmegaConf.create(overrides), tmp_path / str(number) / ".hydra" / "overrides.yaml")
    sweep.summarize(tmp_path)
    table = capsys.readouterr().out
    assert all(f"│ {value} " in table for value in values)
    assert (tmp_path / "sweep.png").stat().st_size > 0


def test_files_exist_without_printed_table(tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no console")

    monkeypatch.setattr(sweep, "rich_table", fail)
    with pytest.raises(RuntimeError):
        sweep.summarize(grid(tmp_path))
    assert all((tmp_path / name).stat().st_size for name in ("sweep.csv", "sweep.md", "sweep.png"))


def test_best_is_chosen_by_validation(tmp_path):
    """By the test if a run has no validation; without a swept setting there is none."""
    validated = [(f"x={v}", result(v, val_balanced_accuracy=1 - v)) for v in (0.2, 0.6)]
    best = read_sweep(save_sweep(tmp_path / "a", validated)).best()
    assert best == "Best by balanced accuracy, validation: x=0.2, 0.800; on the test set 0.200"
    best = read_sweep(save_sweep(tmp_path / "b", [(f"x={v}", result(v)) for v in (0.2, 0.6)])).best()
    assert best == "Best by balanced accuracy, chosen on the test set, so the result is too good: x=0.6, 0.600"
    seeds = [("seed=1", result(0.5)), ("seed=2", result(0.6))]
    assert read_sweep(save_sweep(tmp_path / "c", seeds)).best() is None


def test_folder_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere"):
        read_sweep(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"is no sweep: no folder in it has \.hydra/overrides\.yaml"):
        read_sweep(tmp_path)
    save_sweep(tmp_path, [("a=1", result(0.5))])
    with pytest.raises(ValueError, match="is a single run, not a sweep"):
        read_sweep(tmp_path / "0")
    with pytest.raises(ValueError, match=r"metric must be one of balanced_accuracy, .*, got 'speed'"):
        sweep.summarize(tmp_path, metrics=["speed"])


def test_report_script(load, tmp_path, capsys):
    script = load("sweep_report")
    assert script.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("There is no folder")
    assert script.main([str(grid(tmp_path / "sweep")), "--out", str(tmp_path / "out")]) == 0
    assert "Sweep of 6 runs" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sweep.csv", "sweep.md", "sweep.png"]


# -- noise, ties, and the order of a search --------------------------------------------------------------------


def repeats(folder, spread):
    """Two settings with means 0.60 and 0.62, over three seeds that move both alike and one of them by ``spread``."""
    scores = {(x, s): 0.6 + 0.02 * x + 0.1 * s + spread * x * (s - 2) for x in (0, 1) for s in (1, 2, 3)}
    runs = [(f"x={x} seed={s}", result(score, val_balanced_accuracy=score)) for (x, s), score in scores.items()]
    return read_sweep(save_sweep(folder, runs))


def test_noise_is_that_of_repeats(tmp_path):
    """What a seed changes in all settings alike is none."""
    clear, noisy = repeats(tmp_path / "a", 0.001), repeats(tmp_path / "b", 0.05)
    for swept, spread in ((clear, 0.001), (noisy, 0.05)):
        # Two groups: Tukey's range is that of the paired t-test, 4.303 standard errors with two degrees of freedom.
        assert swept.noise("balanced_accuracy") == pytest.approx(4.303 * spread / np.sqrt(3), rel=1e-3)
    assert "Within" not in clear.verdict()
    assert "Level" not in clear.best()
    assert noisy.verdict().startswith("Within the noise: balanced accuracy (range 0.020, noise 0.124)")
    assert noisy.verdict().endswith("from seed as repeats. More seeds show smaller differences.")
    assert "x=1, 0.820 ± 0.150; on the test set 0.820 ± 0.150. Level with it: x=0" in noisy.best()


def test_noise_of_single_runs_is_binomial(tmp_path):
    """Other metrics have none, and the advice is to repeat."""
    runs = [(f"x={x}", {**result(0.8 + 0.03 * x), "errors": {"balanced_accuracy": 0.02}}) for x in (0, 1)]
    swept = read_sweep(save_sweep(tmp_path, runs))
    assert swept.noise("balanced_accuracy") == pytest.approx(0.02 * 1.96 * np.sqrt(2), rel=1e-3)
    assert np.isnan(swept.noise("largest_weight"))
    assert swept.verdict() == (
        "Within the noise: balanced accuracy (range 0.030, noise 0.055). The noise is Tukey's range at 5 %, from the "
        "binomial error of the test set. What another seed changes is not known: add seed=1,2,3."
    )
    panel, unknown = chart(swept, ["balanced_accuracy", "largest_weight"]).axes[:2]
    assert unknown.get_title(loc="left") == "largest weight\nnoise unknown"
    assert panel.get_title(loc="left") == "balanced accuracy, test\nwithin the noise"
    low, high = panel.images[0].get_clim()
    assert high - low == pytest.approx(swept.noise("balanced_accuracy"))
    assert (low + high) / 2 == pytest.approx(0.815)


def test_noise_of_the_validation(tmp_path):
    """Its source is named, and none if no run has an error."""
    for errors, source in (
        (
            {"balanced_accuracy": 0.02, "val_balanced_accuracy": 0.03},
            "of the test set and the binomial error of the val",
        ),
        ({}, None),
    ):
        runs = [(f"x={x}", {**result(x / 2, val_balanced_accuracy=x / 2), "errors": errors}) for x in (0, 1)]
        swept = read_sweep(save_sweep(tmp_path / str(len(errors)), runs))
        assert (source or "What another") in swept.verdict()
        assert ("binomial" in swept.verdict()) == bool(source)
        assert swept.noise_and_source("largest_weight")[1] == ""


def test_noise_without_common_seeds(tmp_path):
    """The binomial error of the means of two runs and of one."""
    runs = [(f"x={x} seed={s}", {**result(0.8), "errors": {"balanced_accuracy": 0.02}}) for x in (0, 1) for s in (1, 2)]
    swept = read_sweep(save_sweep(tmp_path, [*runs[:3], (runs[3][0], FAILURE)]))
    error = np.sqrt((0.02**2 / 2 + 0.02**2) / 2)
    assert swept.noise("balanced_accuracy") == pytest.approx(error * 1.96 * np.sqrt(2), rel=1e-3)
    assert swept.verdict().endswith(
        "from the binomial error of the test set. What another seed changes is not known: no two settings have two "
        "finished seeds in common."
    )


def test_ties_are_named(tmp_path):
    scores = {"a": 0.7, "b": 0.9, "c": 0.9}
    swept = read_sweep(
        save_sweep(tmp_path, [(f"x={x}", result(v, val_balanced_accuracy=v)) for x, v in scores.items()])
    )
    assert swept.best().endswith("x=b, 0.900; on the test set 0.900. Level with it: x=c")


def test_search_is_sorted_best_first(tmp_path):
    """By the validation, or by the test, which the title says; runs without a result are last."""
    for folder, metrics, title in (
        ("a", {"val_balanced_accuracy": 0.5}, "best first by balanced accuracy, validation"),
        ("b", {}, "best first by balanced accuracy, chosen on the test set"),
    ):
        scores = (0.2, None, 0.9, 0.6)
        runs = [(f"x={i}", result(v, **dict.fromkeys(metrics, v)) if v else FAILURE) for i, v in enumerate(scores)]
        (save_sweep(tmp_path / folder, runs) / "sweep.json").write_text('{"overrides": [], "search": true}')
        swept = read_sweep(tmp_path / folder)
        assert swept.table()["x"].tolist() == ["2", "3", "0", "1"]
        assert rich_table(swept, Console()).title.endswith(title)


# -- the picture -----------------------------------------------------------------------------------------------


def test_heat_map_has_number_in_each_cell(tmp_path):
    ticks, cells, title, caption = texts(chart(read_sweep(grid(tmp_path))))
    assert ticks == ["8", "24", "1e-6", "1e-3", "1e-2"]
    assert cells == ["0.510", "0.610", "0.520", "0.620", "0.530", "0.630"]
    assert (title, caption) == ("balanced accuracy, test\nnoise unknown", "One run each.")


def test_heat_map_over_seeds(tmp_path):
    _, cells, title, caption = texts(chart(read_sweep(grid(tmp_path, seeds=(1, 2))), ["worst_class_recall"]))
    assert "0.258\n± 0.004" in cells
    assert (title, caption) == ("worst-class recall, test\n", "Mean ± standard deviation over seed (1, 2).")


def test_heat_map_marks_failures(tmp_path):
    runs = [("a=1 b=x", result(0.1)), ("a=1 b=y", result(0.9)), ("a=2 b=x", FAILURE)]
    figure = chart(read_sweep(save_sweep(tmp_path, runs)))
    _, cells, _, caption = texts(figure)
    assert cells == ["0.100", "failed", "0.900", ""]  # no run with a=2, b=y
    assert "1 of 3 runs have no result." in caption
    # Dark cells have white text.
    assert [text.get_color() for text in figure.axes[0].texts] == ["white", "black", "black", "black"]


def test_third_setting_is_averaged(tmp_path):
    runs = [
        (f"a={a} b={b} c={c}", result(0.1 + 0.2 * a + 0.1 * b + 0.001 * c))
        for a in (0, 1)
        for b in (0, 1)
        for c in (0, 1)
    ]
    _, cells, _, caption = texts(chart(read_sweep(save_sweep(tmp_path, runs))))
    assert "0.101\n± 0.001" in cells
    assert caption == "Mean ± standard deviation over c (0, 1)."


def test_search_without_grid_is_scatter_plot(tmp_path):
    rng = np.random.default_rng(0)
    drawn = [(10 ** rng.uniform(-6, -2), rng.uniform(1, 5)) for _ in range(9)]
    figure = chart(read_sweep(save_sweep(tmp_path, [(f"m={m} a={a}", result(0.1 + a / 10)) for m, a in drawn])))
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert np.allclose(axes.collections[0].get_offsets(), drawn)


def test_one_setting_or_none_is_one_row(tmp_path):
    runs = [(f"fair={f} seed={s}", result(v + s / 100)) for f, v in (("off", 0.5), ("default", 0.7)) for s in (1, 2, 3)]
    ticks, cells, _, caption = texts(chart(read_sweep(save_sweep(tmp_path / "a", runs))))
    assert ticks == ["off", "default", ""]
    assert cells == ["0.520\n± 0.010", "0.720\n± 0.010"]
    assert "over seed (1, 2, 3)" in caption
    seeds = [(f"seed={s}", result(s / 10)) for s in (1, 2)]
    ticks, cells, _, _ = texts(chart(read_sweep(save_sweep(tmp_path / "b", seeds))))
    assert (ticks, cells) == (["0", "1", ""], ["0.100", "0.200"])


def test_no_result_no_picture(tmp_path, capsys):
    """A picture of an earlier sweep is removed."""
    (save_sweep(tmp_path, [("a=1", None), ("a=2", None)]) / "sweep.png").write_bytes(b"old")
    sweep.summarize(tmp_path)
    assert not (tmp_path / "sweep.png").exists()
    printed = capsys.readouterr().out
    assert "unfinished: run 1" in printed
    assert "Sweep of" not in printed


@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_picture_is_reproducible(tmp_path, seeds):
    """Nothing is cut off at its edges."""
    grid(tmp_path / "sweep", seeds)
    for name in ("a", "b"):
        sweep.summarize(tmp_path / "sweep", tmp_path / name)
    assert (tmp_path / "a" / "sweep.png").read_bytes() == (tmp_path / "b" / "sweep.png").read_bytes()
    picture = imread(tmp_path / "a" / "sweep.png")
    edges = [picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]]
    assert all((edge[..., :3] == 1.0).all() for edge in edges)
