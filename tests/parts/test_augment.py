"""Augmentation: what each change does to an image, that it is the example's own affair, and that evaluation never sees it."""
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

import fedjax_lab
from fedjax_lab import keys, models
from fedjax_lab.parts.transforms.augment import AUGMENTATIONS, augmentation, augmented, turned, two_views, weak_strong

CHAINS = ["crop:3+flip", "rotate:40,mode=edge+cutout:4", "crop:2,mode=reflect+brightness:0.8+contrast:0.8+noise:0.2"]  # every change once
KEY = jax.random.key(3)


def images(count=6, height=9, width=7, channels=3, seed=0, dtype=np.float32):
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.integers(0, 256, (count, height, width, channels), np.uint8)) if dtype == np.uint8 else jnp.asarray(
        draw.random((count, height, width, channels), np.float32))


def batch_of(x, **more):
    return {"x": x, "y": jnp.arange(len(x)) % 3, "mask": jnp.ones(len(x), bool), **more}


def changed(text, x, key=KEY):
    return np.asarray(compiled(text)(key, x))


@functools.cache
def compiled(text):
    return jax.jit(lambda key, x: augmentation(text)(key, {"x": x})["x"])


def copies(count, image):
    return jnp.broadcast_to(jnp.asarray(image, jnp.float32), (count, *np.shape(image)))


@pytest.mark.parametrize("text", ["", *(f"{name}:0" for name in AUGMENTATIONS)])
def test_nothing_of_anything_changes_nothing(text):
    np.testing.assert_array_equal(changed(text, images()), images())


def test_bytes_become_floats():
    x = images(dtype=np.uint8)
    np.testing.assert_allclose(changed("", x), np.asarray(x) / 255, rtol=1e-6)


@pytest.mark.parametrize("text", CHAINS)
def test_images_stay_images_and_the_rest_of_the_batch_stays(text):
    floats, bytes_ = images(seed=1), images(seed=1, dtype=np.uint8)
    batch = batch_of(bytes_)
    out = jax.eval_shape(augmentation(text), KEY, batch)
    assert {k: (v.shape, v.dtype) for k, v in out.items()} == {k: (v.shape, jnp.float32 if k == "x" else v.dtype) for k, v in batch.items()}
    whole = changed(text, bytes_)
    assert whole.min() >= 0 and whole.max() <= 1
    np.testing.assert_allclose(whole, changed(text, bytes_.astype(jnp.float32) / 255), atol=1e-6)
    once = changed(text, floats)
    np.testing.assert_array_equal(once, changed(text, floats))
    assert (once != changed(text, floats, jax.random.key(4))).any() and (once != floats).any()


@pytest.mark.parametrize("text", CHAINS)
def test_an_example_is_changed_by_the_key_and_its_place_alone(text):
    """Whatever else the batch holds, in whatever order, and however long it is."""
    x = images(9)
    alone = np.stack([changed(text, copies(len(x), x[i])) for i in range(len(x))])  # [image, place]
    np.testing.assert_array_equal(changed(text, x), alone[np.arange(9), np.arange(9)])
    order = np.random.default_rng(0).permutation(9)
    np.testing.assert_array_equal(changed(text, x[order]), alone[order, np.arange(9)])
    np.testing.assert_array_equal(changed(text, x.at[4:].set(jnp.nan))[:4], changed(text, x)[:4])
    np.testing.assert_allclose(changed(text, x[:4]), changed(text, x)[:4], rtol=1e-6, atol=1e-7)
    assert len(np.unique(alone[0].round(5), axis=0)) > 1  # and places differ


