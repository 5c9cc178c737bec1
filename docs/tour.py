# %% [markdown]
# # A tour of a trained run
#
# Cells for VS Code, or for Jupyter with jupytext. As a script, with the newest run where RUN is not
# given: `RUN=outputs/<date>/<time>-baseline python docs/tour.py`. Pictures go to `tour/` in the run
# folder.

# %% The run, its settings and its final metrics
import os
from pathlib import Path

import torch

import vae
from vae.analysis.latents import latent_statistics
from vae.plots.latents import collapse_figure
from vae.theory.linear import affine_weights

folder = os.environ.get("RUN") or max(Path("outputs").glob("**/metrics.json")).parent
run = vae.load_run(folder)
model = run.model
print(
    f"{model.name}: {model.latent_dim} latents, "
    f"test ELBO {run.metrics['test/elbo']:.2f} nats per image"
)
out = run.folder / "tour"
out.mkdir(exist_ok=True)

# %% Its test images, their posteriors q(z|x), and new images from the prior
data = vae.load_data(run.config)
images = data.images("test", 256)  # [256, 1, 28, 28], in [0, 1]
with torch.no_grad():
    posterior = model.encode(images)  # Normal over [256, m]
samples = model.sample(64)  # [64, 1, 28, 28]
print(f"posterior means {tuple(posterior.mean.shape)}, samples {tuple(samples.shape)}")

# %% Which latents carry something, and what the closed form says for a linear VAE
weights = affine_weights(model)
used = latent_statistics(model, [images])
oracle = data.best_linear(model) if weights else None
collapse = collapse_figure(used.kl, f"{model.name}: KL per latent", len(images), oracle)
collapse.savefig(out / "collapse.png")
print(f"{len(used.active)} of {model.latent_dim} latents in use, most used first: {used.active}")

# %% What each of them does to a digit
traversals = vae.traversals(model, images)  # [latents in use, 11, 1, 28, 28]
if used.active:
    vae.traversal_figure(model, images).savefig(out / "traversals.png")

# %% From one digit to another
interpolations = vae.interpolations(model, images[:6], images[6:12])  # [6, 11, 1, 28, 28]
vae.interpolation_figure(model, images[:6], images[6:12]).savefig(out / "interpolations.png")

# %% The encoder against the exact posterior, which a linear decoder f(z) = W z + b has in closed
# form
if weights is not None:
    precision = (
        torch.eye(model.latent_dim, dtype=torch.float64) + weights.W.T @ weights.W / model.sigma**2
    )
    exact_mean = (
        (images.flatten(1).double() - weights.b) @ weights.W @ precision.inverse() / model.sigma**2
    )
    exact = torch.distributions.MultivariateNormal(exact_mean, precision_matrix=precision)
    q = torch.distributions.MultivariateNormal(
        posterior.mean.double(), torch.diag_embed(posterior.variance.double())
    )
    gap = torch.distributions.kl_divergence(q, exact)  # [256], log p(x) − ELBO(x)
    print(
        f"KL(q(z|x) ‖ p(z|x)) = log p(x) − ELBO = {gap.mean():.3f} nats, the price of this encoder"
    )
