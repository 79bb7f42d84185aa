"""Whether this machine has what a run asks for."""

import os

from hatllm.config import Config


def check_hardware(config: Config) -> None:
    """Refuse a GPU run without a GPU, and another number of processes than was started.

    Raises:
        ValueError: If the trainer or the model needs what the machine lacks, or torchrun or SLURM
            runs another number of processes than the trainer's.
    """
    import torch  # late: a table of an experiment needs none

    gpus, trainer = torch.cuda.device_count(), config.trainer
    if trainer.accelerator == "gpu" and gpus < trainer.devices:
        raise ValueError(
            f"trainer.devices={trainer.devices} GPUs asked for, {gpus} found; use trainer=cpu"
        )
    for launcher, started in (
        ("torchrun", os.environ.get("TORCHELASTIC_RUN_ID") and os.environ["WORLD_SIZE"]),
        ("srun", _tasks_of_slurm()),
    ):
        if started and int(started) != trainer.num_processes:
            raise ValueError(
                f"trainer.devices={trainer.devices} x trainer.num_nodes={trainer.num_nodes} must "
                f"be {started}, the processes that {launcher} started"
            )
    if config.model.quantization_bits is not None and gpus == 0:
        raise ValueError(
            f"model.quantization_bits={config.model.quantization_bits} needs a GPU, none found; "
            "use model.quantization_bits=null"
        )


def _tasks_of_slurm() -> str | None:
    """The processes that srun started; None outside of it."""
    if (started := os.environ.get("SLURM_NTASKS")) is None:
        return None
    from lightning_fabric.plugins.environments import SLURMEnvironment

    return started if SLURMEnvironment.detect() else None