def test_clients_side_by_side_are_clients_alone_also_in_a_loop():
    text = "crop:2+flip+rotate:20+noise:0.1+cutout:3"
    augment, x = augmentation(text), jnp.stack([images(seed=s) for s in range(3)])
    several = jax.random.split(KEY, 3)
    one = np.stack([changed(text, x[i], several[i]) for i in range(3)])
    together = jax.jit(jax.vmap(lambda key, x: augment(key, {"x": x})["x"]))(several, x)
    np.testing.assert_allclose(together, one, rtol=1e-5, atol=1e-6)
    looped = jax.jit(lambda: jax.lax.fori_loop(0, 3, lambda t, out: out.at[t].set(augment(several[t], {"x": x[t]})["x"]), jnp.zeros_like(x)))()
    np.testing.assert_allclose(looped, one, rtol=1e-5, atol=1e-6)


def test_a_flip_is_its_own_inverse_and_happens_to_its_share():
    x = images(400, 3, 2, 1)
    mirrored = changed("flip:1", x)
    np.testing.assert_array_equal(mirrored, np.asarray(x)[:, :, ::-1])
    np.testing.assert_array_equal(changed("flip:1", mirrored), x)
    share = (changed("flip:0.25", x) == mirrored).all((1, 2, 3))
    assert ((changed("flip:0.25", x) == x).all((1, 2, 3)) != share).all()
    assert stats.binomtest(int(share.sum()), 400, 0.25).pvalue > 1e-4


@pytest.mark.parametrize("mode, numpys", [("zero", "constant"), ("reflect", "reflect"), ("edge", "edge")])
def test_a_crop_is_a_window_of_the_padded_image_and_all_windows_are_alike(mode, numpys):
    x, p = np.asarray(images(1, 5, 4, 2))[0], 2
    wide = np.pad(x, ((p, p), (p, p), (0, 0)), numpys)
    windows = np.stack([wide[i:i + 5, j:j + 4] for i in range(2 * p + 1) for j in range(2 * p + 1)])
    found = changed(f"crop:{p},mode={mode}", copies(1500, x))
    same = (found[:, None] == windows).all((2, 3, 4))
    assert (same.sum(1) == 1).all() and stats.chisquare(same.sum(0)).pvalue > 1e-4


turn = jax.jit(turned, static_argnums=2)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([(2, 5), (7, 7), (12, 9)]), st.floats(-400, 400), st.sampled_from([("zero", "grid-constant"), ("edge", "nearest")]))
def test_a_turn_is_scipys(shape, degrees, mode):
    x = np.asarray(images(1, *shape, 2))[0]
    want = ndimage.rotate(x.astype(np.float64), degrees, reshape=False, order=1, mode=mode[1])
    np.testing.assert_allclose(turn(jnp.asarray(x), degrees, mode[0]), want, atol=2e-4)


def test_quarter_turns_and_angles():
    x = images(1, 8, 8)[0]
    for quarters in range(4):
        np.testing.assert_allclose(turn(x, 90.0 * quarters, "zero"), np.rot90(x, quarters), atol=1e-5)
    ramp = np.broadcast_to(np.linspace(0, 1, 9)[None, :, None], (9, 9, 1))
    turns = changed("rotate:30", copies(1000, ramp))[:, :, :, 0]
    right, down = turns[:, 4, 5] - turns[:, 4, 3], turns[:, 5, 4] - turns[:, 3, 4]
    angle = np.rad2deg(np.arctan2(down, right))
    assert stats.kstest(angle, stats.uniform(-30, 60).cdf).pvalue > 1e-4


def test_noise_is_normal_and_fresh_everywhere():
    x = np.full((40, 16, 16, 2), 0.5, np.float32)
    z = (changed("noise:0.1", x) - x) / 0.1
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-4
    flat = np.corrcoef(z.reshape(40, -1))[np.triu_indices(40, 1)]
    assert np.abs(flat).max() < 5 / np.sqrt(512)
    assert abs(np.mean(z[:, :, 1:] * z[:, :, :-1])) < 5 / np.sqrt(z.size)
    strong = changed("noise:3", x)
    np.testing.assert_allclose([(strong == 0).mean(), (strong == 1).mean()], stats.norm.cdf(-0.5 / 3), atol=0.02)


