"""Support actions: what their key depends on, and a cache that is used, checked and replaceable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ding_ebm.policy import qgpo
from ding_ebm.policy.support import checksum, default_cache_dir, support_actions

STATES = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
KEY = checksum({"states": STATES}, {"M": 3})


class Sampler:
    """Notes what it was given; its actions are the noise plus the state's first two entries."""

    def __init__(self) -> None:
        self.shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __call__(self, obs: Tensor, noise: Tensor) -> Tensor:
        self.shapes.append((tuple(obs.shape), tuple(noise.shape)))
        return noise + obs[..., :2]


def draw(sampler: Sampler, cache: Path | None, key: str = KEY, **options: int) -> Tensor:
    return support_actions(sampler, STATES, 3, 2, key=key, cache_dir=cache, **options)


def test_every_state_gets_its_actions_in_chunks():
    sampler = Sampler()
    actions = draw(sampler, None, rows_per_chunk=12)
    assert sampler.shapes == [((4, 1, 4), (4, 3, 2)), ((4, 1, 4), (4, 3, 2)), ((2, 1, 4), (2, 3, 2))]
    assert actions.shape == (10, 3, 2) and actions.dtype == torch.float32
    noise = actions - STATES[:, None, :2]
    assert len(noise.reshape(-1).unique()) == 60  # each action has noise of its own
    assert draw(Sampler(), None, rows_per_chunk=1).shape == (10, 3, 2)


def test_actions_are_standard_normal_noise_through_the_sampler():
    states = torch.zeros(20_000, 4)
    actions = support_actions(Sampler(), states, 3, 2, key=KEY, cache_dir=None)
    assert actions.mean().abs() < 0.01 and actions.std().item() == pytest.approx(1.0, abs=0.01)


def test_the_second_call_reads_the_file_and_samples_nothing(tmp_path):
    first = draw(Sampler(), tmp_path / "cache")
    sampler = Sampler()
    assert torch.equal(draw(sampler, tmp_path / "cache"), first) and sampler.shapes == []
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"support_{KEY[:32]}.npy"]


def test_a_lost_file_is_drawn_again_as_it_was(tmp_path):
    first = draw(Sampler(), tmp_path)
    torch.manual_seed(99)
    assert torch.equal(draw(Sampler(), None), first)
    assert not torch.equal(draw(Sampler(), None, key=checksum({}, {})), first)


def test_the_draw_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw(Sampler(), None)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("array", [np.zeros((10, 4, 2), np.float32), np.zeros((10, 3, 2)), np.zeros(3, np.float32)])
def test_a_file_of_another_shape_or_dtype_is_refused_by_name(tmp_path, array):
    path = tmp_path / f"support_{KEY[:32]}.npy"
    np.save(path, array)
    with pytest.raises(ValueError, match=rf"{path.name}.*\(10, 3, 2\) float32.*delete the file"):
        draw(Sampler(), tmp_path)


def test_a_file_with_pickled_objects_is_not_opened(tmp_path):
    np.save(tmp_path / f"support_{KEY[:32]}.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"allow_pickle|delete the file"):
        draw(Sampler(), tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_file_that_was_cut_short_is_refused_by_name(tmp_path, share):
    draw(Sampler(), tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"{path.name}.*delete the file"):
        draw(Sampler(), tmp_path)


def test_a_draw_that_fails_leaves_no_file(tmp_path):
    def fail(obs: Tensor, noise: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        support_actions(fail, STATES, 3, 2, key=KEY, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_sum_changes_with_every_part_and_not_with_the_order_of_names():
    tensors, settings = {"a": torch.ones(3), "b": torch.zeros(2)}, {"M": 4, "order": 2}
    base = checksum(tensors, settings)
    assert base == checksum(dict(reversed(tensors.items())), dict(reversed(settings.items())))
    others = [
        checksum({**tensors, "a": torch.tensor([1.0, 1.0, 1.0 + 1e-7])}, settings),
        checksum({**tensors, "a": torch.ones(1, 3)}, settings),
        checksum({**tensors, "a": torch.ones(3, dtype=torch.float64)}, settings),
        checksum({"a": tensors["a"], "c": tensors["b"]}, settings),
        checksum({"a": tensors["a"]}, settings),
        checksum(tensors, {**settings, "M": 5}),
        checksum(tensors, {"M": 4}),
    ]
    assert len({base, *others}) == 8


def test_the_folder_is_the_variables_or_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("DING_EBM_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("DING_EBM_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "ding_ebm"


# As the policy uses it.


@pytest.fixture
def key_of(monkeypatch, make_policy, make_dataset):
    """The key that a policy asks for, by its config, data and seed."""

    def key(overrides: dict | None = None, seed: int = 0, **options: object) -> str:
        found: list[str] = []
        monkeypatch.setattr(qgpo, "support_actions", lambda *args, key, **rest: found.append(key))
        make_policy(overrides or {}, make_dataset(**options), seed)._draw_support()
        return found[0]

    return key


def test_the_policys_key_depends_on_all_that_its_actions_depend_on_and_on_nothing_else(key_of):
    base = key_of()
    assert key_of() == base
    unlike = [
        key_of(seed=1),  # the behavior model's weights
        key_of(dict(learn=dict(M=5))),
        key_of(dict(learn=dict(diffusion_steps=5))),
        key_of(dict(sampler=dict(order=1))),
        key_of(dict(sampler=dict(method="multistep"))),
        key_of(dict(sampler=dict(spacing="time"))),
        key_of(dict(sampler=dict(clip="final"))),
        key_of(dict(learn=dict(precision="bfloat16"))),
        key_of(obs_normalization="mean_std"),  # the states
    ]
    assert len({base, *unlike}) == 1 + len(unlike)
    like = [
        key_of(dict(learn=dict(batch_size=64, critic_learning_rate=1.0))),
        key_of(dict(model=dict(qgpo_critic=dict(alpha=9.0)))),
        key_of(dict(eval=dict(diffusion_steps=9))),
    ]
    assert set(like) == {base}


def test_the_policy_keeps_its_support_actions_where_it_is_told(tmp_path, make_policy, make_dataset, run, monkeypatch):
    monkeypatch.setenv("DING_EBM_CACHE", str(tmp_path / "by variable"))
    support = []
    for folder in (str(tmp_path / "given"), "", None, str(tmp_path / "given")):
        dataset = make_dataset()
        policy = make_policy(dict(learn=dict(support_cache=folder), sampler=dict(clip="final")), dataset)
        run(policy, dataset, 5)
        support.append(policy._support)
    assert all(torch.equal(support[0], other) for other in support[1:])
    assert len(list((tmp_path / "given").iterdir())) == 1 and len(list((tmp_path / "by variable").iterdir())) == 1
    assert support[0].shape == (len(dataset.states), 4, 2) and support[0].abs().max() <= 1.0


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_trained(tmp_path, make_policy):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((OSError, ValueError), match="file"):
        make_policy(dict(learn=dict(support_cache=str(tmp_path / "file" / "cache"))))


def test_support_actions_are_the_unguided_behavior_models(make_policy, dataset, monkeypatch):
    policy = make_policy({}, dataset)

    def fail(*args: object) -> None:
        raise AssertionError("the guidance was evaluated")

    for name in ("bind", "value_and_grad", "forward"):
        monkeypatch.setattr(type(policy._model.guidance), name, fail)
    assert policy._draw_support().shape == (len(dataset.states), 4, 2)
