"""Selection screened in bfloat16 gives what float32 gives, whatever it is shown.

Most problems here are sums that float32 makes without any rounding, so that there is one right answer, ties included;
bfloat16 rounds their operands.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfsae.functional import Above, BatchTopK, Selection, TopK, encode, screening
from hfsae.functional.screening import Candidates, Screen

quick = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """Screens whatever the CPU and however small the product is."""
    monkeypatch.setattr(screening, "has_bfloat16_units", lambda: True)
    for name in ("_LEAST_WIDTH", "_LEAST_FEATURES", "_LEAST_TOKENS"):
        monkeypatch.setattr(screening, name, 1)
    monkeypatch.setattr(screening, "_MOST_ACTIVE", 1.0)


@dataclass
class Problem:
    """Tokens and features, and which tokens were computed in float32 alone."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    alone: int = 0

    def pre(self, x: Tensor | None = None) -> Tensor:
        return torch.addmm(self.bias, self.x if x is None else x, self.weight.T)

    def screen(self) -> Screen:
        def in_float32(rows: Tensor) -> Iterator[Tensor]:
            self.alone += len(rows)
            for part in rows.split(3):
                yield self.pre(part)

        return Screen(self.x, self.weight, self.bias, in_float32)

    def screened(self, rule: Selection) -> Tensor:
        found = rule.screened(self.screen())  # type: ignore[attr-defined]
        if found is None:
            self.alone += len(self.x)
            return self.plain(rule)
        pattern, values = found
        return _dense(pattern.tokens, pattern.features, values, (len(self.x), len(self.weight)))

    def plain(self, rule: Selection) -> Tensor:
        pattern, values = rule.select(lambda: iter([self.pre()]), len(self.weight))
        return _dense(pattern.tokens, pattern.features, values, (len(self.x), len(self.weight)))


