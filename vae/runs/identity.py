"""What a setting means for a run's identity: one table, by key, and what follows from it.

Settings are plain nested dictionaries, resolved, as `.hydra/config.yaml` keeps them.
"""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vae.runs.printable import printable

Settings = Mapping[str, Any]


class Role(NamedTuple):
    """What a setting is to a run."""

    may_change: bool  # while the run is resumed
    affects_result: bool  # the weights, or the metrics measured on them, beyond rounding
    names_run: bool  # where runs differ in it
    must_match: bool = False  # between runs whose metrics are compared


NO_EFFECT = Role(may_change=True, affects_result=False, names_run=False)
CHANGEABLE = Role(may_change=True, affects_result=True, names_run=True)
DEFINES_RUN = Role(may_change=False, affects_result=True, names_run=True)
DEFINES_DATA = Role(may_change=False, affects_result=True, names_run=True, must_match=True)

# The first pattern that fits counts. `*` stands for any text, dots included.
ROLES: dict[str, Role] = {
    "seed": Role(may_change=False, affects_result=True, names_run=False),
    "threads": NO_EFFECT,
    "resume": NO_EFFECT,
    "save_every_n_steps": NO_EFFECT,
    "logger": NO_EFFECT,
    "logger.*": NO_EFFECT,
    "callbacks": CHANGEABLE,
    "callbacks.*": CHANGEABLE,  # but for those that only watch: OBSERVING_CALLBACKS
    "trainer": CHANGEABLE,
    "trainer._target_": NO_EFFECT,
    "trainer.accelerator": NO_EFFECT,
    "trainer.strategy": NO_EFFECT,
    "trainer.deterministic": NO_EFFECT,
    "trainer.benchmark": NO_EFFECT,
    "trainer.detect_anomaly": NO_EFFECT,
    "trainer.profiler*": NO_EFFECT,
    "trainer.log_every_n_steps": NO_EFFECT,
    "trainer.enable_checkpointing": CHANGEABLE,  # without, the last weights are tested
    "trainer.enable_*": NO_EFFECT,
    "trainer.barebones": NO_EFFECT,
    "trainer.num_sanity_val_steps": NO_EFFECT,
    "trainer.inference_mode": NO_EFFECT,
    "trainer.use_distributed_sampler": NO_EFFECT,
    "trainer.reload_dataloaders_every_n_epochs": NO_EFFECT,
    "trainer.limit_predict_batches": NO_EFFECT,
    "trainer.*": CHANGEABLE,
    "skip_bad_steps": CHANGEABLE,
    "learning._target_": DEFINES_RUN,
    "learning.compile": CHANGEABLE,
    "learning.cuda_graph": NO_EFFECT,
    "learning.batches_per_block": Role(may_change=False, affects_result=False, names_run=False),
    "data.root": NO_EFFECT,
    "data.eval_batch_size": NO_EFFECT,
    "data.batch_size": DEFINES_RUN,
    "data.*": DEFINES_DATA,
    "data": DEFINES_DATA,
    "model.name": Role(may_change=False, affects_result=False, names_run=False),  # always shown
    "*": DEFINES_RUN,
}

# Callbacks that leave the weights and the metrics alone.
OBSERVING_CALLBACKS = (
    "vae.callbacks.",
    "vae.training.Progress",
    *(
        f"lightning.pytorch.callbacks.{name}"
        for name in (
            "LearningRateMonitor",
            "DeviceStatsMonitor",
            "ThroughputMonitor",
            "ModelSummary",
            "RichModelSummary",
            "RichProgressBar",
            "TQDMProgressBar",
            "ModelCheckpoint",
            "OnExceptionCheckpoint",
        )
    ),
)


def role(key: str) -> Role:
    """What the setting with this dotted key is to a run."""
    return next(found for pattern, found in ROLES.items() if fnmatch.fnmatchcase(key, pattern))


def may_change_on_resume(key: str) -> bool:
    """Whether a run that is resumed may get another value of this setting."""
    return role(key).may_change


def affects_result(key: str) -> bool:
    """Whether weights or metrics depend on this setting.

    True for every callback; `result_settings` looks at their classes.
    """
    return role(key).affects_result


def names_run(key: str) -> bool:
    """Whether a run is named by this setting where others have another value."""
    return role(key).names_run


def flatten(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested dictionaries, `_target_` included; a list is one value."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def result_settings(settings: Settings) -> dict[str, Any]:
    """The settings that weights or metrics depend on, by dotted key.

    What is null or empty is left out, so that it equals what is absent.
    """
    callbacks = settings.get("callbacks")
    if isinstance(callbacks, Mapping):
        acting = {k: v for k, v in callbacks.items() if not observes(v)}
        settings = {**settings, "callbacks": acting}
    return {
        key: device_count(value) if key == "trainer.devices" else value
        for key, value in flatten(settings)
        if affects_result(key) and value is not None and value != {}
    }


def observes(callback: Any) -> bool:
    """Whether a callback's settings name a class that leaves weights and metrics alone."""
    target = callback.get("_target_") if isinstance(callback, Mapping) else None
    return callback is None or str(target).startswith(OBSERVING_CALLBACKS)


def device_count(devices: Any) -> Any:
    """How many devices a setting of Lightning's Trainer means: [3] is one, as "1" is."""
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).isdigit() else devices


