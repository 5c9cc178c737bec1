"""What a study measures of each architecture, which direction is better, and what bounds it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from vae.reports.study.ladder import Point


class Measure(NamedTuple):
    key: str  # of metrics.json, evaluation.json or vae.reports.study.ladder
    title: str
    unit: str
    better: int  # 1: higher is better, −1: lower; 0: neither, it is only shown
    floor: str | None = None  # the metric that the linear optimum, or real images, have
    floor_name: str = ""
    ceiling: Callable[[Point], float | None] = lambda point: None


def elbo_cap(point: Point) -> float | None:
    """−(D/2) log(2π σ²) for Gaussian pixels: no VAE's ELBO at this sigma is above it."""
    cap: Any = point.metrics[0].get("cap/elbo")
    return None if cap is None else float(cap)


OPTIMUM = "best linear VAE, closed form"
REAL = "training images against test images"
MEASURES = (
    Measure("test/elbo", "test ELBO", "nats", 1, "oracle/test_elbo", OPTIMUM, elbo_cap),
    Measure(
        "refit/test_elbo", "test ELBO, sigma refitted", "nats", 1, "refit/oracle_test_elbo", OPTIMUM
    ),
    Measure("bound/log_p", "log p(x) of test images, lower bound", "nats", 1),
    Measure("gap/total", "inference gap", "nats", -1),
    Measure("active", "active latents", "of the latent space", 0),
    Measure("samples/fid", "Fréchet distance of samples", "", -1, "samples/fid_floor", REAL),
    Measure("samples/precision", "precision of samples", "", 1, "samples/precision_floor", REAL),
    Measure("samples/recall", "recall of samples", "", 1, "samples/recall_floor", REAL),
    Measure("samples/coverage", "coverage of samples", "", 1, "samples/coverage_floor", REAL),
    Measure("chain/limit_kl", "the chain's law from the prior", "nats", -1),
    Measure("overfit", "train − test ELBO, less the linear optimum's", "nats", -1),
)
