"""Tell what a prediction did: for people on both streams, for programs as JSON on standard output."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from convlora.inference.files import Outcome
from convlora.inference.jobs import Job, left_out


def tell(
    outcome: Outcome,
    jobs: Sequence[Job],
    inputs: Sequence[Path],
    out: Path,
    *,
    overwrite: bool = False,
    as_json: bool = False,
) -> int:
    """Print the outcome; exit code 0, 1 with failures, 2 if it stopped early, 130 after Ctrl-C."""
    for _, message in outcome.failures:
        print(f"error: {message}", file=sys.stderr)
    if others := left_out(inputs):
        print(f"note: {len(others)} files are no images, first {others[0]}", file=sys.stderr)
    if outcome.stopped:
        # what is left of --overwrite are older files, which --skip-existing would keep as if they were new
        again = (
            "Give the same command again."
            if overwrite
            else "Go on with the same command and --skip-existing."
        )
        print(f"error: {outcome.stopped} {again}", file=sys.stderr)
    if as_json:
        print(json.dumps(_summary(outcome, jobs, out), indent=2))
    else:
        skipped = f" {outcome.skipped} were there already." if outcome.skipped else ""
        print(f"Wrote {outcome.written} of {len(jobs) - outcome.skipped} masks to {out}.{skipped}")
    return 130 if outcome.interrupted else 2 if outcome.stopped else 1 if outcome.failures else 0


def _summary(outcome: Outcome, jobs: Sequence[Job], out: Path) -> dict[str, object]:
    failed = {image for image, _ in outcome.failures}
    done = [job for job in jobs if job.image not in failed][: outcome.written + outcome.skipped]
    return {
        "out": str(out),
        "images": len(jobs),
        "written": outcome.written,
        "skipped": outcome.skipped,
        "files": [{"image": str(job.image), "mask": str(out / f"{job.image.stem}.png")} for job in done],
        "failures": [{"image": str(image), "error": message} for image, message in outcome.failures],
        "stopped": outcome.stopped or None,
    }
