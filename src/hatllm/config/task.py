"""Settings of ``conf/task/``."""

from dataclasses import dataclass
from typing import Any

from hatllm.config.checks import check_choice, check_range
from hatllm.config.serve import ServeConfig

TASKS = ("prepare", "train", "evaluate", "recommend", "masks", "experiment", "table", "plan",
         "attention", "serve")  # fmt: skip
ENGINES = ("local", "ray")


@dataclass
class TaskConfig:
    """What to do with the composed run."""

    name: str  # one of TASKS
    run_folder: str | None  # evaluate, recommend: folder of a finished run; table: folder of runs
    split: str  # evaluate, masks, recommend, attention: valid or test
    history: list[Any]  # recommend: titles, or item ids as numbers or texts, oldest first
    only: list[Any] | None  # recommend: titles or item ids that alone may be answered; null = all
    block: list[Any]  # recommend: titles or item ids that are not answered
    engine: str  # serve; recommend, with data.histories: one of ENGINES
    chunk_rows: int  # recommend, with data.histories: histories of a shard, at most
    example: int  # masks: which example of the split to draw
    force: bool  # train, experiment: start over although the folder holds a run, finished or not
    num_users: int  # attention: rows of the split whose prompts are read
    attention: bool  # experiment: attention shares of its runs after the table
    batches_a_shard: int | None  # train, evaluate: batches of users between two writes of answers
    run_folders: list[str]  # serve: several finished runs; the first answers where none is named
    serve: ServeConfig | None  # serve: how; null for every other task

    def __post_init__(self) -> None:
        check_choice("task", self.name, TASKS)
        check_choice("task.split", self.split, ("valid", "test"))
        check_range("task.example", self.example, 0)
        check_choice("task.engine", self.engine, ENGINES)
        if self.serve is not None and self.serve.replicas > 1 and self.engine != "ray":
            raise ValueError(
                f"task.serve.replicas={self.serve.replicas} needs task.engine=ray; without Ray one "
                "process answers"
            )
        if self.serve is not None and self.serve.port == 0 and self.engine == "ray":
            raise ValueError("task.serve.port=0: task.engine=ray needs a port, such as 8000")
        check_range("task.chunk_rows", self.chunk_rows, 1)
        check_range("task.num_users", self.num_users, 1)
        check_range("task.batches_a_shard", self.batches_a_shard, 1)
        if self.name in ("evaluate", "recommend") and self.run_folder is None:
            raise ValueError(
                f"task={self.name} needs task.run_folder=FOLDER, the folder of a finished run"
            )
        if self.name == "serve" and (self.run_folder is None) == (not self.run_folders):
            raise ValueError(
                f"task.run_folder={self.run_folder!r} task.run_folders={self.run_folders}: "
                "task=serve needs one of the two: task.run_folder=FOLDER, a finished run, or "
                "task.run_folders=[FOLDER,FOLDER], several"
            )
