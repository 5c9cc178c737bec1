"""When a study calls a difference one: planned comparisons, by Holm, on variances with a floor."""

import math
import random

import pytest
import torch
from study_points import SIZES, architecture, around, compared, grid, seventeen
from torch import Tensor

from vae.reports.comparison.statistics import (
    total_and_freedom,
    two_sided_p,
)
from vae.reports.study.comparisons import (
    PAGE_LEVEL,
    holm,
    typical_variance,
)
from vae.reports.study.effects import depth_or_width
from vae.reports.study.measures import (
    COMPARED,
    ELBO,
    GAP,
    OVERFIT,
    SAMPLES,
    TRAIN,
    Measure,
)
from vae.reports.study.planned import depth_steps, planned, width_steps
from vae.reports.study.sizes import DECODER_ALONE, ENCODER_ALONE
from vae.reports.study.verdict import growth_sentence, verdict

# --- families -------------------------------------------------------------------------------------


def test_holm():
    """Thresholds 1 %/4, 1 %/3, 1 %/2 and 1 %, up to the first that is not below."""
    p = {"a": 0.003, "b": 0.0024, "c": 0.2, "d": 0.004}
    assert holm(p, 0.01) == {"a", "b", "d"}
    assert holm(p | {"b": 0.0026}, 0.01) == set()
    assert holm({"a": math.nan, "b": 0.004}, 0.01) == {"b"}
    assert holm({"a": math.nan, "b": 0.006}, 0.01) == set()  # an unknown one counts
    assert holm({}, 0.01) == set()


def test_planned_are_neighbouring_steps_linear_networks_and_the_two_sides():
    architectures = sorted(
        seventeen(lambda i: {"test__elbo": around(200.0)}), key=lambda p: p.parameters
    )
    steps = {(s.a.name, s.b.name) for s in depth_steps(architectures)}
    assert len(steps) == 9
    assert {("linear", "1 × 64"), ("1 × 64", "2 × 64"), ("2 × 1024", "3 × 1024")} <= steps
    wider = {(s.a.name, s.b.name) for s in width_steps(architectures)}
    assert len(wider) == 6
    assert ("3 × 64", "3 × 256") in wider
    assert ("3 × 64", "3 × 1024") not in wider
    pairs = [(a.name, b.name) for a, b in planned(ELBO, architectures)]
    assert steps | wider <= set(pairs)
    # 15 steps, 6 deeper sizes and 6 sides alone against linear, 3 sides against each other, and
    # 3 sizes with more parameters against the convolutional networks.
    assert len(pairs) == len(set(pairs)) == 15 + 6 + 6 + 3 + 3
    assert len(planned(SAMPLES[1], architectures)) == len(planned(OVERFIT, architectures)) == 9
    assert len(planned(TRAIN, architectures)) == 15
    assert compared(architectures).number == 33


def test_a_measure_is_its_own_family_and_what_is_not_planned_is_refused():
    both = [
        architecture(d, w, test__elbo=around(200.0), train__elbo=around(200.0), active=around(3.0))
        for d, w in SIZES
    ]
    found = compared(both)  # active latents are shown, not compared
    assert {key: len(family) for key, family in found.families.items()} == {
        ELBO.key: 8,
        TRAIN.key: 6,
    }
    with pytest.raises(KeyError):
        found.sign(ELBO, both[2], both[3])
    assert len(grid(lambda d, w: 200.0).families[ELBO.key]) == 8


def test_suggestive_differences_are_named():
    """p below 1 % alone, and not among the others."""
    found = grid(lambda d, w: (200.0, 201.4, 201.5)[d])
    some = found.suggestive(ELBO)
    assert {(each.a.name, each.b.name) for each in some} == {
        ("linear", f"{d} × {w}") for d in (1, 2) for w in (8, 64)
    }
    assert found.decided(ELBO) == []
    (text,) = verdict(found)["Suggestive, not decided"]
    assert text.startswith("4 of 8 differences have p < 1% each")
    assert text.endswith("the largest: test ELBO +1.50 ± 0.32 from linear to 2 × 8.")
    assert "Suggestive, not decided" not in verdict(grid(lambda d, w: 200.0))


# --- nothing is claimed where nothing differs -----------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_trainings_decide_nothing(seed: int):
    """The same trainings dealt to the architectures by chance."""
    values = [value for d, _ in SIZES for value in around(200.0 + 30.0 * d)]
    random.Random(seed).shuffle(values)
    dealt = [values[3 * i : 3 * i + 3] for i in range(len(SIZES))]
    found = compared(
        [architecture(d, w, test__elbo=v) for (d, w), v in zip(SIZES, dealt, strict=True)]
    )
    assert "not decided" in growth_sentence(found, ELBO)
    assert says_nothing(depth_or_width(found, ELBO))
    assert found.decided(ELBO) == []


def says_nothing(sentences: list[str]) -> bool:
    return not any(word in text for text in sentences for word in ("pays", "costs"))


def test_equal_metrics_decide_nothing():
    architectures = [architecture(d, w, test__elbo=(200.0,) * 3) for d, w in SIZES]
    architectures += [
        architecture(2, 8, each, test__elbo=(200.0,) * 3) for each in (ENCODER_ALONE, DECODER_ALONE)
    ]
    found = compared(architectures)
    assert "not decided, none of 4 sizes" in growth_sentence(found, ELBO)
    assert says_nothing(depth_or_width(found, ELBO))
    words = verdict(found)
    assert set(words) == {"Depth or width?", "Encoder or decoder?", "Not decided"}
    assert "which of the two is worth more is not decided" in words["Encoder or decoder?"][0]
    assert words["Not decided"][0] == "Whether these change with complexity: test ELBO."
    assert words["Not decided"][1].startswith(
        "No planned comparison by test ELBO decides between linear, "
    )


