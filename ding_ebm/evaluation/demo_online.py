"""The online half of the demo: on ``avoid_m1`` a policy is cloned and fine-tuned by DPPO, to succeed more often.

Half of its demonstrations take the way that pays and half another one, and so does the cloned policy.
"""

from __future__ import annotations

from pathlib import Path

from ding_ebm.data.formats import write_d4rl_hdf5
from ding_ebm.envs.avoid_demos import make_mode_demonstrations
from ding_ebm.envs.registry import get_task
from ding_ebm.evaluation.checkpoint import load_policy
from ding_ebm.evaluation.demo_pictures import data_outcomes, learning_curve, policy_ways
from ding_ebm.evaluation.demo_runs import Run, evaluate, stock_config, written_config
from ding_ebm.evaluation.plots import plot_outcomes
from ding_ebm.evaluation.results import Result, describe
from ding_ebm.evaluation.rollout import Episodes

TASK, DATA_SET = "avoid_m1", "demonstrations"
COLLECTIONS = 51  # evaluated after every tenth; the last checkpoint is of all
QUICK_CONFIGS = {
    "diffusion_bc": '''"""Cloning with so few iterations that it shows that all parts run, and learns nothing."""

from dizoo_configs.avoid.avoid_m1_diffusion_bc_config import create_config, main_config

main_config.env.update(evaluator_env_num=2, n_evaluator_episode=2)
main_config.policy.learn.update(train_epoch=3, iterations_per_epoch=10, batch_size=32)
main_config.policy.learn.learner.hook.save_ckpt_after_iter = 30
main_config.policy.eval.evaluator.eval_freq = 30
''',
    "dppo": '''"""Fine-tuning with so few decisions that it shows that all parts run, and learns nothing."""

from dizoo_configs.avoid.avoid_m1_dppo_config import create_config, main_config

main_config.env.update(collector_env_num=4, evaluator_env_num=2, n_evaluator_episode=2)
main_config.policy.collect.n_sample = 4 * 25
main_config.policy.learn.update(epoch_per_collect=1, batch_size=500)
''',
}


class OnlineHalf:
    """Demonstrations, a run that clones them and one that fine-tunes, and evaluation before and after.

    Args:
        folder: Where all files go.
        quick: A few iterations and episodes only.
    """

    pictures = {"dppo.png": "demonstrations, cloned policy and fine-tuned policy on the table; success while learning"}

    def __init__(self, folder: Path, quick: bool) -> None:
        self._folder, self._quick = folder, quick
        configs = {
            algo: written_config(folder, f"{TASK}_{algo}", text) if quick else stock_config(f"{TASK}_{algo}")
            for algo, text in QUICK_CONFIGS.items()
        }
        # The second finds the first by the name of its folder, where both run.
        self.runs = [
            Run("cloning", "serial_offline", configs["diffusion_bc"], folder),
            Run("DPPO", "serial_onpolicy", configs["dppo"], folder, train_iter=2 if quick else COLLECTIONS),
        ]
        self._results: list[Result] = []
        self._episodes: list[Episodes] = []

    def collect(self) -> str:
        """Make the demonstrations; returns what they are."""
        self._data = make_mode_demonstrations(TASK, 40 if self._quick else 500, seed=0)
        (file,) = get_task(TASK).data_files(DATA_SET)
        write_d4rl_hdf5(self._folder / file, self._data)
        return describe(self._data, TASK)

    def evaluate(self, count: int) -> list[Result]:
        """A row for the cloned policy and one for the fine-tuned one, of ``count`` episodes."""
        for run in self.runs:
            result, episodes = evaluate(run, load_policy(run.config, run.checkpoint), count)
            self._results.append(result)
            self._episodes.append(episodes)
        return self._results

    def draw(self) -> None:
        """Write the picture."""
        names = ("cloned policy", "after fine-tuning by DPPO")
        panels = [data_outcomes(self._data)]
        for name, r, episodes in zip(names, self._results, self._episodes):
            title = f"{name}\nsuccess {r.success:.2f} ({r.success_low:.2f} to {r.success_high:.2f})"
            panels.append(policy_ways(title, episodes))
        plot_outcomes(self._folder / "dppo.png", panels, **learning_curve(self.runs[1].path))

    @property
    def holds(self) -> bool:
        """Whether the fine-tuned policy succeeds more often than the cloned one by more than both intervals."""
        cloned, tuned = self._results
        return tuned.success_low > cloned.success_high

    def verdict(self) -> str:
        """What was to be shown, and whether it was."""
        cloned, tuned = self._results
        return (
            f"Online: the fine-tuned policy {'succeeds' if self.holds else 'does NOT succeed'} more often than the "
            "cloned one by more than both intervals:\n"
            f"share of successes {tuned.success:.2f} ({tuned.success_low:.2f} to {tuned.success_high:.2f}) against "
            f"{cloned.success:.2f} ({cloned.success_low:.2f} to {cloned.success_high:.2f})."
        )
