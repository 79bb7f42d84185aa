"""Whether the data of a finished run are still those that it was made of.

The split follows from the data and from settings that are part of what a run is, so that one hash
is enough.
"""

import json
from pathlib import Path

from hatllm.config import Config
from hatllm.data.prepare import current_data_hash
from hatllm.tasks.assemble import cache_root, data_root
from hatllm.tasks.run_folder import RUN_FILE, is_finished


def check_data_unchanged(config: Config, folder: Path) -> None:
    """Refuse a finished run as the answer for data that have changed since.

    Args:
        config: The run; its data are looked up, and prepared where they are not.
        folder: Its folder; an unfinished run is not looked at here.

    Raises:
        ValueError: If the data have changed, or cannot be found or read.
    """
    if not is_finished(folder):
        return
    now = current_data_hash(config.data, data_root(config), cache_root(config))
    then = json.loads((folder / RUN_FILE).read_text()).get("data_hash")
    if then != now:
        raise ValueError(
            f"data={config.data.name} has changed since {folder} was finished: "
            f"data_hash={str(then)[:12]} (now {now[:12]}); its metrics are those of the old data: "
            "task=train with task.force=true makes the run anew, another output_root keeps both"
        )
