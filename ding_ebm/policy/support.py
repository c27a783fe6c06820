"""Support actions: M actions of the behavior policy for every state of a data set, drawn once and kept on disk.

Letters: Ns states, M actions a state, Do observation, Da action.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm


def default_cache_dir() -> Path:
    """``$DING_EBM_CACHE``, or ``~/.cache/ding_ebm``."""
    return Path(os.environ.get("DING_EBM_CACHE", "~/.cache/ding_ebm")).expanduser()


def checksum(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """SHA-256 over named tensors (bytes, shapes, dtypes) and settings: equal sums, equal support actions."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def support_actions(
    sample: Callable[[Tensor, Tensor], Tensor],
    states: Tensor,
    num_actions: int,
    action_dim: int,
    *,
    key: str,
    cache_dir: Path | None,
    rows_per_chunk: int = 8192,
) -> Tensor:
    """Draw M actions for every state, or read them from the cache.

    Args:
        sample: Maps observations (B, 1, Do) and standard normal noise (B, M, Da) to actions (B, M, Da).
        states: (Ns, Do).
        num_actions: M.
        action_dim: Da.
        key: Checksum of all that the actions depend on; it names the file and seeds the noise, so that a lost file is
            drawn again as it was.
        cache_dir: Folder of the cache, or None to keep nothing.
        rows_per_chunk: Actions drawn in one call.

    Returns:
        (Ns, M, Da), float32, on the device of ``states``.

    Raises:
        ValueError: If the cached file is not what its name promises.
    """
    shape = (len(states), num_actions, action_dim)
    path = None if cache_dir is None else cache_dir / f"support_{key[:32]}.npy"
    if path is not None and path.exists():
        try:
            # Mapped: what a header says is not allocated before it is compared with the size of the file.
            cached = np.lib.format.open_memmap(path, mode="r")
        except (
            ValueError,
            EOFError,
            OSError,
            ArithmeticError,
            TypeError,
            SyntaxError,
            RuntimeError,
            TokenError,
        ) as error:
            raise ValueError(f"{path} cannot be read ({error}); delete the file") from error
        if cached.shape != shape or cached.dtype != np.float32:
            raise ValueError(f"{path}: expected {shape} float32, found {cached.shape} {cached.dtype}; delete the file")
        return torch.from_numpy(np.array(cached)).to(states.device)

    generator = torch.Generator(states.device).manual_seed(int(key[:15], 16))
    actions = torch.empty(shape, device=states.device)
    chunk = max(1, rows_per_chunk // num_actions)
    with tqdm(total=len(states), desc="support actions", unit="state", mininterval=5.0) as progress:
        for start in range(0, len(states), chunk):
            obs = states[start : start + chunk].unsqueeze(1)
            noise = torch.randn((len(obs), *shape[1:]), generator=generator, device=states.device)
            actions[start : start + chunk] = sample(obs, noise)
            progress.update(len(obs))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.save(file, actions.cpu().numpy(), allow_pickle=False)
        partial.replace(path)
    return actions
