"""The settings of evaluate: a field for each key of conf/evaluate.yaml, its type and bounds."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, Predicate, doc

from vae.runs.settings import DataSettings
from vae.runs.types import Accelerator, Folder, Modules, RunFolder, Seed

Number = Annotated[int, Ge(0), Le(10**6)]  # 0 leaves a part out
AtLeastOne = Annotated[int, Ge(1), Le(10**6)]
SampleSizes = Annotated[
    list[AtLeastOne],
    Predicate(lambda sizes: sizes != [] and sizes == sorted(set(sizes))),
    doc("a rising list of numbers of samples such as [1,10,100]"),
]


@dataclass
class ELBOSettings:
    samples: Annotated[int, Ge(1), Le(1000)]


@dataclass
class IWAESettings:
    images: Number
    K: SampleSizes
    rows: AtLeastOne


@dataclass
class GapSettings:
    images: Number
    K: AtLeastOne
    steps: AtLeastOne
    samples: AtLeastOne


@dataclass
class BDMCSettings:
    images: Number
    chains: Annotated[int, Ge(2), Le(10_000)]
    distributions: AtLeastOne


@dataclass
class PPCSettings:
    images: Number


@dataclass
class AISSettings:
    images: Number
    chains: Annotated[int, Ge(2), Le(10_000)]
    distributions: AtLeastOne
    leapfrog: Annotated[int, Ge(1), Le(1000)]
    start: Literal["prior", "posterior"]
    rows: AtLeastOne


@dataclass
class ChainSettings:
    chains: Number
    steps: Annotated[int, Ge(100), Le(10**6)]


@dataclass
class SampleSettings:
    n: Number
    kind: Literal["mean", "clipped", "noisy"]
    k: Annotated[int, Ge(1), Le(100)]


@dataclass
class ClassifierSettings:
    folder: Folder
    epochs: Annotated[int, Ge(1), Le(1000)]


@dataclass
class EvaluateSettings:
    """conf/evaluate.yaml."""

    run: RunFolder | None
    runs: Annotated[
        RunFolder | list[RunFolder] | None, doc("[<run folder>,<run folder>], or a sweep's folder")
    ]
    compare: Annotated[Folder | None, doc("a folder for the page of the runs, or null")]
    against: Annotated[RunFolder | None, doc("a second run folder, or null")]
    seed: Seed
    accelerator: Accelerator
    allow: Modules
    batch_size: Annotated[int, Ge(1), Le(60_000)]
    data: DataSettings
    elbo: ELBOSettings
    iwae: IWAESettings
    gap: GapSettings
    ais: AISSettings
    bdmc: BDMCSettings
    ppc: PPCSettings
    chain: ChainSettings
    samples: SampleSettings
    classifier: ClassifierSettings
