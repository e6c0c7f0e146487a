"""Before the first step: compute every embedding that the run will need, and tell what that took."""

import time
from collections.abc import Callable, Iterator
from functools import partial

from accelerate import Accelerator

from convlora.data.layout import Pair
from convlora.training.embeddings import EmbeddedImages, EmbeddedPredictor
from convlora.training.plan import Plan
from convlora.training.stream import orders

_LINE_EVERY = 20.0  # seconds between lines of progress


def prepare_embeddings(
    images: EmbeddedImages,
    pairs: list[Pair],
    plan: Plan,
    seed: int,
    first_step: int,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> None:
    """Compute what is not kept yet. The work is shared among processes; each then looks at all of it.

    Args:
        images: training images.
        pairs: validation images that this process scores.
        plan: says how far the stream of images goes.
        seed: of the stream.
        first_step: where the run begins or goes on.
        accelerator: processes.
        say: is told the progress, and what was kept where.
    """
    start = time.monotonic()
    stream = orders(first_step * plan.batch_size, plan.steps * plan.batch_size, len(images), seed)
    wanted = images.variants(stream)
    predictor = EmbeddedPredictor(images.embeddings)
    mine = [v for v in wanted if v[0] % accelerator.num_processes == accelerator.process_index]
    jobs: list[Callable[[], object]] = [partial(predictor.look_up, pair.image) for pair in pairs]
    jobs += [partial(images.embedding, *variant) for variant in mine]
    for done, seconds in _run(jobs):
        left = seconds / done * (len(jobs) - done)
        say(f"embeddings: {done} of {len(jobs)} images seen by the encoder, {left:.0f} s left")
    if accelerator.num_processes > 1:
        accelerator.wait_for_everyone()
        for variant in wanted:  # what the others computed; or, on another machine with its own folder, anew
            images.embedding(*variant)
    say(_told(images, time.monotonic() - start))


def _run(jobs: list[Callable[[], object]]) -> Iterator[tuple[int, float]]:
    """Do all jobs; yields now and then how many are done, and the seconds since the start."""
    start = told = time.monotonic()
    for done, job in enumerate(jobs, 1):
        job()
        now = time.monotonic()
        if now - told > _LINE_EVERY and done < len(jobs):
            told = now
            yield done, now - start


def _told(images: EmbeddedImages, seconds: float) -> str:
    embeddings = images.embeddings
    size, count = embeddings.bytes / 10**6, len(embeddings.keys)
    where = f"in {embeddings.store.folder}" if not embeddings.store.closed else "as far as there is room"
    return (
        f"embeddings: {count} of the untouched encoder ({size:.1f} MB) kept {where}; "
        f"{embeddings.computed} of them computed now, in {seconds:.1f} s"
    )
