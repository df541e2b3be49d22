"""What each model computes, sees and does not see."""

import math
from dataclasses import replace

import pytest
import torch

from harness.seeding import generator, seed_everything
from harness.solvers import solver_of
from latent_ode_mujoco import data, evaluation, models, tasks
from latent_ode_mujoco.experiment import LatentODE

SIZES = ["--latent", "4", "--recognition", "5", "--units", "8", "--layers", "1", "--gru-units", "6", "--samples", "2"]


def settings_of(model, *flags):
    return LatentODE().new_settings("--model", model, *SIZES, *flags)


def model_of(model, *flags, seed=0):
    settings = settings_of(model, *flags)
    seed_everything(seed)
    return models.build(settings, solver_of(settings))


@pytest.fixture(scope="module")
def batch(states):
    task = tasks.prepare(torch.from_numpy(states), "interpolation", 0, "cpu")
    return task.train.observe(slice(0, 6), 10, generator("cpu", 1))


def predict(model, batch):
    return model(batch, generator("cpu", 2))


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_predicts_all_targets_and_learns_with_all_its_weights(name, batch):
    model = model_of(name)
    prediction = predict(model, batch)
    samples = 2 if name in models.LATENT_ODES else 1
    assert prediction.mean.shape == (tasks.WINDOW, samples, 6, data.FEATURES)
    assert (prediction.divergence is None) == (name in models.ONE_STEP_AHEAD)
    log_density, _ = evaluation.likelihood(prediction, batch.targets, 0.1)
    evaluation.bound(log_density, prediction.divergence, 1.0).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", models.MODELS)
