"""What the demo does, sized for two cores without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

STREAM = "cifar10"


@dataclass(frozen=True)
class DemoSettings:
    """Numbers of the demo.

    Attributes:
        seed: draws the images, orders the requests, and seeds the learner.
        image_size: pixels; the backbone takes 40 images of 168 px a second on two cores, 23 of 224.
        samples_per_class: produced to the stream, holdout included.
        test_per_class: test images per class for the final accuracy matrix.
        classes_per_session: classes produced together.
        requests_per_second: load that the client keeps up.
        adapter_blocks, feature_blocks, explore_epochs, compact_epochs: of the learner.
    """

    seed: int = 1
    image_size: int = 168
    samples_per_class: int = 80
    test_per_class: int = 100
    classes_per_session: int = 2
    requests_per_second: float = 4.0
    adapter_blocks: int = 2
    feature_blocks: int = 2
    explore_epochs: int = 1
    compact_epochs: int = 3

    @classmethod
    def quick(cls, seed: int) -> DemoSettings:
        """Return a smaller demo, for tests and for a look; its figures mean little."""
        return cls(seed=seed, image_size=112, samples_per_class=36, test_per_class=10, compact_epochs=1)

    def daemon_settings(self, state_directory: Path) -> dict[str, Any]:
        """Return the configuration of the demo's daemon."""
        return {
            "state_directory": str(state_directory),
            # One core for requests leaves the other to the trainer, which takes both when nobody asks.
            "backbone": {"image_size": self.image_size, "threads": 1},
            "streams": {
                STREAM: {
                    "learner": {"method": "sgds", "options": self.learner_options(), "seed": self.seed},
                    "trigger": {
                        "min_samples_per_class": self.samples_per_class // 2,
                        "quiet_seconds": 1.0,
                        "max_wait_seconds": 60.0,
                    },
                    "gate": {"max_accuracy_drop": 0.2, "max_forgetting": 0.2},
                }
            },
            "serving": {"port": 0},
            # Gone by the time the demo itself needs memory for its measurements.
            "trainer": {"idle_seconds": 15.0},
            "log": {"format": "json"},
        }

    def learner_options(self) -> dict[str, Any]:
        """Return the SGDS options of the demo."""
        return {
            "adapter_blocks": self.adapter_blocks,
            "feature_blocks": self.feature_blocks,
            "explore_epochs": self.explore_epochs,
            "compact_epochs": self.compact_epochs,
        }
