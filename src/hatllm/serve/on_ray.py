"""Finished runs on a Ray cluster: replicas on any of its machines, each a whole server of its own.

Ray's proxy hands requests on; queue, batches, limits and figures are a replica's own. All machines
need the run folders and the cache at the same paths.
"""

import signal
import threading
from collections.abc import Callable
from typing import Any

from hatllm.config import Config
from hatllm.serve.telemetry import log_line


def serve_on_ray(build: Callable[[], Any], config: Config) -> None:
    """Answer until SIGTERM or Ctrl-C.

    Args:
        build: Loads the runs and makes the ASGI application; called in every replica.
        config: Where to listen, how many replicas, what each takes of its machine.

    Raises:
        ValueError: If Ray's packages are missing.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ValueError(
            f"task.engine=ray needs a package ({error.name}): pip install 'ray[serve]'"
        ) from error
    settings = config.task.serve
    assert settings is not None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    kind = "num_cpus" if config.trainer.accelerator == "cpu" else "num_gpus"
    each = (config.num_threads or 1) if kind == "num_cpus" else 1
    serve.start(http_options={"host": settings.host, "port": settings.port})

    def application() -> Any:  # Ray takes a function and no other callable
        return build()

    replica = serve.deployment(
        serve.ingress(application)(),
        name="hatllm",
        num_replicas=settings.replicas,
        ray_actor_options={kind: each},
        # More than a replica takes: it says itself when its queue is full.
        max_ongoing_requests=2 * (settings.max_queue + settings.max_batch),
    )
    serve.run(replica.bind(), name="hatllm", route_prefix="/")
    log_line(event="ready", address=f"http://{settings.host}:{settings.port}")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    log_line(event="ended")
