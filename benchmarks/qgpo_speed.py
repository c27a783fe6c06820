"""Speed of QGPO's parts beside DI-engine's own QGPO, in one run: ``python benchmarks/qgpo_speed.py [--device cuda]``.

Each line times the reference and ours in turn, round by round, so that a change of the machine's speed meets both. CPU
time is that of the process, wall time that of the clock; the ratio is the median over rounds of reference over ours.
Sizes are the paper's: observation 11, action 3, M = 16 support actions.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ding.model.template import qgpo as reference_qgpo  # noqa: E402
from ding.policy.common_utils import default_preprocess_learn  # noqa: E402
from ding.torch_utils import MLP  # noqa: E402
from ding.utils import deep_merge_dicts  # noqa: E402
from easydict import EasyDict  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from ding_ebm.data.datasets import OfflineDataset  # noqa: E402
from ding_ebm.data.formats import Transitions  # noqa: E402
from ding_ebm.diffusion.oracles import GaussianMixture  # noqa: E402
from ding_ebm.diffusion.schedules import VPLinearSchedule  # noqa: E402
from ding_ebm.diffusion.solvers import make_plan, solve  # noqa: E402
from ding_ebm.model.diffusion import sample_actions  # noqa: E402
from ding_ebm.policy.base import autocast  # noqa: E402
from ding_ebm.policy.qgpo import QGPOPolicy  # noqa: E402

OBS, ACTION, M = 11, 3, 16
Work = tuple[str, Callable[[], Any], Callable[[], Any], int]


def make_ours(precision: str, compile_losses: bool, device: str, **learn: Any) -> QGPOPolicy:
    """Our policy with the paper's sizes."""
    override = dict(
        cuda=device == "cuda",
        model=dict(obs_dim=OBS, action_dim=ACTION),
        learn=dict(precision=precision, compile=compile_losses, support_cache=None, **learn),
    )
    return QGPOPolicy(deep_merge_dicts(QGPOPolicy.default_config(), EasyDict(override)), enable_field=["learn", "eval"])


class Reference:
    """DI-engine's QGPO model, trained as its policy trains it."""

    def __init__(self, device: str) -> None:
        critic = EasyDict(alpha=3, q_alpha=1)
        self.model = reference_qgpo.QGPO(
            EasyDict(device=device, obs_dim=OBS, action_dim=ACTION, qgpo_critic=critic)
        ).to(device)
        # Its guidance has three hidden layers; with the paper's four both sides do the same work.
        self.model.q.qt.qt = MLP(
            ACTION + 32 + OBS, 256, 1, layer_num=5, activation=torch.nn.SiLU(), output_activation=False
        ).to(device)
        self.behavior_optimizer = torch.optim.Adam(self.model.score_model.parameters(), lr=1e-4)
        self.q_optimizer = torch.optim.Adam(self.model.q.q0.parameters(), lr=3e-4)
        self.qt_optimizer = torch.optim.Adam(self.model.q.qt.parameters(), lr=3e-4)

    def behavior(self, batch: dict[str, torch.Tensor]) -> float:
        """One update of the behavior model."""
        return self._step(self.behavior_optimizer, self.model.score_model_loss_fn(batch["action"], batch["obs"]))

    def critic(self, batch: dict[str, torch.Tensor]) -> float:
        """One update of the twin Q and of its target."""
        reward, done = batch["reward"].unsqueeze(-1), batch["done"].unsqueeze(-1)
        loss = self.model.q_loss_fn(
            batch["action"], batch["obs"], reward, batch["next_obs"], done, batch["next_support"], discount=0.99
        )
        value = self._step(self.q_optimizer, loss)
        for parameter, target in zip(self.model.q.q0.parameters(), self.model.q.q0_target.parameters()):
            target.data.copy_(0.005 * parameter.data + 0.995 * target.data)
        return value

    def guidance(self, batch: dict[str, torch.Tensor]) -> float:
        """One CEP update."""
        return self._step(self.qt_optimizer, self.model.qt_loss_fn(batch["obs"], batch["support"]))

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()


def random_batch(rows: int, device: str) -> dict[str, torch.Tensor]:
    """A batch of the energy stage; ``index`` points into a table of 1000 states."""
    draw = torch.randn
    batch = dict(
        obs=draw(rows, OBS), next_obs=draw(rows, OBS), action=draw(rows, ACTION).clamp(-1, 1), reward=draw(rows)
    )
    batch.update(done=torch.zeros(rows), support=draw(rows, M, ACTION), next_support=draw(rows, M, ACTION))
    batch.update(index=torch.randint(1000, (rows,)), next_index=torch.randint(1000, (rows,)))
    return {key: value.to(device) for key, value in batch.items()}