def test_brightness_and_contrast_are_uniform_factors():
    x = np.asarray(images(1, 6, 5, 3))[0] * 0.2 + 0.35
    bright = changed("brightness:0.5", copies(800, x)) / x
    assert np.ptp(bright, (1, 2, 3)).max() < 1e-5
    spread = changed("contrast:0.5", copies(800, x))
    np.testing.assert_allclose(spread.mean((1, 2, 3)), x.mean(), rtol=1e-5)
    for factor in (bright.mean((1, 2, 3)), spread.std((1, 2, 3)) / x.std()):
        assert stats.kstest(factor, stats.uniform(0.5, 1).cdf).pvalue > 1e-4
    assert changed("contrast:1", copies(50, [[[0.0]], [[1.0]]])).max() == 1  # cut where a factor would leave [0, 1]


@pytest.mark.parametrize("side", [3, 4])
def test_cutout_is_a_square_about_a_uniform_center(side):
    gray = changed(f"cutout:{side},fill=0.25", np.ones((3000, 7, 6, 2), np.float32)) == 0.25
    assert (gray.any(3) == gray.all(3)).all()
    hidden = gray[..., 0]
    low = side // 2
    squares = [(i, j) for i in range(7) for j in range(6)]
    masks = np.zeros((42, 7, 6), bool)
    for k, (i, j) in enumerate(squares):
        masks[k, max(i - low, 0):max(i - low + side, 0), max(j - low, 0):max(j - low + side, 0)] = True
    same = (hidden[:, None] == masks).all((2, 3))
    assert (same.sum(1) == 1).all() and stats.chisquare(same.sum(0)).pvalue > 1e-4


def test_changes_of_any_numbers():
    x = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    noise = changed("jitter:0.5", x) - x
    assert stats.kstest(noise.ravel(), "norm", (0, 0.5)).pvalue > 1e-4
    factor = changed("scale:0.3", x) / x
    np.testing.assert_allclose(factor, np.broadcast_to(factor[:, :1], factor.shape), rtol=1e-5)
    assert stats.kstest(factor[:, 0], "norm", (1, 0.3)).pvalue > 1e-4
    hidden = changed("hide:0.25", x)
    assert stats.binomtest(int((hidden == 0).sum()), x.size, 0.25).pvalue > 1e-4
    np.testing.assert_array_equal(hidden[hidden != 0], x[hidden != 0])
    for version in jax.jit(weak_strong)(KEY, {"x": x}):
        assert (version["x"] != x).any(1).mean() > 0.9 and np.corrcoef(version["x"][:, 0], x[:, 0])[0, 1] > 0.5


def test_weak_and_strong_versions_and_two_views():
    batch = batch_of(images(4, 16, 16))
    weak, strong = jax.jit(weak_strong)(KEY, batch)
    np.testing.assert_array_equal(weak["x"], changed("crop:2,mode=reflect+flip", batch["x"], keys.purpose(KEY, "weak")))
    gray = (np.asarray(strong["x"]) == 0.5).all(3).sum((1, 2))
    assert (gray >= 16).all() and (gray <= 64).all() and (strong["y"] == batch["y"]).all()
    plain, mirrored = jax.jit(lambda key, batch: weak_strong(key, batch, "flip:0", "flip:1"))(KEY, batch)
    np.testing.assert_array_equal(plain["x"], mirrored["x"][:, :, ::-1])
    one, two = (np.asarray(view["x"]) for view in jax.jit(two_views)(KEY, batch))
    assert all((one[i] != two[i]).any() for i in range(4))
    one, two = (np.ravel(view["x"] - batch["x"]) for view in jax.jit(lambda key, batch: two_views(key, batch, "noise:0.1"))(KEY, batch))
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.1


@functools.cache
def tasks(text):
    batch = batch_of(images(6, 6, 6, 1))
    plain = models.build("mlp", batch, 3, widths=(5,))
    return plain, augmented(plain, text), jax.jit(plain.init)(jax.random.key(0)), batch


