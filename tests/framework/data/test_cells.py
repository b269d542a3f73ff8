"""Missing values, numbers and ids in cells."""

import pytest

from framework.data.cells import id_of, text_of


@pytest.mark.parametrize(
    "value", [None, float("nan"), "", "  ", "NaN", "nan", "NULL", "None", "NA", "N/A", "#N/A", "<NA>", " n/a "]
)
def test_what_pandas_sql_and_excel_write_for_nothing_is_missing(value):
    assert text_of(value) is None and id_of(value) is None


@pytest.mark.parametrize(
    "value, expected",
    [
        ("17.0", "17"),
        (17.0, "17"),
        (17, "17"),
        ("0017", "0017"),
        ("17.5", "17.5"),
        (" P-3 ", "P-3"),
        ("1.2.840", "1.2.840"),
    ],
)
def test_a_whole_number_loses_its_point_and_other_ids_stay_as_written(value, expected):
    assert id_of(value) == expected


@pytest.mark.parametrize("value", ["1.23457E+12", "1,23457E+12", "5E12", 2.0**60])
def test_an_id_that_a_program_rounded_is_refused(value):
    with pytest.raises(ValueError, match="rounded"):
        id_of(value)


def test_a_report_is_kept_as_written_but_for_spaces_around_it():
    assert text_of(" 17.0 mm, None seen. ") == "17.0 mm, None seen."
