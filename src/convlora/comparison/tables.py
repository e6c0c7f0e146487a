"""The table of a comparison as text, for the terminal and for Markdown."""

from convlora.comparison.outcome import Row
from convlora.comparison.settings import Settings
from convlora.comparison.statistics import Difference, Spread


def header(settings: Settings) -> list[str]:
    """Names of the columns of the table."""
    first = settings.metrics[0]
    return [
        "method",
        *settings.metrics,
        f"{first} - {settings.reference} (95 % CI)",
        "trained, M",
        "trained, %",
        "s/step",
        "peak MiB",
        "file MB",
        *(["lr"] if settings.tune_lr else []),
    ]


def table_cells(row: Row, settings: Settings) -> list[str]:
    """One row of the table as text, under `header`."""
    scores = [_plus_minus(row.scores[metric]) for metric in settings.metrics]
    share = row.trained_parameters and row.all_parameters and row.trained_parameters / row.all_parameters
    label = row.label + (f" ({row.failed} failed)" if row.failed else "")
    return [
        label,
        *scores,
        _interval(row.differences[settings.metrics[0]]),
        "-" if row.trained_parameters is None else f"{row.trained_parameters / 1e6:.3f}",
        f"{100 * share:.2f}" if share else "-",
        "-" if row.step_seconds is None else f"{row.step_seconds:.2f}",
        "-" if row.peak_memory_mib is None else f"{row.peak_memory_mib:,}",
        "-" if row.adapter_bytes is None else f"{row.adapter_bytes / 1e6:.2f}",
        *(["default" if row.lr is None else f"{row.lr:.2g}"] if settings.tune_lr else []),
    ]


def _plus_minus(value: Spread | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.4f}" if value.sd is None else f"{value.mean:.4f} ± {value.sd:.4f}"


def _interval(value: Difference | None) -> str:
    if value is None:
        return "-"
    if value.low is None or value.high is None:
        return f"{value.mean:+.4f}"
    return f"{value.mean:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"


def size_name(size: int | None) -> str:
    """Words for a number of training images."""
    return "all training images" if size is None else f"{size} training images"