def test_training_sees_changed_images_and_evaluation_does_not():
    plain, task, params, batch = tasks("crop:1+flip")
    seen = {**batch, "x": changed("crop:1+flip", batch["x"], keys.purpose(KEY, "augment"))}

    def outputs(task, batch, key):
        return jax.jit(lambda batch, key: [f(params, batch, key) for f in (task.loss, task.apply, task.features)])(batch, key)

    for new, old in zip(outputs(task, batch, KEY), outputs(plain, seen, KEY)):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), new, old)
    for new, old, trained in zip(outputs(task, batch, None), outputs(plain, batch, None), outputs(task, batch, KEY)):
        jax.tree.map(np.testing.assert_array_equal, new, old)
        assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (new, trained))))
    assert augmented(plain._replace(features=None), "flip").features is None and task.head is plain.head


def test_padding_is_never_seen():
    _, task, params, batch = tasks("crop:1+flip+rotate:20+noise:0.1+contrast+cutout:2")
    mask = jnp.array([True, True, False, True, False, False])
    clean = {**batch, "mask": mask}
    poisoned = {**clean, "x": jnp.where(mask[:, None, None, None], batch["x"], jnp.nan)}
    train = jax.jit(jax.value_and_grad(lambda p, b: task.loss(p, b, KEY)[0]))
    jax.tree.map(np.testing.assert_array_equal, train(params, poisoned), train(params, clean))
    short = {k: v[:4] for k, v in clean.items()}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), train(params, short), train(params, clean))


@pytest.mark.parametrize("text, line", [
    ("crp:4", "unknown augmentation 'crp'; valid: crop, flip, rotate, noise, brightness, contrast, cutout, jitter, scale, hide; did you mean 'crop'?"),
    ("crop:-1", "option 'pixels' of 'crop': '-1' is not valid; expected int >= 0"),
    ("crop:4,mode=wrap", "option 'mode' of 'crop': 'wrap' is not valid; expected one of zero, reflect, edge"),
    ("flip:2", "option 'share' of 'flip': '2' is not valid"), ("flip+", "'flip\\+' has an empty item"),
])
def test_a_chain_that_is_not_valid_is_one_line(text, line):
    with pytest.raises(ValueError, match=line):
        augmentation(text)


@pytest.mark.parametrize("batch", [{"x": jnp.zeros((2, 80), jnp.int32)}, {"x": jnp.zeros((2, 13))}, {"x": jnp.zeros((2, 8, 8, 1), jnp.int32)},
                                   {"a": jnp.zeros((2, 3))}])
def test_what_is_no_image_is_refused(batch):
    numbers = "x" in batch and batch["x"].dtype == jnp.float32  # of which there are weak and strong versions all the same
    for call in (augmentation("flip"), two_views, lambda key, batch: augmented(tasks("flip")[0], "flip", batch), *[weak_strong] * (not numbers)):
        with pytest.raises(ValueError, match=r"augmentation needs images 'x' \[B, H, W, channels\], uint8 or float.*; the batch has [ax] "):
            call(KEY, batch)


@pytest.mark.full
def test_a_run_trains_on_changed_images_and_is_evaluated_on_the_others():
    plain, changed = (fedjax_lab.train(task="digits_logreg", clients=10, cohort=2, rounds=3, eval_every=3, options={"batch_size": "full"}, augment=text)
                      for text in (None, "crop:1+flip+rotate:10"))
    (start, end), (same, other) = plain.history, changed.history
    assert all(start[name] == same[name] for name in start if "test" in name)
    assert end["test_loss"] != other["test_loss"] < start["test_loss"]
    x = jnp.asarray(images(5, 8, 8, 1))
    np.testing.assert_array_equal(changed.model.predict(x), changed.model.task.apply(changed.model.params, {"x": x}))


def test_settings_that_are_not_valid_are_one_line():
    with pytest.raises(ValueError, match="unknown augmentation 'crp'"):
        fedjax_lab.train(task="digits_logreg", augment="crp:4")
    with pytest.raises(ValueError, match="augmentation needs images .*; the batch has x float32"):
        fedjax_lab.train(task="synthetic_logreg", augment="flip")
