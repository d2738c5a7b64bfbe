import json

import pytest

from tools.pages.readme_tables import ROOT, documents, draw_tables
from tools.result_files import markdown_table

RESULT = {
    "title": "A title.",
    "command": "python tools/something.py",
    "date": "2026-01-01",
    "hardware": "a machine",
    "versions": {"torch": "2.11.0"},
    "columns": ["method", "seconds"],
    "rows": [{"method": "one", "seconds": "1.0"}, {"method": "another", "seconds": "2.0"}],
    "notes": "Medians.",
}
MARKED = "before\n<!-- table: results/some.json -->\nold\n<!-- end -->\nafter\n"


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_documents_show_what_the_result_files_say(document):
    text = document.read_text(encoding="utf-8")
    assert draw_tables(text, ROOT) == text, "run python tools/pages/readme_tables.py"


def test_table_is_drawn_between_its_marks_with_its_origin(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/some.json").write_text(json.dumps(RESULT))
    drawn = draw_tables(MARKED, tmp_path)
    assert drawn.startswith("before\n<!-- table: results/some.json -->\nA title.\n")
    assert drawn.endswith("<!-- end -->\nafter\n")
    for expected in (
        "| another | 2.0     |",
        "Medians.",
        "torch 2.11.0",
        "a machine",
        "2026-01-01",
    ):
        assert expected in drawn
    assert "old" not in drawn
    assert draw_tables(drawn, tmp_path) == drawn


def test_missing_result_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"some\.json"):
        draw_tables(MARKED, tmp_path)


def choose(tmp_path, choice):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/some.json").write_text(json.dumps(RESULT))
    return draw_tables(MARKED.replace("some.json -->", f"some.json {choice} -->"), tmp_path)


def test_a_mark_may_choose_rows_and_columns(tmp_path):
    drawn = choose(tmp_path, 'rows="another" columns="seconds; method"')
    assert "| seconds | method  |\n| ------- | ------- |\n| 2.0     | another |\n" in drawn
    assert "one" not in drawn
    assert "Medians." not in drawn  # the notes are of the whole table
    assert "python tools/something.py" in drawn
    assert draw_tables(drawn, tmp_path) == drawn


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ('rows="one; two"', "'two' is no row of some.json, which has one; another"),
        ('columns="method; minutes"', "'minutes' is no column of some.json, which has method; se"),
        ("rows=one", "1 marks of tables, 0 understood"),
    ],
)
def test_a_wrong_choice_is_an_error(tmp_path, choice, message):
    with pytest.raises(ValueError, match=message):
        choose(tmp_path, choice)


def test_columns_are_aligned():
    assert markdown_table(["a", "bcd"], [{"a": "1234", "bcd": "5"}]) == (
        "| a    | bcd |\n| ---- | --- |\n| 1234 | 5   |"
    )
