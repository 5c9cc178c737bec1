"""What the networks of runs are: their size, the name that follows from it, and what else differs.

From settings alone, as plain nested dictionaries; what they mean for a run's result is known to
vae.runs.identity.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vae.reports.comparison.words import listed
from vae.runs.errors import UserError
from vae.runs.identity import name_runs, result_settings
from vae.runs.keys import select
from vae.runs.printable import printable

LINEAR, ENCODER_ALONE, DECODER_ALONE = "linear", "encoder alone", "decoder alone"
PARTS = ("encoder", "decoder")
FULLY_CONNECTED = ("vae.models.Encoder", "vae.models.Decoder")
MAX_DEPTH = 16  # of a network that can be trained

Settings = Mapping[str, Any]


class Layers(NamedTuple):
    """Hidden layers of a fully connected network; none make a linear one."""

    widths: tuple[int, ...]  # from the images to the latents, of a decoder too

    @property
    def depth(self) -> int:
        return len(self.widths)

    @property
    def width(self) -> int | None:
        """Of all of them; 0 at depth 0, None where they differ."""
        return None if len(set(self.widths)) > 1 else self.widths[0] if self.widths else 0


def size_text(widths: Sequence[int]) -> str:
    """`2 × 64`; `512-256` where the widths differ."""
    if not widths:
        return "no hidden layers"
    if len(set(widths)) > 1:
        return "-".join(map(str, widths))
    return f"{len(widths)} × {widths[0]}"


# --- one way of writing ---------------------------------------------------------------------------


def canonical(settings: Settings) -> dict[str, Any]:
    """The settings with fully connected networks described in one way.

    Depth and width are a list of widths, an activation without hidden layers is left out, and the
    output "auto" is what it comes to. So equal networks have equal settings.
    """
    model = settings.get("model")
    if not isinstance(model, Mapping):
        return dict(settings)
    model = {**model, **{part: canonical_network(model.get(part)) for part in PARTS}}
    if model.get("_target_") == "vae.models.FullyConnectedVAE":  # a VAE that holds both numbers
        model |= {"_target_": "vae.models.VAE", "depth": None, "width": None}
    return {**settings, "model": model}


def canonical_network(network: Any) -> Any:
    """An encoder or a decoder; others than this project's fully connected ones are left alone."""
    if not isinstance(network, Mapping) or network.get("_target_") not in FULLY_CONNECTED:
        return network
    depth, width, output = (network.get(key) for key in ("depth", "width", "output"))
    hidden = list(network.get("hidden") or [width] * min(depth or 0, MAX_DEPTH))
    found = {key: value for key, value in network.items() if key not in ("depth", "width")}
    found |= {"hidden": hidden, "activation": network.get("activation", "relu") if hidden else None}
    if network["_target_"] == "vae.models.Decoder":
        meant = "sigmoid" if hidden else "linear"
        found["output"] = meant if output == "auto" else output or "linear"
    return found


# --- size and name --------------------------------------------------------------------------------


def sizes(settings: Settings) -> tuple[Layers | None, Layers | None]:
    """Of encoder and decoder, from canonical settings; None for what is not fully connected."""
    encoder, decoder = (select(settings, f"model.{part}") for part in PARTS)
    return layers(encoder, 1), layers(decoder, -1)


def layers(network: Any, order: int) -> Layers | None:
    if not isinstance(network, Mapping) or network.get("_target_") not in FULLY_CONNECTED:
        return None
    return Layers(tuple(network["hidden"][::order]))


def name_and_ladder(settings: Settings) -> tuple[str, str]:
    """What an architecture is called, and the line of the charts that it is on."""
    model = printable(select(settings, "model.name"))
    output = select(settings, "model.decoder.output")
    encoder, decoder = sizes(settings)
    if encoder is None or decoder is None:
        return model, model
    name = size_text(encoder.widths)
    own = size_text(decoder.widths[::-1])  # in the decoder's own order
    if encoder == decoder and encoder.depth:
        plural = "s" if encoder.depth > 1 else ""
        unequal = ", unequal widths" if encoder.width is None else ""
        return name, f"{encoder.depth} hidden layer{plural}{unequal}"
    if not decoder.depth and output == "linear":
        return (f"encoder {name}", ENCODER_ALONE) if encoder.depth else (LINEAR, LINEAR)
    if not decoder.depth:
        name = name if encoder == decoder else f"{name} / {own}"
        return f"{name}, {output} output", f"decoder without hidden layers, {output} output"
    if not encoder.depth:
        return f"decoder {own}", DECODER_ALONE
    return f"{name} / {own}", "unequal sizes"


def name_architectures(settings: Sequence[Settings], folders: Sequence[str]) -> list[str]:
    """A name each. Those that would have the same one, such as two convolutional networks, are told
    apart by the settings that differ."""
    names = [name_and_ladder(each)[0] for each in settings]
    for name in {name for name in names if names.count(name) > 1}:
        same = [i for i in range(len(names)) if names[i] == name]
        labels = name_runs([settings[i] for i in same], folders=[folders[i] for i in same])
        for i, label in zip(same, labels, strict=True):
            names[i] = label
    return names


# --- what has to be alike -------------------------------------------------------------------------


def require_alike(settings: Sequence[Settings]) -> None:
    """UserError, a line for each setting, where results depend on more than networks and seed."""
    others = [
        {
            key: value
            for key, value in result_settings(each).items()
            if key != "seed" and not key.startswith(("model.encoder.", "model.decoder."))
        }
        for each in settings
    ]
    problems = []
    for key in dict.fromkeys(key for each in others for key in each):
        values = {printable(each.get(key, "null")) for each in others}
        if len(values) > 1:
            problems.append(f"runs: {key} differs: {', '.join(sorted(values))[:200]}")
    if problems:
        raise UserError(*problems)


def require_sizes_alone(settings: Sequence[Settings]) -> None:
    """UserError where networks named by their size differ in more, such as their activation.

    All with layers of one width each make the steps in depth and width, and have to be alike.
    """
    by_setting: dict[tuple[str, str], dict[str, list[str]]] = {}
    for each in settings:
        if None in sizes(each):
            continue
        name, _ = name_and_ladder(each)
        steps = all(layers is not None and layers.width is not None for layers in sizes(each))
        for key, value in besides_size(each).items():
            values = by_setting.setdefault(("" if steps else name, key), {})
            values.setdefault("null" if value is None else printable(value), []).append(name)
    problems = []
    for (_, key), values in by_setting.items():
        if len(values) > 1:
            parts = [f"{value} at {listed(names)}" for value, names in values.items()]
            problems.append(f"runs: {key} differs: {'; '.join(parts)}")
    if problems:
        raise UserError(*problems)


def besides_size(settings: Settings) -> dict[str, Any]:
    """What fully connected networks may have besides their widths; an output only behind hidden
    layers, since the name says what it is without them."""
    found = {"model.encoder.log_sd_range": select(settings, "model.encoder.log_sd_range")}
    for part in PARTS:
        network = settings["model"][part]
        if network["hidden"]:
            keys = ("activation", "output")
            found |= {f"model.{part}.{key}": network[key] for key in keys if key in network}
    return found
