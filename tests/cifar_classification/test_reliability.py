import numpy as np
import pytest

from cifar_classification.reliability import FORMS, icc, pseudo_values, resampled

# Shrout and Fleiss (1979), table 2: six targets, four judges; the values are those of their table 4
EXAMPLE = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
PUBLISHED = (0.17, 0.29, 0.71, 0.44, 0.62, 0.91)


def anova(ratings):
    """The mean squares by plain sums over the entries: targets, judges, within targets, residual."""
    n, k = len(ratings), len(ratings[0])
    mean = sum(map(sum, ratings)) / (n * k)
    rows = [sum(row) / k for row in ratings]
    columns = [sum(row[j] for row in ratings) / n for j in range(k)]
    targets = sum((rows[i] - mean) ** 2 for i in range(n) for _ in range(k)) / (n - 1)
    judges = sum((columns[j] - mean) ** 2 for _ in range(n) for j in range(k)) / (k - 1)
    within = sum((ratings[i][j] - rows[i]) ** 2 for i in range(n) for j in range(k)) / (n * (k - 1))
    residual = sum((ratings[i][j] - rows[i] - columns[j] + mean) ** 2 for i in range(n) for j in range(k))
    return targets, judges, within, residual / ((n - 1) * (k - 1))


def test_the_published_example():
    assert [round(value, 2) for value in icc(EXAMPLE).values()] == list(PUBLISHED)
    assert tuple(icc(EXAMPLE)) == FORMS


@pytest.mark.parametrize("k", [2, 5])
def test_the_forms_follow_from_a_plain_analysis_of_variance(k):
    draw = np.random.default_rng(k)
    ratings = draw.normal(size=(40, 1)) + draw.normal(size=(1, k)) + draw.normal(size=(40, k))
    targets, judges, within, residual = anova(ratings.tolist())
    n = len(ratings)
    expected = {
        "ICC(1,1)": (targets - within) / (targets + (k - 1) * within),
        "ICC(2,1)": (targets - residual) / (targets + (k - 1) * residual + k * (judges - residual) / n),
        "ICC(3,1)": (targets - residual) / (targets + (k - 1) * residual),
        "ICC(1,k)": 1 - within / targets,
        "ICC(2,k)": (targets - residual) / (targets + (judges - residual) / n),
        "ICC(3,k)": 1 - residual / targets,
    }
    assert icc(ratings) == pytest.approx(expected, rel=1e-10)


def test_known_variances_are_found():
    draw = np.random.default_rng(0)
    image, run, noise = 2.0, 1.0, 1.0  # variances
    n, k = 4000, 60
    ratings = np.sqrt(image) * draw.normal(size=(n, 1)) + np.sqrt(noise) * draw.normal(size=(n, k))
    offsets = draw.normal(size=(1, k))
    ratings += np.sqrt(run) * (offsets - offsets.mean()) / offsets.std()
    found = icc(ratings)
    # 4000 images: the variance of the images, the least known, is off by about 2 %
    assert found["ICC(2,1)"] == pytest.approx(image / (image + run + noise), rel=0.04)
    assert found["ICC(3,1)"] == pytest.approx(image / (image + noise), rel=0.04)


def test_a_constant_offset_counts_in_the_second_form_and_not_in_the_third():
    one = np.arange(10.0)
    found = icc(np.stack([one, one + 3], 1))
    assert found["ICC(3,1)"] == 1 and found["ICC(2,1)"] < 0.9
    assert set(icc(np.stack([one, one], 1)).values()) == {1.0}


def test_nothing_to_compare():
    assert all(np.isnan(value) for value in icc(np.ones((5, 3))).values())
    for shape in [(5, 1), (1, 5), (5,)]:
        with pytest.raises(ValueError, match="at least two of each"):
            icc(np.ones(shape))


def test_resampling_is_repeatable_and_around_the_value():
    draw = np.random.default_rng(1)
    steady = draw.normal(size=(500, 1)) + 0.5 * draw.normal(size=(500, 3))
    noisy = draw.normal(size=(500, 1)) + 2.0 * draw.normal(size=(500, 3))
    values = resampled(steady)
    assert np.array_equal(values, resampled(steady))
    assert values.min() < icc(steady)["ICC(2,1)"] < values.max()
    assert np.quantile(resampled(steady, noisy), 0.025) > 0


def test_jackknife_of_a_mean_gives_back_the_columns():
    ratings = np.random.default_rng(0).normal(size=(5, 4))
    assert list(pseudo_values(np.mean, ratings).values()) == pytest.approx(ratings.mean(0), abs=1e-12)