def update_works(precision: str, compile_losses: bool, device: str) -> list[Work]:
    """Training updates of both."""
    reference = Reference(device)
    large, small = random_batch(4096, device), random_batch(256, device)
    behavior = make_ours(precision, compile_losses, device)
    energy = make_ours(precision, compile_losses, device, q_value_stop_training_iter=None)
    frozen = make_ours(precision, compile_losses, device)  # far past its last critic update
    for policy in (energy, frozen):
        policy._train_iter = 10**7
        policy._support = torch.randn(1000, M, ACTION, device=device)
        policy._support_q = torch.randn(1000, M, device=device)

    def ours(policy: QGPOPolicy, batch: dict[str, torch.Tensor]) -> Callable[[], Any]:
        keys = ("obs", "action", "reward", "next_obs", "done", "index", "next_index")
        return lambda: policy._forward_learn({key: batch[key] for key in keys})

    kind = f"{precision}{', compiled' if compile_losses else ''}"
    return [
        (f"behavior update, batch 4096 ({kind})", lambda: reference.behavior(large), ours(behavior, large), 1),
        (
            f"Q + CEP update, batch 256, M 16 ({kind})",
            lambda: (reference.critic(small), reference.guidance(small)),
            ours(energy, small),
            3,
        ),
        (f"CEP update, Q frozen ({kind})", lambda: reference.guidance(small), ours(frozen, small), 3),
    ]


def nfe_of_equal_error() -> tuple[int, float, float]:
    """Fewest evaluations of our default solver whose error on a known mixture is not above the paper's call's."""
    schedule, generator = VPLinearSchedule(), torch.Generator().manual_seed(0)
    angle = torch.arange(8, dtype=torch.float64) * (torch.pi / 4)
    means = 2.0 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    mixture = GaussianMixture(
        torch.full((8,), 1 / 8).double().log(), means, 0.1 * torch.eye(2).double().expand(8, 2, 2)
    )
    noise = torch.randn(2000, 2, dtype=torch.float64, generator=generator)

    def run(nfe: int, **options: Any) -> torch.Tensor:
        plan = make_plan(schedule, nfe, **options)
        times = [torch.tensor(t, dtype=torch.float64) for t in plan.times]
        return solve(
            plan, lambda x, i: -schedule.sigma(times[i]) * mixture.diffused(schedule, times[i]).score(x), noise
        )

    exact = run(1500)
    error = lambda x: float((x - exact).norm(dim=-1).median())  # noqa: E731
    paper = error(run(15, method="singlestep", order=2, spacing="time"))
    errors = {nfe: error(run(nfe)) for nfe in range(4, 16)}
    best = min(nfe for nfe, value in errors.items() if value <= paper)
    return best, paper, errors[best]


def sampling_works(precision: str, device: str) -> list[Work]:
    """Guided actions for 1, 10 and 100 environments, and support actions."""
    reference = Reference(device).model
    policy = make_ours(precision, False, device, behavior_policy_stop_training_iter=1)
    policy._train_iter = 2
    model = policy._model
    equal_nfe = make_plan(policy._schedule, 15, method="singlestep", order=2, spacing="time")
    fewest, paper_error, our_error = nfe_of_equal_error()
    equal_error = make_plan(policy._schedule, fewest)
    print(
        f"paper's call: error {paper_error:.3f} at 15 NFE; default solver: {our_error:.3f} at {fewest} NFE", flush=True
    )
    works: list[Work] = []
    for envs in (1, 10, 100):
        obs = np.random.default_rng(0).standard_normal((envs, OBS)).astype(np.float32)

        def ours(plan: Any, obs: np.ndarray = obs) -> np.ndarray:
            state = torch.from_numpy(obs).to(device)
            noise = torch.randn(len(obs), ACTION, device=device)
            return (
                sample_actions(model.behavior, plan, state, noise, guidance=model.guidance, clip="none").cpu().numpy()
            )

        def theirs(obs: np.ndarray = obs) -> Any:
            return reference.select_actions(obs, diffusion_steps=15, guidance_scale=1.0)

        repeat = 5 if envs == 1 else 2
        works.append((f"guided action, {envs} env, 15 NFE", theirs, lambda f=ours: f(equal_nfe), repeat))
        works.append(
            (f"guided action, {envs} env, equal error ({fewest} NFE)", theirs, lambda f=ours: f(equal_error), repeat)
        )
    states = torch.randn(256, OBS, device=device)
    for name, plan in (("15 NFE", equal_nfe), (f"equal error ({fewest} NFE)", equal_error)):

        def support(plan: Any = plan) -> torch.Tensor:
            with autocast(precision, device):
                noise = torch.randn(256, M, ACTION, device=device)
                return sample_actions(model.behavior, plan, states.unsqueeze(1), noise, clip="none")

        def their_support() -> Any:
            return reference.sample(states.cpu(), sample_per_state=M, diffusion_steps=15, guidance_scale=0.0)

        works.append((f"support actions, 256 x 16, {name} ({precision})", their_support, support, 1))
    return works


