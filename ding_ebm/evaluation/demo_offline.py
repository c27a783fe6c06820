"""The offline half of the demo: QGPO on ``avoid``, whose guided policy is to beat the behavior policy."""

from __future__ import annotations

from pathlib import Path

from ding_ebm.data.formats import write_d4rl_hdf5
from ding_ebm.envs.avoid_demos import make_demonstrations
from ding_ebm.envs.registry import get_task
from ding_ebm.evaluation.checkpoint import load_policy
from ding_ebm.evaluation.demo_pictures import DECISIONS, data_ways, decision, exact_clouds, policy_ways, value_map
from ding_ebm.evaluation.demo_runs import Run, evaluate, stock_config, written_config
from ding_ebm.evaluation.plots import plot_clouds, plot_energy, plot_scales, plot_ways
from ding_ebm.evaluation.results import Result, describe
from ding_ebm.evaluation.rollout import Episodes
from ding_ebm.evaluation.statistics import Interval

TASK, DATA_SET = "avoid", "demonstrations"
SCALES = (0.0, 0.5, 1.0, 2.0, 4.0)
QUICK_CONFIG = '''"""The demo's config with so few iterations that it shows that all parts run, and learns nothing."""

from dizoo_configs.avoid.avoid_qgpo_config import create_config, main_config

main_config.env.update(evaluator_env_num=2, n_evaluator_episode=2)
main_config.policy.learn.update(
    train_epoch=3, iterations_per_epoch=10, batch_size=32, batch_size_q=16, M=2, diffusion_steps=2,
    behavior_policy_stop_training_iter=10, q_value_stop_training_iter=20, energy_guided_policy_begin_training_iter=None,
)
main_config.policy.learn.learner.hook.save_ckpt_after_iter = 30
main_config.policy.eval.evaluator.eval_freq = 30
'''


class OfflineHalf:
    """Demonstrations, one run, and evaluation at several guidance scales.

    Args:
        folder: Where all files go.
        quick: A few iterations, episodes and points only.
    """

    pictures = {
        "trajectories.png": "demonstrations, behavior policy and guided policy on the table",
        "energy.png": "the learned value over the table; Q and the learned energy where ways part",
        "scales.png": "return against guidance scale",
        "exactness.png": "exact guidance of two-dimensional sets beside the truth",
    }

    def __init__(self, folder: Path, quick: bool) -> None:
        self._folder, self._quick = folder, quick
        name = f"{TASK}_qgpo"
        config = written_config(folder, name, QUICK_CONFIG) if quick else stock_config(name)
        self.runs = [Run("QGPO", "serial_offline", config, folder)]
        self._results: dict[float, Result] = {}
        self._episodes: dict[float, Episodes] = {}

    def collect(self) -> str:
        """Make the demonstrations; returns what they are."""
        self._data = make_demonstrations(40 if self._quick else 500, seed=0)
        (file,) = get_task(TASK).data_files(DATA_SET)
        write_d4rl_hdf5(self._folder / file, self._data)
        return describe(self._data, TASK)

    def evaluate(self, count: int) -> list[Result]:
        """A row for each guidance scale, of ``count`` episodes."""
        (run,) = self.runs
        self._policy = load_policy(run.config, run.checkpoint)
        for scale in SCALES:
            self._results[scale], self._episodes[scale] = evaluate(run, self._policy, count, scale)
        return list(self._results.values())

    def draw(self) -> None:
        """Write the pictures."""
        ways = [data_ways(self._data)]
        for scale, name in ((0.0, "behavior policy"), (1.0, "guided policy")):
            r = self._results[scale]
            title = f"{name}\nreturn {r.mean:.2f} ({r.low:.2f} to {r.high:.2f})"
            ways.append(policy_ways(title, self._episodes[scale]))
        plot_ways(self._folder / "trajectories.png", ways)
        decisions = [decision(self._policy, name, 1.0) for name in DECISIONS]
        plot_energy(self._folder / "energy.png", value_map(self._policy, self._data), decisions)
        intervals = {scale: Interval(r.mean, r.low, r.high) for scale, r in self._results.items()}
        best = get_task(TASK).reference_returns[1]
        mean = float(self._data.episode_returns().mean())
        references = {"mean of the demonstrations": mean, "best lane at full speed": best}
        plot_scales(self._folder / "scales.png", intervals, references, fixed_scale=1.0)
        plot_clouds(self._folder / "exactness.png", exact_clouds(200 if self._quick else 1500))

    @property
    def holds(self) -> bool:
        """Whether the guided policy beats the behavior policy by more than both intervals."""
        return self._results[1.0].low > self._results[0.0].high

    def verdict(self) -> str:
        """What was to be shown, and whether it was."""
        behavior, guided = self._results[0.0], self._results[1.0]
        return (
            f"Offline: the guided policy (scale 1, fixed beforehand) {'beats' if self.holds else 'does NOT beat'} the "
            "behavior policy by more than both intervals:\n"
            f"return {guided.mean:.2f} ({guided.low:.2f} to {guided.high:.2f}) against {behavior.mean:.2f} "
            f"({behavior.low:.2f} to {behavior.high:.2f}); the demonstrations have "
            f"{self._data.episode_returns().mean():.2f} on average."
        )
