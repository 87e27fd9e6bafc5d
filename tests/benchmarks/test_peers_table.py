import pytest

from benchmarks.peers_table import peers_summary, peers_table, stage_names
from tests.benchmarks.samples import peers_report


def rows(table: str, name: str) -> list[list[str]]:
    """The cells of a contender's rows, one list for each table."""
    lines = [line for line in table.splitlines() if line.startswith(f"| `{name}`")]
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines]


def test_every_contender_has_its_row() -> None:
    table = peers_table(peers_report())
    for name in ("diffusers", "ours", "cheat", "gone"):
        assert rows(table, name)
    assert stage_names(peers_report()) == ["cold_start", "unet_b2", "vae_decode"]


def test_times_are_medians_and_what_was_not_measured_is_a_dash() -> None:
    table = peers_table(peers_report())
    assert rows(table, "ours")[0] == ["3,000", "150", "300"]
    assert rows(table, "gone")[0] == ["-", "-", "-"]


def test_ratios_are_taken_round_by_round() -> None:
    table = rows(peers_table(peers_report()), "ours")
    assert table[1] == ["1.00", "0.50 (0.50 to 0.50)", "0.50 (0.50 to 0.50)"]
    assert len(rows(peers_table(peers_report()), "diffusers")) == 2  # none to itself


def test_of_a_few_rounds_the_smallest_and_the_largest_ratio_are_shown() -> None:
    report = peers_report()
    for name, times in (("diffusers", [300.0, 300.0]), ("ours", [150.0, 180.0])):
        report["contenders"][name]["samples_ms"]["unet_b2"] = times
    for name in ("diffusers", "ours"):
        report["contenders"][name]["samples_ms"]["vae_decode"] = [600.0]
    table = rows(peers_table(report), "ours")
    assert table[1][1:] == ["0.55 [0.50 to 0.60]", "1.00"]


def test_the_summary_begins_with_the_fastest_and_ends_with_what_was_not_measured() -> None:
    large = peers_report()
    for name, ms in (("diffusers", 168_000.0), ("ours", 106_000.0)):
        large["contenders"][name]["samples_ms"]["end_to_end_20"] = [ms]
    summary = peers_summary(large, peers_report())
    names = [line.split("`")[1] for line in summary.splitlines() if line.startswith("| `")]
    assert names[:2] == ["ours", "diffusers"]
    assert rows(summary, "ours")[0] == ["0.15", "106", "3", "1,234", "225"]
    assert rows(summary, "gone")[0] == ["-"] * 5


def test_a_note_says_what_a_rows_figures_mean() -> None:
    report = peers_report()
    report["contenders"]["ours"]["note"] = "makes fewer steps"
    assert "- `ours`: makes fewer steps" in peers_table(report)
    assert "- `diffusers`:" not in peers_table(report)


def test_memory_disk_and_sameness_are_shown() -> None:
    table = peers_table(peers_report())
    assert rows(table, "ours")[-1] == [
        "fp32",
        "1,234",
        "30",
        "225",
        "1.0e-06",
        "1.5e-05",
        "61.2",
        "none",
    ]
    assert rows(table, "diffusers")[-1][-3:] == ["0.0e+00", "identical", "none"]
    assert rows(table, "cheat")[-1][-1] == "fewer steps"
    assert rows(table, "gone")[-1] == ["-"] * 8


@pytest.mark.parametrize(
    ("complete", "rounds"), [(True, "8 rounds on"), (False, "8 rounds (stopped")]
)
def test_the_setting_stands_above(complete: bool, rounds: str) -> None:
    setting = peers_table(peers_report() | {"complete": complete}).splitlines()[0]
    assert "Workload `toy`: 16 x 24 pixels, guidance 3;" in setting
    assert rounds in setting
    assert setting.endswith("2 cores of toy, commit 012345678.")


def test_reasons_stand_below() -> None:
    table = peers_table(peers_report())
    assert "- `ours` has no load: graphs load when they are needed" in table
    assert "- `cheat` is failed: ended with 139" in table
    assert "- `gone` is unavailable: no wheel" in table


def test_a_run_without_the_reference_has_no_ratios() -> None:
    report = peers_report()
    del report["contenders"]["diffusers"]
    assert rows(peers_table(report), "ours")[1] == ["-", "-", "-"]