def data_works(rows: int, device: str) -> list[Work]:
    """Batches from the data set through the host's DataLoader, of DI-engine's list of rows and of ours."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((rows + 1, OBS), dtype=np.float32)
    action = rng.uniform(-1, 1, (rows, ACTION)).astype(np.float32)
    reward = rng.standard_normal(rows, dtype=np.float32)
    ends = np.zeros(rows, dtype=np.bool_)
    ends[999::1000] = True
    transitions = Transitions(obs[:-1], action, reward, obs[1:], np.zeros_like(ends), ends, "random")
    dataset = OfflineDataset(transitions, device=device, length=rows)
    arrays = sum(a.nbytes for a in (obs[:-1], action, reward, obs[1:], ends, ends))
    held = sum(t.nbytes for t in (dataset.states, dataset.next_state, dataset.action, dataset.reward, dataset.done))
    print(f"data set: {held / arrays:.2f} times the bytes of its arrays ({rows} rows)", flush=True)
    items = [
        dict(obs=torch.from_numpy(obs[i]), next_obs=torch.from_numpy(obs[i + 1]), action=torch.from_numpy(action[i]),
             reward=torch.tensor(reward[i : i + 1]), done=bool(ends[i]), collect_iter=0)
        for i in range(rows)
    ]  # fmt: skip
    works: list[Work] = []
    for batch, count in ((256, 50), (4096, 5)):

        def batches(source: Any, batch: int = batch) -> Any:
            while True:
                yield from DataLoader(source, batch, shuffle=True, collate_fn=lambda x: x)

        theirs, ours = batches(items), batches(dataset)

        def reference(stream: Any = theirs, count: int = count) -> None:
            for _ in range(count):
                default_preprocess_learn(next(stream), ignore_done=False)

        def fast(stream: Any = ours, count: int = count) -> None:
            for _ in range(count):
                next(stream)

        works.append((f"data path, {rows} rows, {count} batches of {batch}", reference, fast, 1))
    return works


def measure(work: Work, rounds: int, device: str) -> dict[str, Any]:
    """Times of both in turn, in milliseconds."""
    name, reference, ours, repeat = work
    times: dict[str, list[tuple[float, float]]] = {"reference": [], "ours": []}
    for round_number in range(rounds + 2):
        for who, function in (("reference", reference), ("ours", ours)):
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(repeat):
                function()
            if device == "cuda":
                torch.cuda.synchronize()
            spent = ((time.process_time() - cpu) / repeat * 1e3, (time.perf_counter() - wall) / repeat * 1e3)
            if round_number >= 2:  # two rounds warm up
                times[who].append(spent)
    row: dict[str, Any] = {"work": name}
    for who, values in times.items():
        row[f"{who}_cpu_ms"] = round(statistics.median(v[0] for v in values), 2)
        row[f"{who}_wall_ms"] = round(statistics.median(v[1] for v in values), 2)
    for unit, index in (("cpu", 0), ("wall", 1)):
        ratios = sorted(a[index] / max(b[index], 1e-6) for a, b in zip(times["reference"], times["ours"]))
        row[f"{unit}_ratio"] = round(statistics.median(ratios), 2)
        row[f"{unit}_ratio_range"] = f"{ratios[0]:.2f}-{ratios[-1]:.2f}"
    return row


def main() -> None:
    """Measure everything, print it and append it to a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of each line")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the data set")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "auto"), help="beside float32")
    parser.add_argument("--only", default="", help="measure the lines that contain this")
    parser.add_argument("--out", type=Path, default=Path("docs/results/qgpo_speed.csv"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    makers: list[Callable[[], list[Work]]] = [
        lambda: update_works("float32", False, args.device),
        lambda: update_works("float32", True, args.device),
        lambda: update_works(args.precision, False, args.device),
        lambda: update_works(args.precision, True, args.device),
        lambda: sampling_works(args.precision, args.device),
        lambda: data_works(args.rows, args.device),
    ]
    rows = []
    for maker in makers:
        for work in maker():
            if args.only in work[0]:
                row = measure(work, args.rounds, args.device)
                row.update(device=args.device, threads=args.threads, rounds=args.rounds, commit=commit.stdout.strip())
                rows.append(row)
                print(
                    f"{row['work']:<55} reference {row['reference_cpu_ms']:9.2f} ms CPU {row['reference_wall_ms']:9.2f}"
                    f"   ours {row['ours_cpu_ms']:9.2f} / {row['ours_wall_ms']:9.2f}"
                    f"   ratio {row['cpu_ratio']:6.2f} ({row['cpu_ratio_range']}) / {row['wall_ratio']:6.2f}",
                    flush=True,
                )
    if rows:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
