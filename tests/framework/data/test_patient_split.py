"""The assignment of patients to splits."""

from collections import Counter

from framework.data.patient_split import split_of

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


def test_shares_hold_over_many_patients_and_the_seed_changes_the_assignment():
    patients = [f"p{n}" for n in range(10_000)]
    found = [split_of(patient, SHARES, 0) for patient in patients]
    counts = Counter(found)
    assert all(abs(counts[name] - 10_000 * share) < 200 for name, share in SHARES.items())
    assert found != [split_of(patient, SHARES, 1) for patient in patients]


def test_the_assignment_is_the_same_on_every_machine():
    assert [split_of(str(n), SHARES, 0) for n in range(8)] == [
        "train",
        "test",
        "train",
        "train",
        "train",
        "val",
        "train",
        "train",
    ]