def test_no_model_sees_what_is_not_observed(name, states):
    task = tasks.prepare(torch.from_numpy(states), "interpolation", 0, "cpu")
    batch = task.train.observe(slice(0, 6), 10, generator("cpu", 1))
    observed = torch.zeros(6, tasks.WINDOW, dtype=torch.bool).scatter_(1, batch.index, True)
    altered = torch.where(observed[..., None], task.train.observable[:6], torch.nan)
    hidden = tasks.Split(altered, altered, 0).observe(slice(0, 6), 10, generator("cpu", 1))
    model = model_of(name)
    before, after = predict(model, batch), predict(model, hidden)
    assert torch.equal(before.mean, after.mean)
    # and everything that is observed is seen
    values = batch.values.clone().requires_grad_()
    seen = predict(model_of(name, *(["--repaired"] if name in models.ONE_STEP_AHEAD else [])),
                   replace(batch, values=values)).mean  # fmt: skip
    (gradient,) = torch.autograd.grad(seen[-1].sum(), values)
    # the last target lies behind all observations, but for a trajectory observed there
    assert (gradient[batch.index[:, -1] < tasks.WINDOW - 1].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", models.ONE_STEP_AHEAD)
def test_one_step_ahead_means_that_predictions_see_only_what_lies_before_them(name, batch):
    values = batch.values.clone().requires_grad_()
    means = predict(model_of(name, "--repaired"), replace(batch, values=values)).mean
    for target in (0, 17, 50, 99):
        (gradient,) = torch.autograd.grad(means[target].sum(), values, retain_graph=True, allow_unused=True)
        assert torch.equal(gradient.abs().sum(-1) > 0, batch.index < target)


@pytest.mark.parametrize("name", models.ONE_STEP_AHEAD)
def test_predictions_stand_still_between_observations(name, batch):
    means = predict(model_of(name, "--repaired"), batch).mean[:, 0]
    changes = (means.diff(dim=0) != 0).any(-1)  # from target t to t + 1
    for i in range(6):
        assert changes[:, i].nonzero().flatten().tolist() == [j for j in batch.index[i].tolist() if j < 99]


def test_the_recipes_rnn_copies_the_first_point_and_is_told_no_gap(batch):
    model = model_of("rnn", "--own-inputs", "0")
    means = predict(model, batch).mean[:, 0]
    first = batch.index[:, 0] == 0
    assert torch.equal(means[0], torch.where(first[:, None], batch.values[:, 0], 0.0))
    moved = replace(batch, index=batch.index // 2)  # the same observations in half the time
    assert torch.equal(predict(model, moved).mean[-1], means[None, -1])
    assert not torch.equal(predict(model_of("rnn", "--repaired"), moved).mean[-1],
                           predict(model_of("rnn", "--repaired"), batch).mean[-1])  # fmt: skip


def test_with_own_inputs_only_the_first_observation_is_seen(batch):
    values = batch.values.clone().requires_grad_()
    means = predict(model_of("rnn", "--own-inputs", "1"), replace(batch, values=values)).mean
    (gradient,) = torch.autograd.grad(means[-1].sum(), values)
    assert (gradient[:, 0] != 0).any()
    assert (gradient[:, 1:] == 0).all()


def test_the_state_of_rnn_decay_decays_exponentially_over_the_gap(batch):
    model = model_of("rnn-decay", "--repaired")
    with torch.no_grad():
        model.rate.weight.fill_(3.0)
        model.rate.bias.fill_(0.5)
        state, given = torch.ones(6, 4), []
        model.cell.register_forward_hook(lambda cell, inputs, output: given.append((inputs[1], output)))
        predict(model, batch)
    gaps = models.gaps_before(batch)
    for i in range(1, 10):
        state = given[i - 1][1]
        torch.testing.assert_close(given[i][0], state * torch.exp(-(3 * gaps[:, i : i + 1] + 0.5)))


def test_gaps_reach_back_to_time_zero(batch):
    gaps = models.gaps_before(batch)
    torch.testing.assert_close(gaps.cumsum(1), batch.times)
    torch.testing.assert_close(gaps[:, 0], batch.index[:, 0] / data.POINTS)


@pytest.mark.parametrize("name", ["rnn-vae", *models.LATENT_ODES])
def test_an_encoding_does_not_depend_on_batch_mates(name, batch):
    encoder = model_of(name).encoder
    alone = replace(batch, values=batch.values[2:3], index=batch.index[2:3])
    for together, single in zip(encoder(batch), encoder(alone)):
        torch.testing.assert_close(together[2:3], single)


def test_the_encoder_takes_euler_steps_on_each_gap():
    encoder = model_of("latent-ode", "--encoder-steps", "4").encoder
    encoder.field.network = torch.nn.Identity()  # the means grow like exp(t): Euler backwards on dm/dt = m
    mean, gap = torch.randn(6, 5), torch.rand(6, 1)
    torch.testing.assert_close(encoder.flow(mean, torch.zeros(6, 1)), mean)
    torch.testing.assert_close(encoder.flow(mean, gap), mean * (1 - gap / 4) ** 4)


def test_more_euler_steps_converge_to_the_solution_of_the_ode():
    encoder = model_of("latent-ode").encoder.double()
    mean = torch.randn(6, 5, dtype=torch.float64)
    gap = torch.ones(6, 1, dtype=torch.float64)
    exact = models.solve(encoder.field, mean, (1.0, 0.0), rtol=1e-10, atol=1e-10).ys[-1]
    errors = []
    for encoder.steps in (10, 20, 40):
        errors.append(float((encoder.flow(mean, gap) - exact).detach().abs().max()))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)


def test_the_fused_update_is_the_gru_of_the_recipe():
    update = models.GatedUpdate(5, 6)
    state, values = torch.rand(3, 2, 5), torch.randn(3, data.FEATURES)
    (prepared,) = update.prepare(values[None])

    def layer(inputs, outputs, of_input, of_state, rows):  # the two halves of a linear layer as one
        weight = torch.cat([of_state.weight[rows], of_input.weight[rows]], dim=1)
        hidden = torch.tanh(torch.nn.functional.linear(inputs, weight, of_input.bias[rows]))
        return outputs(hidden)

    mean, std = state.unbind(1)
    inputs = torch.cat([mean, std, values], dim=1)
    z = torch.sigmoid(layer(inputs, update.update, update.gates_input, update.gates_state, slice(0, 6)))
    r = torch.sigmoid(layer(inputs, update.reset, update.gates_input, update.gates_state, slice(6, 12)))
    inputs = torch.cat([mean * r, std * r, values], dim=1)
    new_mean, new_std = layer(inputs, update.new, update.new_input, update.new_state, slice(None)).chunk(2, dim=1)
    expected = torch.stack([(1 - z) * new_mean + z * mean, (1 - z) * new_std.abs() + z * std], dim=1)
    torch.testing.assert_close(update(state, prepared), expected)


def test_the_recipes_sizes():
    settings = LatentODE().new_settings()
    model = models.build(settings, solver_of(settings))
    shapes = [tuple(p.shape) for p in model.field.parameters()][::2]
    assert shapes == [(300, 15), (300, 300), (300, 300), (300, 300), (15, 300)]
    assert tuple(model.encoder.field.network[0].weight.shape) == (300, 30)
    assert tuple(model.encoder.head[0].weight.shape) == (100, 60)
    assert tuple(model.decoder.weight.shape) == (14, 15)
    assert settings["encoder_steps"] == 10  # 10 observations of 100 points: a step per point
    assert float(model.field.network[2].weight.detach().std()) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("flags", [[], ["--task", "extrapolation"]])
def test_the_latent_ode_starts_at_the_first_target_and_solves_all_of_them_at_once(flags, states):
    settings = settings_of("latent-ode", *flags)
    task = tasks.prepare(torch.from_numpy(states), settings["task"], 0, "cpu")
    batch = task.train.observe(slice(0, 4), settings["observed"], generator("cpu", 0))
    model, solves = model_of("latent-ode", *flags), []
    integrate = model.integrate
    model.integrate = lambda field, z, times: solves.append((z, times)) or integrate(field, z, times)
    with torch.no_grad():
        whole = predict(model, batch).mean
        ((z, times),) = solves
        assert torch.equal(times, torch.arange(batch.start, batch.start + len(batch.targets[0])).double() / data.POINTS)
        torch.testing.assert_close(whole[0], model.decoder(z))
        some = replace(batch, target_index=batch.target_index[5::7])
        torch.testing.assert_close(predict(model, some).mean, whole[5::7])
        also_first = replace(batch, target_index=batch.target_index[::7])
        torch.testing.assert_close(predict(model, also_first).mean, whole[::7])


def gradient_of(name, gradient, batch, *flags):
    model = model_of(name, "--gradient", gradient, *flags)
    prediction = predict(model, batch)
    log_density, _ = evaluation.likelihood(prediction, batch.targets, 0.1)
    evaluation.bound(log_density, prediction.divergence, 0.5).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", models.LATENT_ODES)
def test_aca_has_the_gradient_of_the_graph_of_the_accepted_steps(name, batch):
    exact = gradient_of(name, "direct", batch)
    torch.testing.assert_close(gradient_of(name, "aca", batch), exact, rtol=1e-5, atol=1e-6 * float(exact.abs().max()))


def test_per_sample_a_latent_state_does_not_feel_the_others(batch):
    """Each of the samples of each trajectory is solved as it is alone, and counted."""
    model = model_of("latent-ode", "--per-sample")
    z, times = torch.randn(2, 6, 4), torch.linspace(0, 1, 9)
    with torch.no_grad():
        solution = model.integrate(model.field, z, times)
        some = model.integrate(model.field, z[1:, [4, 2]], times)
    assert solution.ys.shape == (9, 2, 6, 4) and solution.stats.n_accepted.shape == (12,)
    torch.testing.assert_close(solution.ys[:, 1:, [4, 2]], some.ys, rtol=1e-5, atol=1e-6)  # in single precision
    assert torch.equal(solution.stats.n_accepted.reshape(2, 6)[1, [4, 2]], some.stats.n_accepted)
    tight = ["--rtol", "1e-6", "--atol", "1e-6"]
    few = replace(batch, targets=batch.targets[:, ::20], target_index=batch.target_index[::20])
    joint = gradient_of("latent-ode", "aca", few, *tight)
    own = gradient_of("latent-ode", "aca", few, "--per-sample", *tight)
    assert float((own - joint).norm() / joint.norm()) < 1e-3


@pytest.mark.parametrize("gradient", ["naive", "adjoint", "mali"])
def test_other_gradient_methods_converge_to_the_same(gradient, batch):
    # in single precision; mali has a solver of second order, whose steps become many
    tolerance = ["--rtol", "1e-4", "--atol", "1e-5"] if gradient == "mali" else ["--rtol", "1e-6", "--atol", "1e-6"]
    few = replace(batch, targets=batch.targets[:, ::20], target_index=batch.target_index[::20])
    exact = gradient_of("latent-ode", "direct", few, "--rtol", "1e-6", "--atol", "1e-6")
    found = gradient_of("latent-ode", gradient, few, *tolerance)
    assert float((found - exact).norm() / exact.norm()) < 1e-2


def test_a_vae_without_observed_change_repeats_itself_on_the_same_draw(batch):
    model = model_of("rnn-vae")
    whole = predict(model, batch).mean
    assert torch.equal(whole, predict(model, batch).mean)
    some = replace(batch, target_index=batch.target_index[3::9])
    torch.testing.assert_close(predict(model, some).mean, whole[3::9])


def test_divergence_likelihood_and_bound():
    mean, std = torch.randn(6, 4), torch.rand(6, 4) + 0.1
    z, divergence = models.sampled(mean, std, 5000, generator("cpu", 0))
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(z.std(0), std, rtol=0.1, atol=0)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).mean()
    torch.testing.assert_close(divergence, expected)

    means, targets = torch.randn(7, 3, 6, 2), torch.randn(6, 7, 2)
    log_density, error = evaluation.likelihood(models.Prediction(means), targets, 0.3)
    for sample in range(3):
        expected = normal(means[:, sample], 0.3).log_prob(targets.transpose(0, 1)).mean()
        torch.testing.assert_close(log_density[sample], expected)
    torch.testing.assert_close(error.mean(), ((means - targets.transpose(0, 1)[:, None]) ** 2).mean())

    one = evaluation.bound(log_density[:1], divergence, 0.5)
    torch.testing.assert_close(one, 0.5 * divergence - log_density[0])
    several = evaluation.bound(log_density, divergence, 0.5)
    torch.testing.assert_close(several, -(log_density - 0.5 * divergence).exp().mean().log())
    assert math.isclose(float(evaluation.bound(log_density, None, 1.0)), -float(log_density.mean()), rel_tol=1e-6)
