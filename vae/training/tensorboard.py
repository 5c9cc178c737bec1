"""What TensorBoard shows of a run beyond scalars: pictures, a layout of charts, its HPARAMS tab."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from vae.runs.identity import affects_result, observes
from vae.runs.keys import select, split_override

# Charts of the CUSTOM SCALARS tab: train and validation in one each.
LAYOUT = {
    title: {title: ["Multiline", [f"train/{name}", f"val/{name}"]]}
    for title, name in (("ELBO", "elbo"), ("KL", "kl"), ("log-likelihood", "log_likelihood"))
}

# Columns of the HPARAMS tab: the five that it shows at first, then the others.
MAIN_COLUMNS = {
    "model": "model.name",
    "latent_dim": "model.latent_dim",
    "sigma": "model.sigma",
    "likelihood": "model.likelihood",
    "objective": "objective",
}
MORE_COLUMNS = {
    "optimizer": "optimizer",
    "lr": "optimizer.lr",
    "seed": "seed",
    "hidden": "model.encoder.hidden",
    "scheduler": "scheduler",
    "max_epochs": "trainer.max_epochs",
    "batch_size": "data.batch_size",
    "data": "data.name",
    "pixels": "data.pixels",
    "learning": "learning",
}
NUMBERS = ("latent_dim", "sigma", "lr", "seed", "max_epochs", "batch_size")
METRICS = {  # by tag
    "test/elbo": "test ELBO",
    "final/val/elbo": "validation ELBO",
    "test/active": "active latents",
}


def log_image(logger: TensorBoardLogger, name: str, path: Path, step: int) -> None:
    """A PNG or GIF as it is: add_image would encode it again, and cannot take an animation."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # slow, and other loggers do without

    value = Summary.Value(tag=name, image=Summary.Image(encoded_image_string=path.read_bytes()))
    logger.experiment._get_file_writer().add_summary(Summary(value=[value]), step)


def log_hparams(logger: TensorBoardLogger, hparams: Mapping[str, str | float]) -> None:
    """The settings of a run that has ended, for the HPARAMS tab.

    TensorBoard takes its columns from one of the runs, so all have the same. It sorts them, first
    those marked as different between runs, then by name, and at first shows the first five.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    # 1. The columns.
    text, number = api_pb2.DATA_TYPE_STRING, api_pb2.DATA_TYPE_FLOAT64
    infos = [
        api_pb2.HParamInfo(
            name=name, type=number if name in NUMBERS else text, differs=name in MAIN_COLUMNS
        )
        for name in (*MAIN_COLUMNS, *MORE_COLUMNS, "callbacks", "overrides")
    ]
    shown = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=title)
        for tag, title in METRICS.items()
    ]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=shown)

    # 2. The values.
    start = plugin_data_pb2.SessionStartInfo()
    for name, value in hparams.items():
        field = "string_value" if isinstance(value, str) else "number_value"
        setattr(start.hparams[name], field, value)
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)

    # 3. As the three summaries that the plugin looks for.
    writer = logger.experiment._get_file_writer()
    for tag, content in (
        (metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment)),
        (
            metadata.SESSION_START_INFO_TAG,
            plugin_data_pb2.HParamsPluginData(session_start_info=start),
        ),
        (metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end)),
    ):
        about = metadata.create_summary_metadata(content)
        value = Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)
        writer.add_summary(Summary(value=[value]))


def compared_settings(config: Mapping[str, Any], overrides: list[str]) -> dict[str, str | float]:
    """The settings that tell runs apart, by column of the HPARAMS tab.

    Lists and nodes are text: `[512, 256]`, `AdamW(weight_decay=0.01)`. `callbacks` are those that
    act on the weights; `overrides` those of the command line that no other column shows.
    """
    columns = MAIN_COLUMNS | MORE_COLUMNS
    found = {name: described(select(config, key)) for name, key in columns.items()}
    acting = [c for c in (config.get("callbacks") or {}).values() if not observes(c)]
    found["callbacks"] = ", ".join(str(described(callback)) for callback in acting)
    keys = {override: split_override(override)[0] for override in overrides}
    elsewhere = (*columns.values(), *config)  # a key of the top level is a group's choice
    found["overrides"] = " ".join(
        override
        for override, key in keys.items()
        if affects_result(key)
        and key not in elsewhere
        and not key.startswith(("hydra.", "hydra/", "callbacks."))
    )
    return {name: value for name, value in found.items() if value not in (None, "")}


def described(value: Any) -> str | float | None:
    """A number as it is, anything else as text; a node as its class and its own settings."""
    if isinstance(value, Mapping):
        hidden = ("_target_", "_partial_", "lr", "sigma", "fused", "interval", "T_max")
        own = [
            f"{key}={v}"
            for key, v in value.items()
            if key not in hidden and v is not None and v is not False
        ]
        name = str(value.get("_target_", "")).rpartition(".")[2]
        return f"{name}({', '.join(own)})" if own else name
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return value if value is None or numeric else str(value)
