"""The charts of the comparison page, drawn by the functions that the pictures of a run use."""

from collections.abc import Sequence

from matplotlib.ticker import NullLocator

from vae.plots.curves import Drift, RunCurves, over_seeds, plot_curves, plot_drift
from vae.plots.images import chart, svg
from vae.plots.latents import KLSpectrum, kl_bins, kl_counts, plot_kl_histogram, plot_kl_spectrum
from vae.plots.palette import COLLAPSED, ORACLE, run_colour, run_dashes
from vae.reports.comparison.entries import Entry
from vae.reports.comparison.statistics import Measured


def half_width(metric: Measured) -> float:
    """Half of an error bar: the standard deviation over trainings, else the standard error."""
    return metric.sd if metric.sd is not None else metric.se or 0.0


def curves(entries: Sequence[Entry], term: str) -> str:
    """Mean over trainings with a band of one standard deviation where there are several."""
    title = {"elbo": "ELBO", "kl": "KL(q ‖ prior)"}[term]
    figure, axes = chart(title, "epoch", "nats per image")
    runs = []
    for i, entry in enumerate(entries):
        histories = [training.history for training in entry.trainings if training.history]
        if not histories:
            continue
        mean, spread = over_seeds(histories)
        oracle = entry.first.oracle
        runs.append(
            RunCurves(
                mean,
                entry.name,
                run_colour(i),
                run_dashes(i),
                spread if len(histories) > 1 else None,
                oracle.train_elbo if oracle is not None else None,
            )
        )
    plot_curves(axes, runs, term)
    return svg(figure)


def size_chart(entries: Sequence[Entry]) -> str:
    """Test ELBO over latent_dim, the entries of a model joined, with the linear optimum of each."""
    figure, axes = chart("test ELBO over latent_dim", "latent_dim", "nats per image")
    for model in dict.fromkeys((e.first.run.model.name, e.likelihood) for e in entries):
        joined = sorted(
            (e.latent_dim, e.mean("test/elbo"))
            for e in entries
            if (e.first.run.model.name, e.likelihood) == model
        )
        axes.plot(*zip(*joined, strict=True), color=COLLAPSED, linewidth=1.2, zorder=1)
    for i, entry in enumerate(entries):
        elbo, m, colour = entry.metric("test/elbo"), entry.latent_dim, run_colour(i)
        bar = half_width(elbo)
        axes.errorbar(m, elbo.mean, bar, color=colour, marker="o", markersize=5, capsize=2)
        if entry.has("oracle/test_elbo"):
            axes.plot(m, entry.mean("oracle/test_elbo"), "+", color=ORACLE, markersize=8)
    dims = sorted({entry.latent_dim for entry in entries})
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.xaxis.set_minor_locator(NullLocator())
    return svg(figure)


def histogram(entry: Entry, place: int, entries: Sequence[Entry]) -> str:
    """KL of the latents of the first training, on bins and axes that all entries share."""
    kls = [each.first.kl for each in entries]
    bins = kl_bins(*kls)
    most = max(int(max(*part)) for kl in kls for part in kl_counts(kl, bins))
    figure, axes = chart("", "", "", 3.7, 2.5)
    plot_kl_histogram(axes, entry.first.kl, run_colour(place), bins, most)
    return svg(figure)


def spectrum_chart(entries: Sequence[Entry]) -> str:
    figure, axes = chart("", "", "", 3.7, 2.5)
    spectra = []
    for i, entry in enumerate(entries):
        oracle = entry.first.oracle if entry.first.linear else None
        closed_form = oracle.kl if oracle is not None else None
        spectra.append(
            KLSpectrum(entry.first.kl, entry.name, run_colour(i), run_dashes(i), closed_form)
        )
    plot_kl_spectrum(axes, spectra, threshold=False)
    return svg(figure)


def drift_chart(entries: Sequence[Entry]) -> str:
    figure, axes = chart("", "", "")
    plot_drift(
        axes,
        [
            Drift(entry.first.trace.drifts, entry.name, run_colour(i), run_dashes(i))
            for i, entry in enumerate(entries)
        ],
    )
    return svg(figure)