def different_results(before: Settings, now: Settings) -> list[str]:
    """The keys of settings that differ and that weights or metrics depend on, the seed included."""
    a, b = result_settings(before), result_settings(now)
    return [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]


def group_trainings(settings: Sequence[Settings]) -> list[list[int]]:
    """Indices of the runs that repeat one training: they differ, if at all, in the seed.

    Groups come in the order of their first runs.
    """
    groups: dict[str, list[int]] = {}
    for index, each in enumerate(settings):
        kept = {key: value for key, value in result_settings(each).items() if key != "seed"}
        groups.setdefault(repr(sorted(kept.items())), []).append(index)
    return list(groups.values())


def name_runs(
    settings: Sequence[Settings], seeds: bool = False, folders: Sequence[str] = ()
) -> list[str]:
    """The model's name and the settings that differ: `baseline`, `deep, latent_dim=8`.

    A class is shown as `objective=IWAE`, a list as `hidden=[64]`. What only follows from the
    model's name (its layers), or repeats another setting (`model.encoder.latent_dim`), is left out.
    `seeds` shows those too; `folders` tell runs of equal names apart.
    """
    flat = [dict(flatten(each)) for each in settings]
    models = [printable(each.get("model.name") or "vae") for each in flat]
    shown = {
        label: column
        for label, column in labelled_columns(settings, models, seeds).items()
        if len(set(column)) > 1
    }
    names = [
        ", ".join([model, *(f"{label}={value}" for label, value in parts if value is not None)])
        for model, parts in zip(
            models,
            ([(label, column[i]) for label, column in shown.items()] for i in range(len(flat))),
            strict=True,
        )
    ]
    if not folders:
        return names
    return [
        f"{name} ({printable(folder)})" if names.count(name) > 1 else name
        for name, folder in zip(names, folders, strict=True)
    ]


def labelled_columns(
    settings: Sequence[Settings], models: Sequence[str], seeds: bool = False
) -> dict[str, list[str | None]]:
    """The values of every setting that may name a run, by its shortest unambiguous label."""
    flat = [result_settings(each) for each in settings]
    columns: dict[str, list[str | None]] = {}
    for key in dict.fromkeys(key for each in flat for key in each):
        column = [shown_value(key, each.get(key)) for each in flat]
        if not (names_run(key) or (seeds and key == "seed")) or len(set(column)) == 1:
            continue
        follows = len(set(zip(models, column, strict=True))) == len(set(models))
        if follows and key.startswith(("model._target_", "model.encoder.", "model.decoder.")):
            continue
        name = key.removesuffix("._target_").rpartition(".")[2]
        repeats = any(
            column == other and name == seen.removesuffix("._target_").rpartition(".")[2]
            for seen, other in columns.items()
        )
        if not repeats:
            columns[key] = column
    labels = shortest_suffixes([key.removesuffix("._target_") for key in columns])
    return dict(zip(labels, columns.values(), strict=True))


def shown_value(key: str, value: Any) -> str | None:
    """A value as one would type it, a class by its name alone; None for what is not set."""
    if value is None:
        return None
    text = str(value).rpartition(".")[2] if key.endswith("._target_") else str(value)
    return printable(text.replace(", ", ",") if isinstance(value, list) else text)


def shortest_suffixes(keys: Sequence[str]) -> list[str]:
    """`hidden` for `model.encoder.hidden`, or `encoder.hidden` where the decoder's is there too."""

    def suffix(key: str) -> str:
        parts = key.split(".")
        for n in range(1, len(parts)):
            short = ".".join(parts[-n:])
            if sum(other == short or other.endswith(f".{short}") for other in keys) == 1:
                return short
        return key

    return [suffix(key) for key in keys]


def comparability(settings: Settings, image_shape: Sequence[int], density: bool) -> dict[str, Any]:
    """What must be alike between runs whose metrics are compared.

    That is the data set, its split, its pixels, the images' shape, and whether the likelihood is a
    density or a probability (`model.likelihood.density`).
    """
    described = {
        key: value
        for key, value in result_settings(settings).items()
        if role(key).must_match and key != "data.image_shape"
    }
    return {
        "data.pixels": "grey",
        **described,
        "image shape": "×".join(map(str, image_shape)),
        "the likelihood": "a density" if density else "a probability",
    }


def incomparable(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In what two `comparability` descriptions differ: `data.pixels is grey and binarised`."""
    return [
        f"{key} is {printable(first.get(key))} and {printable(other.get(key))}"
        for key in dict.fromkeys([*first, *other])
        if first.get(key) != other.get(key)
    ]
