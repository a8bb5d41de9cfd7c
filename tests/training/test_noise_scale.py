"""The gradient-noise scale against gradients whose noise is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.parity import Layout, batches_at, on_ranks, tiny_llama
from training.loop_spec import AdaptiveBatchSpec, OptimizerSpec
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.noise_scale import NoiseState, noise_and_signal
from training.pretrain.optimizer import make_optimizer
from training.pretrain.parallel import parallelize
from training.pretrain.trainer import train_step


def test_noise_scale_of_known_gradients_is_recovered() -> None:
    """Gradients mu + noise in 50 dimensions, |mu|^2 = 2 and tr(S) = 100 x 0.5 = 50 a sample: scale 25."""
    rng = np.random.default_rng(0)
    mean = np.zeros(50)
    mean[0] = np.sqrt(2.0)
    state, b, B = NoiseState(), 8, 64
    for _ in range(3000):
        samples = mean + rng.normal(0, 1.0, size=(B, 50))
        small, large = samples[:b].mean(0), samples.mean(0)
        state = state.measured((b, float(small @ small)), (B, float(large @ large)), smoothing=0.999)
    assert state.noise == pytest.approx(50, rel=0.05)
    assert state.signal == pytest.approx(2.0, rel=0.05)
    assert state.scale == pytest.approx(25, rel=0.1)


def test_identical_samples_have_no_noise() -> None:
    assert noise_and_signal((2, 9.0), (8, 9.0)) == (0.0, 9.0)
    assert NoiseState().measured((2, 9.0), (8, 9.0), 0.9).scale is None


def test_formula_by_hand() -> None:
    """b 2 with 5, B 4 with 3: tr(S) = 2 / (1/2 - 1/4) = 8, |G|^2 = (12 - 10) / 2 = 1; 1 + 8/2 = 5, 1 + 8/4 = 3."""
    assert noise_and_signal((2, 5.0), (4, 3.0)) == (8.0, 1.0)


def test_means_are_of_noise_and_signal_and_never_of_their_ratio() -> None:
    state = NoiseState().measured((2, 5.0), (4, 3.0), 0.5).measured((2, 3.0), (4, 3.0), 0.5)
    assert (state.noise, state.signal) == (4.0, 2.0)
    assert state.scale == 2.0


@pytest.mark.parametrize(("scale", "ratio"), [(10.0, 1), (160.0, 2), (240.0, 2), (260.0, 3), (9999.0, 4)])
def test_batch_follows_the_scale_within_its_bounds(scale: float, ratio: int) -> None:
    state = NoiseState(noise=scale, signal=1.0, num_measured=1)
    assert state.adapted(100.0, AdaptiveBatchSpec(measure_every=1, max_ratio=4)).ratio == ratio


def test_batch_stays_before_the_first_measurement_and_without_a_signal() -> None:
    spec = AdaptiveBatchSpec(measure_every=1, max_ratio=4)
    assert NoiseState(ratio=3).adapted(100.0, spec).ratio == 3
    assert NoiseState(noise=5.0, signal=-1.0, num_measured=1, ratio=2).adapted(100.0, spec).ratio == 2


def test_step_in_which_the_noise_is_measured_is_the_step_without_it() -> None:
    """The first micro-batch is reduced by itself; DDP must not sum it over ranks once more with the rest."""

    def norm(ranks: Ranks, strategy: str, measure_noise: bool) -> float:
        layout = Layout("", 2, {"strategy": strategy}, 2)
        mesh = make_mesh(ranks, layout.spec.degrees(2))
        model = parallelize(tiny_llama(tied=True), mesh, layout.spec)
        optimizer = make_optimizer(model.module, OptimizerSpec())
        return train_step(
            model, optimizer, batches_at(0, mesh, layout), 1e-3, 1.0, measure_noise=measure_noise
        ).grad_norm

    def norms(ranks: Ranks) -> list[list[float]]:
        return [[norm(ranks, strategy, measured) for measured in (False, True)] for strategy in ("ddp", "fsdp")]

    for rank in on_ranks(norms, 2):
        for plain, measured in rank:
            assert measured == pytest.approx(plain, rel=1e-12)
