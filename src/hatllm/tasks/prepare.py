"""task=prepare: fetch, parse, split, tokenise and report the data of a run."""

import time
from pathlib import Path

from rich.console import Console

from hatllm.config import Config
from hatllm.data.prepare import load_dataset
from hatllm.data.report import data_report_table, write_data_report


def prepare(config: Config) -> Path:
    """Prepare the data and write its report.

    Args:
        config: The run; the tokenizer is the backbone's.

    Returns:
        Path of the report.
    """
    console = Console()
    start = time.perf_counter()
    dataset = load_dataset(config)
    folder = Path(config.output_root).expanduser() / f"data-{config.data.name}"
    folder.mkdir(parents=True, exist_ok=True)
    report = write_data_report(dataset, folder)
    console.print(data_report_table(dataset))
    if config.model.kind == "llm":
        from hatllm.plan.tokens import write_token_counts  # late: data need no model

        console.print(write_token_counts(config, dataset, folder, time.perf_counter() - start))
    console.print(f"report: {report}")
    return report
