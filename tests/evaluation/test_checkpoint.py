"""Policies from checkpoints: what they do, and what is refused with both sides of the mismatch named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from easydict import EasyDict

from ding_ebm.checkpoint import write_checkpoint
from ding_ebm.config import ConfigError
from ding_ebm.data.normalizer import Normalizer
from ding_ebm.envs.registry import make_batch_env
from ding_ebm.evaluation.checkpoint import evaluate_checkpoint, load_policy, rollout_policy
from ding_ebm.evaluation.rollout import rollout
from ding_ebm.evaluation.statistics import success_interval
from ding_ebm.host.env import ChunkTaskEnv
from ding_ebm.policy import energy_correction
from ding_ebm.policy.trained_energy import TrainedEnergy

OBS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def options(**changes):
    return dict(scales=[0.0, 1.0], episodes=3, first_seed=5, command="typed", num_envs=2) | changes


def test_the_parameters_are_those_of_the_checkpoint(run):
    policy = load_policy(*run)
    saved = torch.load(run.checkpoint, weights_only=True)["model"]
    loaded = policy.eval_mode.state_dict()["model"]
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert policy.eval_mode.get_attribute("train_iter") == 30


def test_the_seed_decides_the_noise_and_nothing_else(run):
    first, again, other = (load_policy(*run, seed=seed).act(OBS, guidance_scale=1.0) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_loading_leaves_the_random_state_and_the_folder_as_they_are(run, monkeypatch):
    monkeypatch.chdir(run.config.parent)
    files = sorted(run.config.parent.rglob("*"))
    before = torch.get_rng_state()
    load_policy(*run)
    assert torch.equal(torch.get_rng_state(), before)
    assert [path for path in sorted(run.config.parent.rglob("*")) if "__pycache__" not in str(path)] == files


def test_films_are_of_the_first_episodes_at_each_scale_and_change_no_result(run, monkeypatch, tmp_path):
    asked, said = [], []

    def noted(act, task, seeds, folder, *, label, **chunks):
        act(OBS)  # takes random numbers
        asked.append((task, list(seeds), folder, label, chunks))
        return [folder / "a.mp4"]

    plain = evaluate_checkpoint(*run, **options())
    with monkeypatch.context() as patched:
        patched.setattr("ding_ebm.evaluation.checkpoint.write_videos", noted)
        filmed = evaluate_checkpoint(*run, **options(video=tmp_path, video_episodes=2, say=said.append))
    assert [result.mean for result in filmed] == [result.mean for result in plain]
    assert asked == [("avoid", [5, 6], tmp_path, label, {}) for label in ("_scale0", "_scale1")]
    assert [line for line in said if line.startswith("filmed")] == [f"filmed {tmp_path / 'a.mp4'}"] * 2
    with pytest.raises(ValueError, match="the task avoid draws no pictures"):
        evaluate_checkpoint(*run, **options(video=tmp_path))


def test_a_result_is_the_rollout_of_the_policy_with_its_facts(run):
    results = evaluate_checkpoint(*run, **options())
    policy = load_policy(*run)
    for result, scale in zip(results, (0.0, 1.0)):
        policy.eval_mode.reset()
        act = lambda obs, scale=scale: policy.act(obs, guidance_scale=scale)  # noqa: E731
        episodes = rollout(act, make_batch_env("avoid", 2), [5, 6, 7])
        assert result.mean == pytest.approx(episodes.returns.mean(), abs=1e-4)
        assert result.success == pytest.approx(episodes.success.mean(), abs=1e-4)
        assert (result.task, result.data, result.policy) == ("avoid", "one+two", "ebm_qgpo")
        assert (result.guidance_scale, result.episodes, result.seed, result.train_iter) == (scale, 3, 7, 30)
        assert result.command == "typed"
    assert results[0].mean != results[1].mean


def test_a_second_evaluation_repeats_the_first_whatever_other_scales_are_asked_for(run):
    (alone,) = evaluate_checkpoint(*run, **options(scales=[1.0]))
    assert alone in evaluate_checkpoint(*run, **options(scales=[0.0, 2.0, 1.0]))


def test_the_scales_of_the_config_are_the_default(run):
    assert [r.guidance_scale for r in evaluate_checkpoint(*run, **options(scales=None))] == [1.0, 0.0]


# Policies over chunks.


def test_a_chunk_policy_is_evaluated_on_the_episodes_of_a_loop_over_the_hosts_environment(chunk_run):
    policy, returns = load_policy(*chunk_run), []
    policy.eval_mode.reset()
    for seed in (5, 6, 7):
        env = ChunkTaskEnv(EasyDict(env_id="avoid_m1", act_steps=3, cond_steps=2))
        env.seed(seed)
        obs, done = env.reset(), False
        while not done:
            step = env.step(policy.act(obs[None])[0])
            obs, done = step.obs, step.done
        returns.append(step.info["eval_episode_return"])
    episodes = rollout_policy(policy, make_batch_env("avoid_m1", 1), [5, 6, 7])
    np.testing.assert_allclose(episodes.returns, returns, atol=1e-9)
    (result,) = evaluate_checkpoint(*chunk_run, **options(scales=None, num_envs=1))
    assert result.mean == pytest.approx(np.mean(returns), abs=1e-4)
    share = success_interval(episodes.success)
    assert (result.success, result.success_low, result.success_high) == pytest.approx(
        (share.estimate, share.low, share.high), abs=1e-4
    )
    facts = (result.task, result.policy, result.guidance_scale, result.seed, result.train_iter)
    assert facts == ("avoid_m1", policy._cfg.type, None, 7, 30)
    assert result.data == ("" if result.policy == "dppo" else "avoid_m1_demonstrations")


class Nearness(torch.nn.Module):
    """Squared length of the normalized chunk."""

    def forward(self, obs, action):
        return action.square().sum(dim=(1, 2))


def test_a_policy_corrected_by_an_energy_is_another_one_and_says_what_that_did(chunk_run, monkeypatch):
    units = Normalizer(4), Normalizer(2)
    units[1].scale.fill_(0.01)  # the policy's
    energy = TrainedEnergy(Nearness(), *units, "avoid_m1", cond_steps=2, horizon_steps=4)
    monkeypatch.setattr(energy_correction, "load_energy", lambda path, device: energy)
    arguments, said = options(scales=None, episodes=2), []
    (plain,) = evaluate_checkpoint(*chunk_run, **arguments, say=said.append)
    assert [line.split(" got ")[0][-13:] for line in said] == ["of 2 episodes"]
    said.clear()
    settings = "dict(energy_checkpoint='e', energy_correction_steps=4, energy_candidates=2, energy_alpha=0.5)"
    text = chunk_run.config.read_text("utf-8")
    text = text.replace("main_config, ", f"tiny.setdefault('eval', {{}}).update({settings})\nmain_config, ")
    chunk_run.config.write_text(text, "utf-8")
    (row,) = evaluate_checkpoint(*chunk_run, **arguments, say=said.append)
    assert row.policy == f"{plain.policy} + best of 2 + 4 steps"
    line, ways = said
    assert ways == f"{plain.policy}: 0 of 2 episodes got through"
    # 100 steps in chunks of 3, twice: the energy is least where every action is 0, and nobody moves.
    assert line.startswith(f"{plain.policy}, best of 2 + 4 steps: energy ") and " to 0 over 68 decisions" in line
    episodes = rollout_policy(load_policy(*chunk_run), make_batch_env("avoid_m1", 1), [5], keep_trajectories=True)
    assert np.ptp(episodes.trajectories[0], axis=0).max() < 1e-6


def test_a_second_evaluation_of_a_chunk_policy_repeats_the_first(chunk_run):
    policy, env = load_policy(*chunk_run), make_batch_env("avoid_m1", 3)
    first, again = (rollout_policy(policy, env, range(5), keep_trajectories=True) for _ in range(2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first.trajectories, again.trajectories))


def test_a_guidance_scale_for_a_policy_without_guidance_is_refused_before_its_checkpoint_is_read(chunk_run):
    chunk_run.checkpoint.unlink()
    message = "has no guidance: a guidance scale \\(--guidance-scale\\) does not apply to it"
    with pytest.raises(ValueError, match=message):
        evaluate_checkpoint(*chunk_run, **options())


def test_the_seed_of_a_run_without_a_note_must_be_given(run):
    (run.checkpoint.parents[1] / "total_config.py").unlink()
    with pytest.raises(ValueError, match="--train-seed"):
        evaluate_checkpoint(*run, **options())
    assert evaluate_checkpoint(*run, **options(train_seed=2))[0].seed == 2


def test_other_dimensions_are_refused_with_both_values(run):
    text = run.config.read_text("utf-8").replace("behavior_widths=(16, 8)", "behavior_widths=(32, 16)")
    run.config.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"\(32, 2\) in the checkpoint and \(64, 2\) in the config's model"):
        load_policy(*run)


def test_another_model_is_refused_with_the_parts_that_differ(run):
    run.config.write_text(run.config.read_text("utf-8").replace("model=dict(", "model=dict(ema_decay=0.9,"), "utf-8")
    with pytest.raises(ValueError, match="behavior_ema.* is in the model but not in the checkpoint.*more"):
        load_policy(*run)


def test_a_mistyped_key_of_the_config_is_refused(run):
    run.config.write_text(run.config.read_text("utf-8").replace("train_epoch", "train_epoc"), "utf-8")
    with pytest.raises(ConfigError, match="did you mean 'train_epoch'"):
        load_policy(*run)


def test_guidance_that_is_not_trained_is_refused(run):
    state = torch.load(run.checkpoint, weights_only=True)
    write_checkpoint({**state, "train_iter": 10}, run.checkpoint)
    with pytest.raises(ValueError, match="guidance is not trained"):
        evaluate_checkpoint(*run, **options())


def test_missing_files_are_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth\.tar"):
        load_policy(run.config, tmp_path / "none.pth.tar")
    with pytest.raises(FileNotFoundError, match=r"none\.py"):
        load_policy(tmp_path / "none.py", run.checkpoint)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_file_that_is_no_checkpoint_is_refused_by_its_name(run, content):
    whole = run.checkpoint.read_bytes()
    run.checkpoint.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=r"iteration_30\.pth\.tar is damaged or cut short"):
        load_policy(*run)


def test_a_checkpoint_of_something_else_is_refused(run):
    write_checkpoint({"weights": torch.zeros(2)}, run.checkpoint)
    with pytest.raises(ValueError, match="'model' and 'train_iter' expected"):
        load_policy(*run)


def test_a_checkpoint_that_would_run_code_is_refused(run):
    class Payload:
        def __reduce__(self):
            return (print, ("executed",))

    write_checkpoint({"model": Payload(), "train_iter": 30}, run.checkpoint)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_policy(*run)
