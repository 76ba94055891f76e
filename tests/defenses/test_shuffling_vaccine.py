"""The Shuffling Vaccine: what is permuted, the shared prefix, suspicion, penalty, weights, and Algorithm 2."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.defenses import shuffling_vaccine as sv
from abd_jax.defenses.shuffling_vaccine import Vaccine, VaccineConfig
from tests import networks, reference

CLASSES = 4
forward = jax.jit(lambda network, images: network(images))
shuffled_logits = jax.jit(lambda network, permutations, forward: sv.shuffled_logits(network, permutations, forward))


def key(seed=0):
    return jax.random.key(seed)


@functools.cache
def teacher(name="wrn-10-1"):
    return networks.network(name, 1)


@functools.cache
def drawn(name="wrn-10-1", kernels=5, copies=3, seed=0):
    return sv.draw(key(seed), teacher(name), VaccineConfig(kernels=kernels, copies=copies))


def vaccine(permutations=None, threshold=-1.0, enabled=1.0):
    permutations = permutations or {"unused": jnp.zeros((1, 2), jnp.int32)}
    scalars = (jnp.asarray(value, jnp.float32) for value in (threshold, 0.1))
    return Vaccine(permutations, *scalars, jnp.asarray(1, jnp.int32), jnp.asarray(enabled, jnp.float32))


# --- the permutations


@pytest.mark.parametrize(("name", "kernels"), [("wrn-16-2", 5), ("wrn-16-2", 1), ("wrn-10-1", 8)])
def test_every_copy_has_a_permutation_for_each_of_the_last_kernels(name, kernels):
    orders = drawn(name, kernels)
    assert tuple(orders) == teacher(name).module.kernels[-kernels:]
    weights = reference.flat(teacher(name).params)
    for kernel, order in orders.items():
        channels = weights[f"{kernel}/kernel"].shape[2]
        np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(channels), (3, 1)))


def test_copies_and_kernels_are_permuted_independently():
    orders = {kernel: np.asarray(order) for kernel, order in drawn("wrn-16-2", 5).items()}
    rows = [tuple(row) for order in orders.values() for row in order]
    assert len(set(rows)) == 15
    twins = [order for order in orders.values() if order.shape[1] == 128]  # kernels with as many input channels
    assert len(twins) == 3 and all((twins[0] != other).any(axis=1).all() for other in twins[1:])


def test_shuffling_touches_the_last_kernels_and_nothing_else():
    network, orders = teacher("wrn-16-2"), drawn("wrn-16-2", 5)
    before = reference.flat(network.variables)
    for copy in range(3):
        after = reference.flat(sv.shuffle(network, orders, copy).variables)
        assert set(after) == set(before)
        changed = {path for path in before if not np.array_equal(before[path], after[path])}
        assert changed == {f"params/{kernel}/kernel" for kernel in network.module.kernels[-5:]}
        for kernel, order in orders.items():
            path = f"params/{kernel}/kernel"
            np.testing.assert_array_equal(after[path], before[path][:, :, np.asarray(order[copy]), :])


def test_a_key_is_a_draw():
    chex.assert_trees_all_equal(drawn(seed=3), sv.draw(key(3), teacher(), VaccineConfig()))
    assert all((a != b).any() for a, b in zip(drawn(seed=3).values(), drawn(seed=4).values(), strict=True))


def test_more_kernels_than_there_are():
    with pytest.raises(ValueError, match=r"vaccine.kernels 9: this teacher has 8 kernels that can be shuffled"):
        sv.draw(key(), teacher(), VaccineConfig(kernels=9))


def narrow(channels):
    """A stand-in for a teacher whose last kernel has few input channels."""
    network = networks.tiny(shape=(4, 4, 1))
    kernel = jnp.zeros((3, 3, channels, 4))
    return network.replace(
        variables={"params": {"last": {"kernel": kernel}}}, module=type("Module", (), {"kernels": ("conv1", "last")})
    )


def test_a_kernel_of_one_input_channel_cannot_be_shuffled():
    with pytest.raises(ValueError, match="a kernel of one input channel has only the identity permutation"):
        sv.draw(key(), narrow(1), VaccineConfig(kernels=1))


def test_a_draw_of_identities_only_is_an_error():
    config, outcomes = VaccineConfig(kernels=1, copies=1), set()
    for seed in range(8):
        try:
            order = sv.draw(key(seed), narrow(2), config)["last"]
            outcomes.add(tuple(np.asarray(order)[0].tolist()))
        except ValueError as error:
            assert "only identity permutations were drawn" in str(error)
            outcomes.add("refused")
    assert outcomes == {(1, 0), "refused"}


# --- T~


@pytest.mark.parametrize(("name", "kernels"), [("wrn-16-2", 5), ("wrn-10-1", 1), ("wrn-10-1", 3), ("wrn-10-1", 8)])
def test_the_shared_prefix_equals_full_passes(name, kernels):
    network, orders, images = teacher(name), drawn(name, kernels), networks.images()
    own = forward(network, images)
    passes = [forward(sv.shuffle(network, orders, copy), images).logits for copy in range(3)]
    assert min(np.abs(copy - own.logits).max() for copy in passes) > 0.1  # each copy is another network
    result = shuffled_logits(network, orders, own)
    np.testing.assert_allclose(result, np.mean(passes, axis=0), rtol=1e-5, atol=1e-5)


def shuffled_by_hand(network, orders, images):
    """The mean logits of the copies, in float64 NumPy."""
    copies = len(next(iter(orders.values())))
    total = 0
    for copy in range(copies):
        params = jax.tree.map(np.array, network.params)
        for name, order in orders.items():
            block, kernel = name.split("/")
            params[block][kernel]["kernel"] = params[block][kernel]["kernel"][:, :, np.asarray(order[copy])]
        variables = {"params": params, "batch_stats": network.variables["batch_stats"]}
        total += reference.wide_resnet(variables, 10, 1, images, network.mean, network.std).logits / copies
    return total


def test_the_ensemble_against_numpy():
    network, orders, images = teacher(), drawn(kernels=3), networks.images()
    result = shuffled_logits(network, orders, forward(network, images))
    np.testing.assert_allclose(result, shuffled_by_hand(network, orders, images), rtol=1e-3, atol=1e-4)


# --- suspicion, penalty, weights on logits

LOGITS = np.random.default_rng(0).normal(0, 2, (8, CLASSES)).astype(np.float32)
SHUFFLED = (LOGITS + np.random.default_rng(1).normal(0, [[0.1]] * 2 + [[2.0]] * 6, LOGITS.shape)).astype(np.float32)
KL = reference.kl(LOGITS, SHUFFLED)


def suspicious(config, threshold=-1.0):
    phi = sv.suspicion(config, vaccine(threshold=threshold), jnp.asarray(LOGITS), jnp.asarray(SHUFFLED)[None])
    return np.asarray(phi)


def test_log_kl_against_numpy():
    np.testing.assert_allclose(sv.log_kl(jnp.asarray(LOGITS), jnp.asarray(SHUFFLED)), np.log10(KL), rtol=1e-4)
    assert sv.log_kl(jnp.asarray(LOGITS), jnp.asarray(LOGITS)) == pytest.approx(np.full(8, -12.0))


def test_suspicion_by_argmax():
    expected = LOGITS.argmax(axis=1) == SHUFFLED.argmax(axis=1)
    assert 0 < expected.sum() < 8
    np.testing.assert_array_equal(suspicious(VaccineConfig(suspicion="argmax")), expected.astype(np.float32))


def test_suspicion_by_the_threshold_of_the_selection():
    threshold = float(np.sort(np.log10(KL))[2:4].mean())
    expected = np.log10(KL) < threshold
    assert expected.sum() == 3
    np.testing.assert_array_equal(suspicious(VaccineConfig(suspicion="threshold"), threshold), expected)


@pytest.mark.parametrize("deviations", [0.0, 1.0, 100.0])
def test_suspicion_by_outliers_of_the_batch(deviations):
    values = np.log10(KL)
    median = np.median(values)
    expected = values < median - deviations * 1.4826 * np.median(np.abs(values - median))
    assert expected.sum() == {0.0: 4, 1.0: 2, 100.0: 0}[deviations]
    np.testing.assert_array_equal(suspicious(VaccineConfig(suspicion="outlier", deviations=deviations)), expected)


PHI = np.array([1, 0, 1, 0, 0, 1, 0, 0], np.float32)


@pytest.mark.parametrize("reduction", ["class_mean", "sum"])
@pytest.mark.parametrize("normalize", ["masked", "batch"])
@pytest.mark.parametrize("phi", [PHI, 0 * PHI, np.eye(8, dtype=np.float32)[0]], ids=["some", "none", "one"])
def test_penalty_against_numpy(reduction, normalize, phi):
    config = VaccineConfig(alpha=0.3, reduction=reduction, normalize=normalize)
    kl = KL / CLASSES if reduction == "class_mean" else KL
    expected = -0.3 * (phi * kl).sum() / (max(phi.sum(), 1) if normalize == "masked" else 8)
    result = sv.penalty(config, jnp.asarray(phi), jnp.asarray(LOGITS), jnp.asarray(SHUFFLED))
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_minimizing_the_penalty_makes_the_divergence_grow_through_both_networks():
    config = VaccineConfig(alpha=1.0, reduction="sum")
    gradient = jax.grad(sv.penalty, argnums=(2, 3))
    by_teacher, by_shuffled = gradient(config, jnp.asarray(PHI), jnp.asarray(LOGITS), jnp.asarray(SHUFFLED))
    p, q = reference.softmax(LOGITS), reference.softmax(SHUFFLED)
    difference = reference.log_softmax(LOGITS) - reference.log_softmax(SHUFFLED)
    share = PHI[:, None] / PHI.sum()
    np.testing.assert_allclose(by_shuffled, -share * (q - p), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(by_teacher, -share * p * (difference - KL[:, None]), rtol=1e-3, atol=1e-6)
    for step_p, step_q in ((1, 0), (0, 1)):
        moved = reference.kl(LOGITS - step_p * np.asarray(by_teacher), SHUFFLED - step_q * np.asarray(by_shuffled))
        assert (moved[PHI == 1] > KL[PHI == 1]).all()
        np.testing.assert_allclose(moved[PHI == 0], KL[PHI == 0])


# --- the two screens


def screened(screen, config, given=None, images=None):
    """The screening of a batch whose T and T~ have `LOGITS` and `SHUFFLED` as logits."""
    batch = networks.images(0, 8) if images is None else images
    fake = networks.tiny()
    own = forward(fake, networks.images(0, 8, (4, 4, 1))).replace(logits=jnp.asarray(LOGITS))
    return screen(config, given or vaccine(), fake)(batch, own)


@pytest.fixture
def made_up(monkeypatch):
    """T~ has the logits `SHUFFLED`."""
    monkeypatch.setattr(sv, "copies_logits", lambda *_: jnp.asarray(SHUFFLED)[None])


AGREE = (LOGITS.argmax(axis=1) == SHUFFLED.argmax(axis=1)).astype(np.float64)


def test_the_student_has_no_weights_unless_asked(made_up):
    result = screened(sv.student_screen, VaccineConfig())
    np.testing.assert_array_equal(result.weights, np.ones(8))
    assert result.penalty == 0


def test_the_papers_weights(made_up):
    result = screened(sv.student_screen, VaccineConfig(student_weights="paper", suspicious_weight=0.2))
    np.testing.assert_allclose(result.weights, 1 - AGREE + 0.2 * AGREE, rtol=1e-6)
    assert result.penalty == 0
    np.testing.assert_allclose(result.metrics["suspicious"], AGREE.mean())


def test_the_released_weights_are_group_means(made_up):
    """mean(weights · loss) = mean over the trusted − 0.1 · mean over the suspicious: ascent on the latter."""
    result = screened(sv.student_screen, VaccineConfig(student_weights="released"))
    values = np.random.default_rng(2).uniform(size=8)
    expected = values[AGREE == 0].mean() - 0.1 * values[AGREE == 1].mean()
    np.testing.assert_allclose((np.asarray(result.weights) * values).mean(), expected, rtol=1e-5)


@pytest.mark.parametrize(("shuffled", "weights"), [(LOGITS, np.full(8, -0.1)), (-LOGITS, np.ones(8))])
def test_the_released_weights_of_a_single_group(monkeypatch, shuffled, weights):
    monkeypatch.setattr(sv, "copies_logits", lambda *_: jnp.asarray(shuffled)[None])
    result = screened(sv.student_screen, VaccineConfig(student_weights="released"))
    np.testing.assert_allclose(result.weights, weights, rtol=1e-6)


def test_the_generator_is_given_the_penalty(made_up):
    config = VaccineConfig(alpha=0.3, class_balance=0.02)
    result = screened(sv.generator_screen, config)
    mean = reference.softmax(LOGITS).mean(axis=0)
    expected = -0.3 * (AGREE * KL).sum() / CLASSES / AGREE.sum() + 0.02 * (mean * np.log(mean)).sum()
    np.testing.assert_allclose(result.penalty, expected, rtol=1e-4)
    np.testing.assert_array_equal(result.weights, np.ones(8))
    np.testing.assert_allclose(result.metrics["suspicious"], AGREE.mean())


def test_the_generator_has_weights_if_asked(made_up):
    result = screened(sv.generator_screen, VaccineConfig(generator_weights=True, suspicious_weight=0.0))
    np.testing.assert_allclose(result.weights, 1 - AGREE, atol=1e-7)


@pytest.mark.parametrize("screen", [sv.generator_screen, sv.student_screen])
def test_a_vaccine_that_is_off_does_nothing(made_up, screen):
    config = VaccineConfig(generator_weights=True, student_weights="paper", class_balance=1.0)
    result = screened(screen, config, vaccine(enabled=0.0))
    np.testing.assert_array_equal(result.weights, np.ones(8))
    assert result.penalty == 0


def test_the_screen_is_differentiated_through_both_networks_down_to_the_images():
    """Along one direction in image space, against central differences in float64 NumPy."""
    network, orders, images = teacher(), drawn(kernels=2), networks.images(1, 3)
    config = VaccineConfig(alpha=1.0, reduction="sum", suspicion="threshold", class_balance=0.5)
    screen = sv.generator_screen(config, vaccine(orders, threshold=100.0), network)  # everyone is suspicious

    @jax.jit
    @jax.value_and_grad
    def penalty(images):
        return screen(images, network(images)).penalty

    def by_hand(images):
        own = reference.wide_resnet(network.variables, 10, 1, images, network.mean, network.std).logits
        kl, mean = reference.kl(own, shuffled_by_hand(network, orders, images)), reference.softmax(own).mean(axis=0)
        return -kl.mean() + 0.5 * (mean * np.log(mean)).sum()

    value, gradient = penalty(images)
    x, direction = np.asarray(images, np.float64), np.random.default_rng(0).normal(size=images.shape)
    np.testing.assert_allclose(value, by_hand(x), rtol=1e-3)
    slope = (by_hand(x + 1e-6 * direction) - by_hand(x - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose((np.asarray(gradient, np.float64) * direction).sum(), slope, rtol=5e-3)


# --- Algorithm 2

BATCHES = tuple(networks.images(seed, 6) for seed in (10, 11))


def select(config, seed=5, network=None):
    return sv.select(key(seed), network or teacher(), config, lambda index: BATCHES[index], len(BATCHES))


def statistics(values, deviations):
    threshold = values.mean() - deviations * values.std()
    return threshold, np.mean(values < threshold)


@functools.cache
def refused():
    """No draw has a tail of 90 %, so all are made."""
    return select(VaccineConfig(kernels=2, tail=0.9, deviations=0.5, trials=4))


def test_every_trial_starts_from_the_pristine_teacher():
    network, images = teacher(), np.concatenate(BATCHES)
    own = reference.wide_resnet(network.variables, 10, 1, images, network.mean, network.std).logits
    config = VaccineConfig(kernels=2)
    _, history = refused()
    assert history.shape == (4, 12)
    for trial, values in enumerate(history):
        orders = sv.draw(jax.random.fold_in(key(5), trial), network, config)
        expected = np.log10(reference.kl(own, shuffled_by_hand(network, orders, images)))
        np.testing.assert_allclose(values, expected, atol=2e-3)


def test_a_vaccine_that_no_draw_suits_is_off():
    result, history = refused()
    assert result.enabled == 0 and result.trials == 4
    threshold, tail = statistics(history[-1], 0.5)
    np.testing.assert_allclose(result.threshold, threshold, rtol=1e-5)
    np.testing.assert_allclose(result.tail, tail)
    last = sv.draw(jax.random.fold_in(key(5), 3), teacher(), VaccineConfig(kernels=2))
    chex.assert_trees_all_equal(result.permutations, last)


def test_the_first_draw_with_a_tail_is_taken():
    """The bar is set just below the tail of the first draw that beats all before it."""
    tails = [statistics(values, 0.5)[1] for values in refused()[1]]
    chosen = next(trial for trial in range(1, 4) if tails[trial] > max(tails[:trial]))
    bar = max(tails[:chosen])  # equal is not enough
    result, history = select(VaccineConfig(kernels=2, tail=float(bar), deviations=0.5, trials=4))
    assert result.enabled == 1 and result.trials == chosen + 1
    np.testing.assert_array_equal(history, refused()[1][: chosen + 1])
    np.testing.assert_allclose(result.tail, tails[chosen])
    taken = sv.draw(jax.random.fold_in(key(5), chosen), teacher(), VaccineConfig(kernels=2))
    chex.assert_trees_all_equal(result.permutations, taken)


@pytest.fixture
def cheap(monkeypatch):
    """Draws are seen as they come, and T~ is made without a network."""
    seen = []

    def draw(key, network, config):
        seen.append(network)
        return {"rolled": jnp.full((1,), len(seen), jnp.int32)}

    monkeypatch.setattr(sv, "draw", draw)
    monkeypatch.setattr(sv, "shuffled_logits", lambda _, orders, own: own.logits * orders["rolled"].astype(jnp.float32))
    return seen


@pytest.mark.parametrize("trials", [1, 8])
def test_there_are_at_most_so_many_trials(cheap, trials):
    network = networks.tiny(shape=(8, 8, 1))
    result, history = select(VaccineConfig(deviations=100.0, trials=trials), network=network)
    assert result.enabled == 0 and result.trials == trials == len(history) == len(cheap)
    assert all(seen is network for seen in cheap)


def test_without_selection_the_first_draw_is_kept(cheap):
    result, history = select(VaccineConfig(deviations=100.0, select=False), network=networks.tiny(shape=(8, 8, 1)))
    assert result.enabled == 1 and result.trials == 1 == len(history) == len(cheap)


# --- settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"copies": 0}, "vaccine.copies 0: allowed are whole numbers from 1"),
        ({"kernels": 0}, "vaccine.kernels 0: allowed are whole numbers from 1"),
        ({"trials": -1}, "vaccine.trials -1: allowed are whole numbers from 1"),
        ({"alpha": -0.1}, "vaccine.alpha -0.1: allowed are numbers from 0"),
        ({"class_balance": float("nan")}, "vaccine.class_balance nan: allowed are numbers from 0"),
        ({"deviations": -3.0}, "vaccine.deviations -3.0: allowed are numbers from 0"),
        ({"suspicious_weight": -0.1}, "vaccine.suspicious_weight -0.1: allowed are numbers from 0"),
        ({"tail": 1.0}, r"vaccine.tail 1.0: allowed is \[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VaccineConfig(**options)


def test_a_vote_counts_each_copy_by_itself():
    copies = np.zeros((4, 3, 2), np.float32)
    copies[:, 0, 1] = 1.0  # all four copies say 1
    copies[0, 1, 1] = 1.0  # one of four says 1, though the mean of the logits is with the others
    copies[:, 1, 0] = [0, 2, 2, 2]
    copies[:, 2, 0] = 1.0  # none says 1
    logits = jnp.asarray([[0.0, 1.0]] * 3)
    for quorum, expected in ((0.25, [1, 1, 0]), (0.5, [1, 0, 0])):
        config = sv.VaccineConfig(suspicion="vote", quorum=quorum)
        np.testing.assert_array_equal(sv.suspicion(config, vaccine(), logits, jnp.asarray(copies)), expected)