def test_single_trainings_decide_nothing():
    found = compared([architecture(d, w, test__elbo=(200.0 + 30 * d + w,)) for d, w in SIZES])
    assert found.decided(ELBO) == []
    assert verdict(found)["Not decided"][-1].startswith("Anything: each architecture was trained")


POINTS = sorted(
    seventeen(lambda i: {m.key.replace("/", "__"): (0.0,) for m in COMPARED}),
    key=lambda p: p.parameters,
)
PLACES = {p.name: i for i, p in enumerate(POINTS)}
FAMILIES = {m: [(PLACES[a.name], PLACES[b.name]) for a, b in planned(m, POINTS)] for m in COMPARED}
CLEAR = 6.0  # a smaller t has p > 0.3 % at 4 degrees of freedom: too large for any family


def claims(
    values: Tensor, family: list[tuple[int, int]], estimate: float = 0.0, floor: float = 1.0
) -> list[set[int]]:
    """The decided comparisons of many studies at once, from trainings [studies, A, 3].

    `estimate` is the variance of a difference over images or samples.
    """
    variances = values.var(-1)
    typical = typical_variance(variances, torch.full(variances.shape[-1:], 3.0))
    variances = torch.maximum(variances, floor * typical[:, None])
    a, b = (list(side) for side in zip(*family, strict=True))
    total, freedom = total_and_freedom(estimate, [(variances[:, a], 3), (variances[:, b], 3)])
    t = (values.mean(-1)[:, b] - values.mean(-1)[:, a]) / total.sqrt()
    found: list[set[int]] = [set() for _ in values]
    for study in (t.abs() > CLEAR).any(1).nonzero().flatten().tolist():
        found[study] = holm(
            {
                k: two_sided_p(each, freedom[study, k].item()) if abs(each) > CLEAR else 1.0
                for k, each in enumerate(t[study].tolist())
            },
            PAGE_LEVEL / len(FAMILIES),
        )
    return found


def spreads(kind: str, studies: int, generator: torch.Generator) -> Tensor:
    """Standard deviations over trainings [studies, A] that differ tenfold."""
    uniform = torch.rand(studies, len(POINTS), generator=generator, dtype=torch.float64)
    if kind == "between":
        return 10**uniform
    wide = {"one": 1, "two": 2, "five": 5, "half": len(POINTS) // 2}[kind]
    return torch.where(uniform.argsort(1) < wide, 10.0, 1.0).double()


def false_claims(kind: str, floor: float = 1.0, studies: int = 1000) -> float:
    """The share of pages with any claim where no architecture differs by any of 15 measures."""
    generator = torch.Generator().manual_seed(0)
    sds = spreads(kind, studies, generator)[..., None]
    wrong = torch.zeros(studies, dtype=torch.bool)
    for family in FAMILIES.values():
        noise = torch.randn(studies, len(POINTS), 3, generator=generator, dtype=torch.float64)
        wrong |= torch.tensor([bool(each) for each in claims(sds * noise, family, floor=floor)])
    return wrong.double().mean().item()


@pytest.mark.parametrize("kind", ["between", "one", "two", "five", "half"])
def test_few_pages_make_a_false_claim_where_spreads_differ_tenfold(kind: str):
    assert len(FAMILIES) == 15
    assert false_claims(kind) <= PAGE_LEVEL


def test_without_the_typical_variance_more_pages_would():
    assert false_claims("half", floor=0.0) > PAGE_LEVEL


@pytest.mark.parametrize(("measure", "least"), [(ELBO, 0.7), (GAP, 0.85)])
def test_ten_standard_deviations_of_the_widest_are_decided(measure: Measure, least: float):
    """Linear networks that far below all others; spreads differ tenfold."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(200, len(POINTS), 3, generator=generator, dtype=torch.float64)
    values = spreads("between", 200, generator)[..., None] * noise
    values[:, PLACES["linear"]] -= 100.0
    real = {k for k, pair in enumerate(FAMILIES[measure]) if PLACES["linear"] in pair}
    shares = [len(found & real) / len(real) for found in claims(values, FAMILIES[measure])]
    assert sum(shares) / len(shares) > least


def test_ten_standard_deviations_at_equal_spreads_are_decided_and_nothing_else():
    """With an error over images of a third of the spread, beside all 15 measures."""
    values = {m.key.replace("/", "__"): around(0.0) for m in COMPARED}
    found = compared(seventeen(lambda i: values | {"test__elbo": around(3.0 * bool(i))}, error=0.1))
    assert found.level == PAGE_LEVEL / 15
    decided = found.decided(ELBO)
    assert [each.a.name for each in decided] == ["linear"] * 15
    assert not any(found.decided(m) for m in COMPARED if m is not ELBO)


@pytest.mark.parametrize("study", range(5))
def test_many_studies_at_once_are_decided_as_one(study: int):
    """`claims` says what Comparisons says of each."""
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(5, len(POINTS), 3, generator=generator, dtype=torch.float64)
    values += 30 * torch.rand(5, len(POINTS), 1, generator=generator, dtype=torch.float64)
    expected = claims(values, FAMILIES[ELBO])[study]
    names = [p.name for p in seventeen(lambda i: {"x": (0.0,)})]
    same = {m.key.replace("/", "__"): (0.0,) * 3 for m in COMPARED}
    found = compared(
        seventeen(
            lambda i: same | {"test__elbo": values[study, PLACES[names[i]]].tolist()}, error=0.0
        )
    )
    decided = {(PLACES[each.a.name], PLACES[each.b.name]) for each in found.decided(ELBO)}
    assert expected
    assert decided == {FAMILIES[ELBO][k] for k in expected}