def _dense(tokens: Tensor, features: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """What is not selected is −1e38, so that a selected 0 counts."""
    assert len((tokens * shape[1] + features).unique()) == len(tokens), "an entry must not come twice"
    assert (tokens.diff() >= 0).all()
    return torch.full(shape, -1e38).index_put((tokens, features), values)


@st.composite
def exact_problems(draw: st.DrawFn) -> Problem:
    """Nine bits an operand: bfloat16 rounds them, float32 adds up 32 products of them without rounding."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n_tokens, d_in = draw(st.integers(1, 9)), draw(st.integers(1, 32))
    n_features = draw(st.sampled_from([1, 7, 63, 64, 65, 130, 500]))
    most = draw(st.sampled_from([1, 3, 511]))  # small whole numbers tie often

    def whole(*shape: int) -> Tensor:
        return torch.randint(-most, most + 1, shape, generator=generator).float()

    x, weight, bias = whole(n_tokens, d_in), whole(n_features, d_in), whole(n_features)
    if draw(st.booleans()):
        weight[n_features // 2 :] = weight[: n_features - n_features // 2].clone()  # equal features
    if draw(st.booleans()):
        x[draw(st.integers(0, n_tokens - 1))] = 0
    if draw(st.booleans()):
        bias.zero_()
    if draw(st.booleans()):
        bias -= 4 * most**2
    up, down = draw(st.sampled_from([(0, 0), (55, 0), (-35, 0), (40, -40), (-60, 60), (-20, -20)]))
    return Problem(x * 2.0**up, weight * 2.0**down, bias * 2.0 ** (up + down))


@st.composite
def rules(draw: st.DrawFn, problem: Problem) -> Selection:
    n_features = len(problem.weight)
    scale = problem.pre().abs().amax()
    k = draw(st.integers(1, min(n_features, draw(st.sampled_from([4, 500])))))
    level = problem.pre().flatten()[draw(st.integers(0, n_features - 1))]  # one that is met exactly
    each = torch.linspace(-1, 1, n_features) * scale
    return draw(
        st.sampled_from([TopK(k), BatchTopK(k), Above(0.0), Above(level), Above(each, margin=scale.item() / 8)])
    )


@quick
@given(st.data(), exact_problems())
def test_patterns_and_values_are_those_of_float32_ties_included(data: st.DataObject, problem: Problem):
    rule = data.draw(rules(problem))
    assert torch.equal(problem.screened(rule), problem.plain(rule)), rule


@quick
@given(st.data(), exact_problems(), st.sampled_from([torch.nan, torch.inf, -torch.inf, 3e38]))
def test_what_cannot_be_bounded_is_left_to_float32(data: st.DataObject, problem: Problem, spoilt: float):
    rule = data.draw(rules(problem))
    where = data.draw(st.sampled_from(["x", "weight", "bias"]))
    row = getattr(problem, where)
    row[data.draw(st.integers(0, len(row) - 1))] = spoilt
    found, expected = problem.screened(rule), problem.plain(rule)
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert problem.alone or (where, spoilt) == ("bias", -torch.inf)  # a feature that is active nowhere is no harm


@quick
@given(exact_problems(), st.sampled_from([0.0, 1.0, None]))
def test_float32_values_lie_within_the_bounds(problem: Problem, above: float | None):
    level = torch.linspace(-3, 3, len(problem.weight)) if above is None else above
    exact = problem.x.double() @ problem.weight.double().T + problem.bias.double() - level
    n_features = len(problem.weight)
    for chunk in problem.screen().chunks(level):
        rows = slice(chunk.first, chunk.first + len(chunk.made))
        error = chunk._error[:, None].expand(-1, n_features)
        seen = Candidates(torch.tensor(0), torch.tensor(0), chunk.made[:, :n_features], error)
        want = exact[rows] + chunk.raised_by
        # Of features that are active nowhere no more is said than that.
        matters = (seen.screened > 0) | (want > 0)
        assert (seen.lower <= want)[matters & error.isfinite()].all()
        assert (seen.upper >= want)[matters & error.isfinite()].all()


def planted(n_tokens: int = 200, d_in: int = 96, n_features: int = 1000, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(rows, d_in, generator=generator) for rows in (n_tokens, n_features))
    return Problem(x, torch.nn.functional.normalize(weight, dim=1), 0.1 * torch.randn(n_features, generator=generator))


RULES = {
    "topk": TopK(8),
    "batch_topk": BatchTopK(8),
    "above": Above(2.5),
    "each": Above(torch.linspace(2, 3, 1000), margin=0.25),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_of_ordinary_activations_nothing_is_computed_in_float32_alone(rule: Selection):
    problem = planted()
    found, expected = problem.screened(rule), problem.plain(rule)
    assert torch.equal(found > -1e38, expected > -1e38) and problem.alone == 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_only_the_tokens_that_need_it_are_computed_in_float32_alone(rule: Selection):
    problem = planted()
    problem.x[3] = torch.nan
    problem.x[70] = 0.0
    problem.x[150] *= 1e30
    problem.bias.zero_()  # so that all pre-activations of the token of zeros are equal
    found, expected = problem.screened(rule), problem.plain(rule)
    for row in (found, expected):
        row[150] *= 1e-30
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert 1 <= problem.alone <= 3


@pytest.mark.parametrize("rule", [RULES["batch_topk"], RULES["above"]], ids=["batch_topk", "above"])
def test_a_token_with_far_more_active_features_than_others_is_computed_alone(rule: Selection):
    # So are the first tokens of a text in GPT-2, many times as long as others.
    problem = planted()
    problem.x[[7, 120]] *= 50
    found, expected = problem.screened(rule), problem.plain(rule)
    assert torch.count_nonzero(expected[7] > -1e38) > 100, "more than a sixteenth of 1,000"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert problem.alone == 2


def test_once_most_tokens_of_a_chunk_cannot_be_bounded_the_others_are_not_tried(monkeypatch):
    monkeypatch.setattr(screening, "_TOKENS", 20)
    problem = planted()
    problem.x[:15] = torch.nan
    found, expected = problem.screened(TopK(8)), problem.plain(TopK(8))
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert problem.alone == 15 + 180


@pytest.mark.parametrize("never", [-1e3, -1e30, -torch.inf])
def test_features_that_are_active_nowhere_do_not_loosen_the_bound(never: float):
    problem = planted()
    problem.bias[::3] = never
    found, expected = problem.screened(TopK(8)), problem.plain(TopK(8))
    assert torch.equal(found > -1e38, expected > -1e38) and problem.alone == 0
    above = Above(torch.where(torch.arange(1000) % 3 == 0, -never, 2.0))
    problem = planted()
    assert torch.equal(problem.screened(above) > -1e38, problem.plain(above) > -1e38) and problem.alone == 0


@pytest.mark.parametrize("size", [1, 7, 64])
def test_chunks_of_any_size_give_the_same(monkeypatch, size: int):
    whole = {name: planted(50).screened(rule) for name, rule in RULES.items()}
    monkeypatch.setattr(screening, "_TOKENS", size)
    for name, rule in RULES.items():
        torch.testing.assert_close(planted(50).screened(rule), whole[name])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_encoding_gives_the_gradients_of_float32(monkeypatch, rule: Selection):
    def gradients() -> list[Tensor]:
        problem = planted(40)
        center = torch.full((96,), 0.1)
        x, weight, bias, center = (t.requires_grad_() for t in (problem.x, problem.weight, problem.bias, center))
        encode(x, weight, bias, center, rule, "sparse")[1].square().sum().backward()
        return [leaf.grad for leaf in (x, weight, bias, center)]  # type: ignore[misc]

    screened = gradients()
    monkeypatch.setattr(screening, "has_bfloat16_units", lambda: False)
    for ours, plain in zip(screened, gradients(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-3)


# -- the chooser ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("capabilities", "mkldnn", "allowed", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, True, "DEFAULT", True),
        ({"amx_bf16": True, "avx512_bf16": True}, True, "AVX512_CORE_AMX", True),
        ({"amx_bf16": True, "avx512_bf16": True}, True, "AVX512_CORE_BF16", False),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, True, "DEFAULT", False),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, True, "DEFAULT", True),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, True, "AVX512_CORE_BF16", True),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, True, "AVX512_CORE_VNNI", False),
        ({"avx512_f": True, "cpu_name": "AMD EPYC"}, True, "DEFAULT", False),
        ({"amx_bf16": True}, False, "DEFAULT", False),
    ],
)
def test_the_cpu_and_what_torch_may_use_of_it_decide(monkeypatch, capabilities, mkldnn, allowed, expected):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)  # torch 2.6 has none
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: mkldnn)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    screening.has_bfloat16_units.cache_clear()
    assert screening.has_bfloat16_units() is expected
    screening.has_bfloat16_units.cache_clear()


def test_rows_are_as_wide_as_the_units_of_the_cpu_want_them(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "DEFAULT")
    problem, found = planted(1), []
    for has_amx in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=has_amx: {"amx_bf16": able}, raising=False)
        found.append(problem.screened(TopK(3)))
        assert (screening._width_multiple(), problem.screen()._narrow_x.shape[1]) == (
            (32, 128) if has_amx else (8, 104)
        )
    assert torch.equal(*found)


def test_only_float32_is_screened_and_only_where_the_cpu_has_the_units(monkeypatch):
    x, weight = torch.zeros(4, 8), torch.zeros(16, 8)

    def load() -> float:
        return 4.0

    assert screening.pays(x, weight, load)
    assert not screening.pays(x.bfloat16(), weight.bfloat16(), load)
    assert not screening.pays(x.double(), weight.double(), load)
    monkeypatch.setattr(screening, "_MOST_ACTIVE", 0.2)
    assert not screening.pays(x, weight, load)
    monkeypatch.setattr(screening, "_MOST_ACTIVE", 0.3)
    assert screening.pays(x, weight, load)
    for name, more in (("_LEAST_WIDTH", 9), ("_LEAST_FEATURES", 17), ("_LEAST_TOKENS", 5)):
        monkeypatch.setattr(screening, name, more)
        assert not screening.pays(x, weight, load)
        monkeypatch.setattr(screening, name, 1)
    monkeypatch.setattr(screening, "has_bfloat16_units", lambda: False)
    assert not screening.pays(x, weight, load)
