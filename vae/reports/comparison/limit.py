"""Where the chain decode → sample → encode → sample ends up, and how far that is from the prior."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from vae.analysis.chain import ChainTrace
from vae.models.vae import VAE
from vae.theory.linear import affine_weights, kl_to_standard_normal, stationary_law


class Limit(NamedTuple):
    """KL(limiting law ‖ N(0, I)) of a chain, as far as it is known."""

    kl: float | None  # nats; None where it was not measured, inf where there is no limit
    se: float | None  # standard error of it; 0 where it is exact
    p: float | None  # p-value of the test that the prior is the limit; None where there was none
    method: str  # "exact", "simulated" (evaluation.json), "not measured"


def chain_limit(model: VAE, trace: ChainTrace, evaluation: Mapping[str, Any]) -> Limit:
    """Exact for a linear encoder and decoder, otherwise from evaluation.json."""
    weights = affine_weights(model)
    if weights is not None:
        law = stationary_law(model, weights)
        if law is None:
            return Limit(math.inf, 0.0, 0.0, "exact")
        return Limit(kl_to_standard_normal(law), 0.0, None, "exact")
    if trace.finite_steps < len(trace.drifts):
        return Limit(math.inf, None, 0.0, "simulated")
    kl = evaluation.get("chain/limit_kl")
    if isinstance(kl, int | float):
        return Limit(
            float(kl),
            evaluation.get("chain/limit_kl_se"),
            evaluation.get("chain/limit_p"),
            str(evaluation.get("chain/limit_method", "simulated")),
        )
    return Limit(None, None, None, "not measured")
