"""Where the runs of a comparison are made: here, or by Ray on several machines."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from convlora.comparison.launch import Engine, Task, one_by_one, run_task
from convlora.errors import ConfigError, MissingExtraError
from convlora.settings import check_kind


def choose_engine(ray: str | None) -> Engine:
    """Engine for `--ray`: None runs one after the other here.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: the cluster cannot be reached, or `ray` is no text.
    """
    if ray is None:
        return one_by_one
    check_kind("ray", ray, str, "the address of a Ray cluster, or 'local'")
    return RayEngine(ray)


class RayEngine:
    """Runs tasks on a Ray cluster, as many at once as it has CPUs, or GPUs if it has any.

    All machines must see DATA and --out under the same paths, and have convlora and its backbone. A task
    whose machine dies is reported as failed; the same call runs it again.

    Args:
        address: of the cluster, 'auto', or 'local' for one on this machine.
        work: what is done with a task.

    Raises:
        MissingExtraError, ConfigError: as `choose_engine`.
    """

    def __init__(self, address: str, work: Callable[[Task], dict[str, Any]] = run_task) -> None:
        self.work = work
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("--ray", "ray", "ray") from error
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = str(error).splitlines()[0].rstrip(".")
                raise ConfigError(
                    f"--ray {address}: no cluster answers there: {reason}. Start one (ray start --head), or "
                    "use --ray local."
                ) from error
        self.gpus = 1 if ray.cluster_resources().get("GPU") else 0

    def __call__(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, Any]]]:
        """Results as they come; see `Engine`."""
        import ray
        from ray.exceptions import RayError

        remote = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=0)(self.work)
        running = {remote.remote(task): task for task in tasks}
        while running:
            done, _ = ray.wait(list(running))
            task = running.pop(done[0])
            try:
                yield task, ray.get(done[0])
            except RayError as error:
                reason = f"Ray: {str(error).strip().splitlines()[0]}"
                yield task, {"digest": task.digest, "error": reason, "log": str(task.folder)}
