"""task=plan: what the composed run or experiment will cost, before it is launched.

Rows, tokens and steps are counted; time and memory come from a calibration of seconds on real
batches, in this process, and are extrapolated by the counted tokens. Nothing is written but what
preparing data and weights leaves in the cache.
"""

from rich.console import Console

from hatllm.compose import Compose
from hatllm.config import Config
from hatllm.many.experiment_cells import chosen_cells, plan_cells
from hatllm.plan.forecast_table import RunPlan, cost_table, experiment_table, split_table
from hatllm.runs.cell import Cell


def plan(config: Config, compose: Compose) -> list[RunPlan]:
    """Print the predicted cost of a run, or of an experiment's cells and their sum.

    Args:
        config: The run or experiment.
        compose: Gives the config of a cell from its overrides.

    Returns:
        One plan a run.

    Raises:
        ValueError: If a setting does not fit the data, the model or the machine.
    """
    console = Console()
    is_experiment = bool(config.experiment.cells) or config.experiment.grid is not None
    if not is_experiment or config.experiment.cell is not None:
        from hatllm.plan.one_run import plan_run

        found = plan_run(config, {})
        if found.splits:
            console.print(split_table(found))
        console.print(cost_table(found))
        return [found]
    plans = _plans_of(chosen_cells(config, plan_cells(config, compose)))
    console.print(experiment_table(config.experiment.name or "", plans))
    return plans


def _plans_of(cells: list[Cell]) -> list[RunPlan]:
    from hatllm.plan.one_run import Measured, plan_run  # late: wrong cells need no model

    measured: dict[str, Measured] = {}
    plans = []
    coming: dict[str, Config] = {}  # what later cells start from, or read items by
    for cell in cells:
        assert cell.config is not None
        plans.append(plan_run(cell.config, measured, coming))
        if cell.config.task.force or not cell.is_finished:
            coming[str(cell.folder)] = cell.config
    return plans
