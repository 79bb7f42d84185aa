import pytest
from rich.console import Console

from hatllm.plan.forecast_table import RunPlan, Seconds, cost_table, experiment_table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (Seconds(0.0, 0.0, 0.0), "0 s"),
        (Seconds(80.0, 86.44, 97.2), "86.4 s (80.0–97.2)"),
        (Seconds(240.0, 300.0, 390.0), "5.0 min (4.0–6.5)"),
        (Seconds(7200.0, 9000.0, 10800.0), "2.5 h (2.0–3.0)"),
        (Seconds.exactly(3.0), "3.0 s"),
    ],
)
def test_a_time_is_written_in_one_unit_with_its_range(seconds: Seconds, text: str) -> None:
    assert str(seconds) == text


def test_an_experiment_adds_up_what_is_left_to_run() -> None:
    plans = [
        RunPlan("done", 1, "finished"),
        RunPlan("small", 1, "to run", num_steps=10, peak_memory_mb=900.0,
                seconds={"prepare": Seconds.exactly(1.0), "train": Seconds(20.0, 30.0, 50.0),
                         "evaluate": Seconds(4.0, 5.0, 6.0)}),
        RunPlan("large", 1, "resumes at step 5", num_steps=1500, peak_memory_mb=1000.0,
                seconds={"train": Seconds.exactly(40.0), "validate": Seconds.exactly(2.0)}),
    ]  # fmt: skip
    table = experiment_table("trio", plans)
    assert [list(column.cells)[-1] for column in table.columns] == [
        "[bold]2 to run", "", "", "1,510", "70.0 s (60.0–90.0)", "7.0 s (6.0–8.0)",
        "78.0 s (67.0–99.0)",
    ]  # fmt: skip
    assert next(iter(table.columns[6].cells)) == "0 s"
    assert "largest cell: 1,000 MB" in str(table.caption)


def test_cells_of_several_data_sets_are_told_apart() -> None:
    plans = [RunPlan("msl", 1, "to run", data) for data in ("msl_toys", "msl_books")]
    table = experiment_table("pair", plans)
    assert [column.header for column in table.columns][:2] == ["data", "cell"]
    assert list(table.columns[0].cells) == ["msl_toys", "msl_books", "[bold]2 to run"]
    assert experiment_table("one", plans[:1]).columns[0].header == "cell"


def test_a_finished_run_shows_its_status_and_no_counts() -> None:
    console = Console(width=60)
    with console.capture() as said:
        console.print(cost_table(RunPlan("causal", 1, "finished")))
    assert "finished" in said.get()
    assert "optimizer steps" not in said.get()
