"""The Ray cluster that this process can reach, and how many models it has room for."""

from dataclasses import dataclass

from hatllm.config import Config


@dataclass
class Room:
    """What one actor with a model takes, and how many such actors fit."""

    kind: str  # CPU or GPU
    each: int  # of them an actor
    num_actors: int

    @property
    def options(self) -> dict[str, int]:
        """What Ray's actors are asked for, by Ray's names."""
        return {f"num_{self.kind.lower()}s": self.each}


def room_on_ray(config: Config) -> Room:
    """Connect to the cluster, or start one on this machine, and count.

    An actor takes ``num_threads`` cores (1 where it is null), or one GPU where the trainer asks for
    GPUs.

    Args:
        config: ``num_threads``, ``trainer.accelerator``.

    Raises:
        ValueError: If Ray is not installed, or there is no room for one actor.
    """
    try:
        import ray
    except ImportError as error:
        raise missing_package(error) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    kind = "CPU" if config.trainer.accelerator == "cpu" else "GPU"
    each = (config.num_threads or 1) if kind == "CPU" else 1
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_actors = sum(int(resources.get(kind, 0) // each) for resources in nodes)
    if num_actors < 1:
        raise ValueError(
            f"task.engine=ray: the cluster has no room for an actor with {each} {kind}; lower "
            "num_threads, or give trainer.accelerator=cpu"
        )
    return Room(kind, each, num_actors)


def missing_package(error: ImportError) -> ValueError:
    """What to install where a part of Ray cannot be imported."""
    return ValueError(
        f"task.engine=ray needs a package ({error.name}): pip install -e '.[ray,serve]'"
    )
