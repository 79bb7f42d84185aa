"""Where Lightning's loops go on from a checkpoint: at the end of the optimizer step it holds.

Lightning saves how many passes it has made, with marks of the hook it saved in, and goes on in five
ways that depend on them. All follows from the step; so a checkpoint is put at one point, whatever
hook it was saved in, and may be gone on from with passes of another size.
"""

from typing import Any


def put_at_step(loops: dict[str, Any], step: int, steps_per_epoch: int, passes: int) -> None:
    """Change the loops' state, in place, to that of the last pass of a step, validation not begun.

    Args:
        loops: ``checkpoint["loops"]["fit_loop"]`` of Lightning.
        step: Optimizer steps done, from 1.
        steps_per_epoch: Optimizer steps of an epoch.
        passes: Passes (micro-batches of one process) of a step.
    """
    epoch, before = divmod(step - 1, steps_per_epoch)
    in_epoch, total = (before + 1) * passes, step * passes
    for span in ("total", "current"):
        _count(loops["epoch_progress"][span], started=epoch + 1, processed=epoch, completed=epoch)
    progress = loops["epoch_loop.batch_progress"]
    for span, done in (("total", total), ("current", in_epoch)):
        _count(progress[span], started=done, processed=done, completed=done - 1)
    progress["is_last_batch"] = before + 1 == steps_per_epoch
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1


def _count(counts: dict[str, int], started: int, processed: int, completed: int) -> None:
    counts |= {
        "ready": started, "started": started, "processed": processed, "completed": completed,
    }  # fmt: skip
