"""The chain's limit and mixing time that a comparison shows: the best that is known of a run."""

import math
from collections.abc import Mapping
from typing import Any

from vae.analysis.chain import ChainTrace
from vae.analysis.limit import Limit, Mixing
from vae.reports.evaluation.rows import known


def best_limit(trace: ChainTrace, evaluation: Mapping[str, Any]) -> Limit:
    """Exact where it is and no chain left the finite numbers; else from evaluation.json, with many
    chains; else from the page's own."""
    kl = evaluation.get("chain/limit_kl")
    if evaluation.get("chain/finite") == 0 and trace.limit.has_limit is not False:
        chains = evaluation.get("chain/chains")
        steps = evaluation.get("chain/finite_steps")
        return Limit(
            math.inf, math.nan, math.nan, "simulated", False,
            *(int(n) if known(n) else 0 for n in (chains, steps)),
        )  # fmt: skip
    if trace.limit.method == "exact" or trace.limit.has_limit is False or not known(kl):
        return trace.limit
    se, p = (evaluation.get(f"chain/limit_{key}") for key in ("kl_se", "p"))
    return Limit(
        float(kl),
        float(se) if known(se) else math.nan,
        float(p) if known(p) else math.nan,
        str(evaluation.get("chain/limit_method", "simulated")),
        None,
        *(int(n) if known(n := evaluation.get(f"chain/{k}")) else 0 for k in ("chains", "steps")),
    )


def best_mixing(trace: ChainTrace, evaluation: Mapping[str, Any]) -> Mixing:
    """Exact where it is; else from evaluation.json, with more steps; else from the page's own."""
    method, steps = (evaluation.get(f"chain/mixing_{key}") for key in ("method", "steps"))
    if trace.mixing.method == "exact" or method is None:
        return trace.mixing
    return Mixing(float(steps) if known(steps) else math.nan, str(method))
