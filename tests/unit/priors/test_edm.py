import pytest
import torch

from densemble.priors.edm import EDM


def test_times_follow_the_published_schedule():
    process = EDM(center=torch.zeros(4, 3), sigma_max=80.0, sigma_min=0.002, rho=7.0)
    times = process.times(18)
    # Karras et al. 2022, Eq. 5, written out
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)] + [0.0]
    assert times == pytest.approx(expected)


def test_noise_has_the_covariance_of_its_factor(generator):
    factor = torch.linalg.cholesky(torch.tensor([[2.0, 0.6], [0.6, 1.0]]))
    process = EDM(center=torch.tensor([[1.0, 2, 3], [4, 5, 6]]), sigma_max=3.0, factor=factor)
    x = process.initial(20000, generator)
    assert torch.allclose(x.mean(0), process.center, atol=0.15)
    covariance = torch.einsum("kid,kjd->ij", x - process.center, x - process.center) / (3 * len(x))
    assert torch.allclose(covariance, 9 * factor @ factor.T, atol=0.4)


def test_precondition_is_tweedie_shift():
    factor = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    process = EDM(center=torch.zeros(2, 3), sigma_max=3.0, factor=factor)
    gradient = torch.ones(1, 2, 3)
    assert torch.allclose(process.precondition(gradient, 2.0)[0], 4 * factor @ factor.T @ gradient[0])


def test_churn_stops_at_its_floor(generator):
    process = EDM(center=torch.zeros(4, 3), sigma_max=3.0, churn=0.3, churn_min=0.5)
    seen = []

    def denoise(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    x = process.initial(1, generator)
    process.step(denoise, x, 1.0, 0.8, generator)
    process.step(denoise, x, 0.5, 0.4, generator)
    assert seen == [1.3, 0.5]


def test_impossible_levels_are_refused():
    with pytest.raises(ValueError, match="sigma_min"):
        EDM(center=torch.zeros(1, 3), sigma_max=1.0, sigma_min=2.0)
    with pytest.raises(ValueError, match="step"):
        EDM(center=torch.zeros(1, 3), sigma_max=1.0).times(0)
