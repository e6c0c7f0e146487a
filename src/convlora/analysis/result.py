"""What an analysis has measured."""

from dataclasses import asdict, dataclass, field
from typing import Any

from convlora.analysis.probe import Probe


@dataclass
class Analysis:
    """What was measured.

    Attributes:
        images: names of the images of the split.
        scales: of the experts; empty for a method without a gate.
        routing: layer -> for each image the share of each expert.
        distances: 'before' and 'after' -> block -> mean attention distance of each head, in pixels of the
            model's input.
        probes: 'before' and 'after' -> 'blocks' (last block) and 'embedding' (neck) -> scores.
        windows: block -> side of its attention windows in pixels; 0 is global.
    """

    method: str
    classes: list[str]
    images: list[str]
    scales: list[int] = field(default_factory=list)
    routing: dict[str, list[list[float]]] = field(default_factory=dict)
    distances: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    probes: dict[str, dict[str, Probe]] = field(default_factory=dict)
    windows: dict[int, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)
