"""Score the validation split during a run, keep the best model, and tell when patience has run out."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from accelerate import Accelerator

from convlora.checkpoint import save_pretrained
from convlora.config import RunConfig
from convlora.data.layout import DataSet, Pair
from convlora.errors import ConfigError
from convlora.evaluation import add_scores, new_metrics, score_pairs, write_comparison
from convlora.inference.predictor import Prediction, Predictor
from convlora.metrics import LOWER_IS_BETTER, SALIENCY_KEYS
from convlora.model import SegmentationModel
from convlora.run_files import BEST, LAST, PREVIEWS, SCORES
from convlora.settings import near_hint
from convlora.training.report import Reporter
from convlora.training.resume import Progress


def check_metric(metric: str, classes: tuple[str, ...]) -> None:
    """Check that the metric that chooses the best model is computed for these classes.

    Raises:
        ConfigError: it is not; lists those that are.
    """
    known = [name for name in new_metrics(classes).compute() if name != "n_images"]
    if metric not in known:
        hint = near_hint(metric, known)
        raise ConfigError(f"metric '{metric}' is not computed here; use one of {', '.join(known)}.{hint}")


class Validation:
    """Validates between steps; every process scores its share of the images.

    Args:
        config: the run.
        dataset: its split 'val' is scored.
        segmenter: the model that is trained.
        accelerator: processes and device.
        reporter: is told the scores.
        command: that started the run, for the model card, if it was one.
        make_predictor: gives what predicts with `segmenter`, in evaluation mode; by default a `Predictor`.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: DataSet,
        segmenter: SegmentationModel,
        accelerator: Accelerator,
        reporter: Reporter,
        command: str | None,
        make_predictor: Callable[[], Predictor] | None = None,
    ) -> None:
        self.command = command
        self.config, self.dataset, self.segmenter = config, dataset, segmenter
        self.accelerator, self.reporter = accelerator, reporter
        self.make_predictor = make_predictor or partial(
            Predictor, segmenter, accelerator.device, config.precision
        )

    def run(self, progress: Progress) -> bool:
        """Score after `progress.step` steps and update `progress`; True when patience has run out."""
        scores = self._scores(progress.step)
        better = self._is_better(scores, progress.best)
        progress.validations_without_gain = 0 if better else progress.validations_without_gain + 1
        if better:
            progress.best = {"step": progress.step, **scores}
        self.reporter.validation(progress.step, scores, better)
        if self.accelerator.is_main_process:
            self._save(scores, progress, better)
        patience = self.config.patience
        stop = patience is not None and progress.validations_without_gain >= patience
        if stop:
            self.reporter.say(f"No gain in {patience} validations; stopping at step {progress.step}.")
        return stop

    def _is_better(self, scores: dict[str, Any], best: dict[str, Any]) -> bool:
        """Whether the chosen metric beats the best one; an undefined score does only if it is the first."""
        metric = self.config.metric
        if math.isnan(scores[metric]):
            if best:
                return False
            self.reporter.say(
                f"warning: {metric} is not defined for the validation images, as that of a class that is "
                "in none of them: no model can be told to be the best. Choose another --set metric=..."
            )
            return True
        reached = best.get(metric, math.nan)
        if math.isnan(reached):
            return True
        return scores[metric] < reached if metric in LOWER_IS_BETTER else scores[metric] > reached

    def _scores(self, step: int) -> dict[str, Any]:
        accelerator, config = self.accelerator, self.config
        predictor = self.make_predictor()
        # measures at native size that would choose nothing are left to `evaluate`
        metrics = new_metrics(self.dataset.classes, saliency=config.metric in SALIENCY_KEYS)
        pairs = self.dataset.splits["val"]
        shown = {pair.stem for pair in pairs[: config.previews]}

        def preview(pair: Pair, prediction: Prediction, _: dict[str, float]) -> None:
            if pair.stem in shown:
                file = config.out / PREVIEWS / f"{step:06d}_{pair.stem}.png"
                write_comparison(pair, prediction, self.dataset, file)

        score_pairs(predictor, self.dataset, self.mine(), metrics, preview)
        if accelerator.num_processes > 1:
            state = accelerator.reduce(metrics.state_tensor().to(accelerator.device), reduction="sum")
            metrics.load_state_tensor(state.cpu())
        return metrics.compute()

    def mine(self) -> list[Pair]:
        """The images that this process scores; process 0, which writes the previews, has the first."""
        pairs, count = self.dataset.splits["val"], self.accelerator.num_processes
        own = max(self.config.previews, -(-len(pairs) // count)) if count > 1 else len(pairs)
        if self.accelerator.is_main_process:
            return pairs[:own]
        return pairs[own + self.accelerator.process_index - 1 :: count - 1]

    def _save(self, scores: dict[str, Any], progress: Progress, better: bool) -> None:
        out = self.config.out
        metadata = {
            "step": progress.step,
            "metrics": {k: None if math.isnan(v) else v for k, v in scores.items()},
            "data_fingerprint": self.dataset.fingerprint,
            "largest_image": self.dataset.largest,
            "command": self.command,
            "seed": self.config.seed,
        }
        if better:
            save_pretrained(self.segmenter, out / BEST, metadata)
            add_scores("val", progress.best, out / SCORES)
        save_pretrained(self.segmenter, out / LAST, metadata)
