"""The table's lines about latents, the chain and prior samples."""

from collections.abc import Iterator

from vae.analysis.limit import FORGOTTEN
from vae.reports.evaluation.rows import Metrics, known, number, p_value, row


def collapse_rows(f: Metrics) -> Iterator[str]:
    thresholds = "".join(f"{t:>9g}" for t in f["collapse/thresholds"])
    yield f"latents of {f['collapse/latents']}, by threshold" + thresholds
    for name, key in (
        ("  collapsed: mean KL below (nats)", "collapse/collapsed_at"),
        ("  inactive: Var(E[z|x]) below", "collapse/inactive_at"),
    ):
        yield f"{name:<32}" + "".join(f"{n:>9}" for n in f[key])
    yield f"KL by latent, test      {spectrum(f['collapse/kl'])}"
    if "collapse/predicted_kl" in f:
        yield f"KL by latent, train     {spectrum(f['collapse/train_kl'])}"
        yield f"  predicted, ½log(λ/s²) {spectrum(f['collapse/predicted_kl'])}"
    note = "KL of its mean and covariance alone: a lower bound on that of its law"
    yield row("aggregated posterior from prior, nats", f, "collapse/aggregated_kl", note)


def spectrum(kl: list[float], shown: int = 10) -> str:
    """The largest, descending."""
    ordered = sorted((v for v in kl if known(v)), reverse=True)
    return " ".join(f"{v:.2f}" for v in ordered[:shown]) + (" …" if len(kl) > shown else "")


def chain_rows(f: Metrics) -> Iterator[str]:
    stayed = "stayed finite"
    if not f["chain/finite"]:
        stayed = f"NOT finite from step {f['chain/finite_steps']} on"
    yield f"chain: {f['chain/chains']} chains of {f['chain/steps']} steps, {stayed}"
    if "chain/spectral_radius" in f:
        yield row("spectral radius ρ(VW), exact", f, "chain/spectral_radius", digits=4)
    else:
        note = f"median, {number(f.get('chain/local_gain_max'), 3)} at most, at "
        note += f"{f['chain/local_gain_states']} states visited; above 1 at some is no divergence"
        yield row("local gain", f, "chain/local_gain", note, 3)
    yield from limit_rows(f)
    note = f"{p_value(f['chain/one_step_p'])} if the prior were stationary, "
    note += f"{f['chain/one_step_chains']:,} chains"
    yield row("prior moved by one step, nats", f, "chain/one_step_kl", note, 4)
    yield f"{'step':<34}" + "".join(f"{t:>8}" for t in f["chain/t"])
    drift = "".join(f"{number(d):>8}" for d in f["chain/drift_t"])
    yield f"{'  drift from the prior, nats':<34}" + drift
    for label, shares in enumerate(zip(*f["chain/classes_t"], strict=True)):
        yield f"{f'  share of class {label}':<34}" + "".join(f"{s:>8.2f}" for s in shares)
    yield row("class changes per step", f, "chain/class_changes", digits=3)
    yield row("classes a chain visits in 100 steps", f, "chain/classes_visited", digits=1)
    yield from mixing_rows(f)


def limit_rows(f: Metrics) -> Iterator[str]:
    """How far the chain's limiting law is from the prior."""
    if f.get("chain/has_limit") == 0 and f["chain/finite"]:
        radius = f.get("chain/spectral_radius")
        reason = "the spectral radius is at least 1"
        if known(radius) and radius < 1:
            reason = "the sd of q grows with x, and no finite covariance was found"
        yield f"no stationary distribution: {reason}"
    if known(f.get("chain/limit_kl")):
        exact = f.get("chain/limit_method") == "exact"
        note = "exact" if exact else "simulated, full covariance"
        if known(f.get("chain/limit_p")):
            note += f"; {p_value(f['chain/limit_p'])} for the prior as the limit"
        yield row("limiting law from prior, nats", f, "chain/limit_kl", note, 3)
    if known(f.get("chain/agreement_kl")):
        note = f"{p_value(f['chain/agreement_p'])} if they agree, {f['chain/agreement_chains']:,} "
        note += f"chains, {f['chain/agreement_steps']} steps"
        yield row("  simulated chains from that law", f, "chain/agreement_kl", note, 4)


def mixing_rows(f: Metrics) -> Iterator[str]:
    if not f["chain/finite"]:
        yield "a chain that runs away has no limit"
        return
    mixing, left = f.get("chain/mixing_steps"), f.get("chain/memory_at_100")
    if not known(mixing):
        yield (
            f"mixing time: not resolved by {f['chain/steps']:,} steps, so 100 steps are not shown "
            "to be near the limit"
        )
        return
    how = {"exact": ", exact", "measured": ", measured"}.get(f.get("chain/mixing_method", ""), "")
    left = (1 - 1 / mixing) ** 100 if not known(left) else left
    near = "near" if left < FORGOTTEN else "NOT near"
    yield (
        f"mixing time {mixing:.0f} steps{how}: 100 steps are {near} the limit, "
        f"{left:.0%} of the start is left"
    )


def sample_rows(f: Metrics) -> Iterator[str]:
    kinds = {"mean": "f(z)", "clipped": "f(z) clipped to [0, 1]", "noisy": "draws of p(x|z)"}
    yield (
        f"samples: {f['samples/n']:,} of {kinds[f['samples/kind']]} against as many test images; "
        "floor: train against test"
    )
    yield (
        f"(features of a classifier with {f['classifier/test_accuracy']:.2%} on test, "
        f"k = {f['samples/k']}; such distances compare with no other features')"
    )
    yield f"{'':<42}{'samples':>20}{'floor':>20}"
    names = {
        "fid": "Fréchet distance (low is good)",
        "kid": "KID (low is good)",
        "precision": "precision (are samples like digits?)",
        "recall": "recall (are all digits covered?)",
        "density": "density (precision, 1 for equal laws)",
        "coverage": f"coverage ({number(f['samples/expected_coverage'], 3)} for equal laws)",
        "nn_real": "1-NN accuracy, real side (½ is best)",
        "nn_fake": "1-NN accuracy, sample side (½ is best)",
    }
    for key, name in names.items():
        cells = (sample_cell(f, f"samples/{key}{side}") for side in ("", "_floor"))
        yield f"{name:<42}" + "".join(f"{cell:>20}" for cell in cells)


def sample_cell(f: Metrics, key: str) -> str:
    error = f.get(f"{key}_se")
    return number(f.get(key), 3) + (f" ± {number(error, 3)}" if known(error) else "")


def against_rows(f: Metrics) -> Iterator[str]:
    yield f"less {f['against']}, paired over images"
    for key in f:
        if key.startswith("against/") and not key.endswith("_se"):
            yield row(key.removeprefix("against/"), f, key)
