"""The matrix's page: what its tables say, by hand, and that it stands alone."""

import json
import re

import pytest

from abd_jax.report import write_matrix_page
from abd_jax.report.matrix import Entry, heat_map, read_entries, worth
from abd_jax.report.rows import Row


def row(method, trigger, defense, seed, acc, asr, role="student"):
    return Row("p", "digits", method, trigger, seed, role, defense, acc, asr, 1 - asr, 60.0)


ROWS = [
    row("zskt", "badnet_sq", "none", 0, 0.99, 1.0, "teacher"),
    row("zskt", "badnet_sq", "none", 0, 0.9, 0.8),
    row("zskt", "badnet_sq", "none", 1, 0.8, 0.6),
    row("zskt", "badnet_sq", "abd", 0, 0.85, 0.1),
    row("zskt", "badnet_sq", "abd", 1, 0.81, 0.04),
    row("cmi", "badnet_sq", "none", 0, 0.7, 0.0),
    row("cmi", "badnet_sq", "abd", 0, 0.7, 0.03),
    row("cmi", "badnet_sq", "sv", 7, 0.7, 0.5),  # its undefended counterpart is not done
    row("zskt", "badnet_sq", "clean_kd", 0, 0.95, 0.05),
]


def entry(row, state="done", **more):
    name = f"{row.role}-{row.method}-{row.defense}-{row.seed}"
    return Entry(
        name, row.role, row.method, row.trigger, row.defense, row.seed, state, **({"error": None, "log": None} | more)
    )


def entries():
    failed = entry(row("cmi", "badnet_sq", "sr", 0, 0, 0), "failed", error="ValueError: <b>NaN</b>", log="logs/x.log")
    return [*map(entry, ROWS), failed]


def test_the_worth_of_a_defense_is_told_by_pairs():
    (together,) = [one for one in worth(ROWS) if one.defense == "abd"]
    assert (together.pairs, together.raised, together.highest) == (3, 1, 0.1)
    assert together.asr_before == pytest.approx(1.4 / 3) and together.asr == pytest.approx(0.17 / 3)
    assert together.cut == pytest.approx(1 - 0.17 / 1.4) and together.cost == pytest.approx(0.04 / 3)
    assert {one.defense for one in worth(ROWS)} == {"abd"}
    by_method = {one.method: one for one in worth(ROWS, by_method=True)}
    assert by_method["zskt"].raised == 0 and by_method["cmi"].cut is None and by_method["cmi"].raised == 1


def test_the_heat_map_has_every_cell():
    heat = heat_map("asr", ROWS, entries())
    assert heat.triggers == ["badnet_sq"] and heat.defenses == ["none", "abd", "sv", "sr"]
    table = dict(heat.rows)
    assert list(table) == ["zskt", "cmi", "teacher", "clean KD"]
    assert [cell.statistic and cell.statistic.percent() for cell in table["zskt"]] == [
        "70.0 ± 14.1",
        "7.0 ± 4.2",
        None,
        None,
    ]
    assert table["cmi"][3].failed == 1 and table["cmi"][3].statistic is None
    assert table["teacher"][0].statistic.mean == 1.0 and table["clean KD"][0].statistic.mean == 0.05


@pytest.fixture
def directory(tmp_path):
    from dataclasses import asdict

    (tmp_path / "grid.json").write_text(json.dumps([asdict(one) for one in entries()]))
    (tmp_path / "results.json").write_text(json.dumps([asdict(one) for one in ROWS]))
    (tmp_path / "config.json").write_text(json.dumps({"command": "python -m experiments matrix digits", "device": "a"}))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "x.log").write_text("first\nTraceback </pre>\n")
    return tmp_path


def test_the_page_stands_alone_and_escapes_what_it_shows(directory):
    page = write_matrix_page(directory).read_text()
    assert "&lt;b&gt;NaN&lt;/b&gt;" in page and "<b>NaN" not in page and "Traceback &lt;/pre&gt;" in page
    assert "9 of 10 done" in page and "70.0" in page and "python -m experiments matrix digits" in page
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert page.count('class="sortable results"') == 2 and page.count('class="heatmap') == 2


def test_a_log_outside_of_the_directory_is_not_shown(directory):
    secret = directory.parent / "secret.log"
    secret.write_text("secret words")
    cells = json.loads((directory / "grid.json").read_text())
    cells[-1]["log"] = "../secret.log"
    (directory / "grid.json").write_text(json.dumps(cells))
    assert "secret words" not in write_matrix_page(directory).read_text()


@pytest.mark.parametrize("content", ["{", "{}", '[{"name": "a"}]', "[3]"])
def test_a_malformed_grid_is_one_clear_line(directory, content):
    (directory / "grid.json").write_text(content)
    with pytest.raises(ValueError, match=r"grid\.json: "):
        read_entries(directory)


def test_an_empty_matrix_has_a_page(directory):
    for name in ("grid.json", "results.json"):
        (directory / name).write_text("[]")
    assert "No cell is done yet" in write_matrix_page(directory).read_text()
