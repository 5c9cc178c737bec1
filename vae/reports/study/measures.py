"""What a study measures of each architecture, which direction is better, and what bounds it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vae.reports.comparison import sample_verdict
from vae.reports.study.ladder import Architecture


class Measure(NamedTuple):
    key: str  # of metrics.json, evaluation.json or vae.reports.study.ladder
    title: str
    unit: str
    better: int  # 1: higher is better, −1: lower; 0: neither, it is only shown
    floor: str | None = None  # the metric that the linear optimum, or training images, have
    floor_name: str = ""
    ceiling: Callable[[Architecture], float | None] = lambda _: None
    target: float | None = None  # the best value, where neither higher nor lower is better
    best_at_floor: bool = False  # whether the floor is that value, for those that have it


def best_value(measure: Measure, architectures: Sequence[Architecture]) -> float | None:
    """What a perfect model has, where more and less than that are both worse.

    For precision and density that is what training images score, as on a comparison's page
    (sample_verdict.target): more of them is worse where samples repeat a few easy images.
    """
    known = [each for each in architectures if each.measured(measure.key)]
    floors = [each.measured(measure.floor) for each in known] if measure.floor else []
    if not measure.best_at_floor or not floors or None in floors:
        return measure.target
    return sum(floor.mean for floor in floors if floor) / len(floors)


def elbo_cap(architecture: Architecture) -> float | None:
    """−(D/2) log(2π σ²) for Gaussian pixels: no VAE's density at this sigma is above it."""
    cap: Any = architecture.metrics[0].get("cap/elbo")
    return None if cap is None else float(cap)


OPTIMUM = "best linear VAE, closed form"
REAL = "training images against test images"
ELBO = Measure("test/elbo", "test ELBO", "nats", 1, "oracle/test_elbo", OPTIMUM, elbo_cap)
REFITTED = Measure(
    "refit/test_elbo", "test ELBO with sigma refitted", "nats", 1, "refit/oracle_test_elbo", OPTIMUM
)
LOG_P = Measure(
    "bound/log_p", "lower bound on log p(x)", "nats", 1, "oracle/test_elbo", OPTIMUM, elbo_cap
)
LOG_P_SLOPE = "bound/log_p_slope"  # of that bound on the mean ELBO of all images
GAP = Measure("gap/total", "inference gap", "nats", -1)
ACTIVE = Measure("active", "active latents", "latents", 0, "oracle/active", OPTIMUM)
CHAIN = Measure("chain/limit_kl", "distance of the chain's law from the prior", "nats", -1)
TRAIN = Measure("train/elbo", "training ELBO", "nats", 1, "oracle/train_elbo", OPTIMUM, elbo_cap)
# The two sides of OVERFIT: each split's ELBO less that of the linear optimum on the same images.
OVERFIT_PARTS = ("overfit/train", "overfit/test")
OVERFIT = Measure("overfit", "train − test ELBO, less the linear optimum's", "nats", -1)
SAMPLES = tuple(
    Measure(
        each.key,
        each.name if "1-NN" in each.name else f"{each.name} of samples",
        "",
        each.sign,
        f"{each.key}_floor",
        REAL,
        target=each.best,
        best_at_floor=each.sensitive_to == sample_verdict.REALISM,
    )
    for each in sample_verdict.MEASURES
)
FRECHET = SAMPLES[0]
MEASURES = (ELBO, REFITTED, LOG_P, GAP, ACTIVE, *SAMPLES, CHAIN, TRAIN, OVERFIT)
GENERATIVE = (ELBO, REFITTED, LOG_P, *SAMPLES, CHAIN)  # what a better generative model improves
MAIN = (ELBO, REFITTED, LOG_P, FRECHET)  # those with sentences on depth, width, encoder, decoder
COMPARED = tuple(measure for measure in MEASURES if measure.better)
