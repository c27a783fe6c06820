"""Build and dependencies of ding_ebm. The tools (ruff, mypy, pytest, uv) are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
# Read from the text: importing the package here would ask for what is about to be installed.
VERSION = re.search(r'^__version__ = "([^"]+)"$', (ROOT / "ding_ebm" / "__init__.py").read_text("utf-8"), re.M).group(1)

# DI-engine 0.5.3 and its numpy<2 have no wheels for Python 3.13; the layers below ``policy`` run there without it.
WITH_HOST = 'python_version < "3.13"'
GYMNASIUM = [
    'gymnasium==1.4.0; python_version >= "3.10"',  # the project's numbers are made with it; its v4 tasks are D4RL's
    'gymnasium>=1.0,<1.2; python_version < "3.10"',  # the last releases for Python 3.9, with the same v4 tasks
]
CORE = [
    f"DI-engine==0.5.3; {WITH_HOST}",  # the host: its pipelines train and evaluate
    f"numpy<2; {WITH_HOST}",  # what the host needs
    'numpy>=2; python_version >= "3.13"',  # the first with wheels there
    "torch>=2.6",  # before, weights_only=True could be made to run code (CVE-2025-32434)
    *GYMNASIUM,  # the environment interface
    "h5py",  # D4RL's files
    "matplotlib",  # pictures of the demo and of reports
    "tqdm",  # rate and remaining time of long steps
]
EXTRAS = {
    # From 3.3 to 3.4 the dynamics are the same; from 4.0 on, robosuite 1.4.1 and FrankaKitchen-v1 fail.
    # Gymnasium's MuJoCo tasks import imageio and packaging but do not declare them.
    "mujoco": ["mujoco==3.3.7", *GYMNASIUM, "imageio", "imageio-ffmpeg", "packaging"],
    "robomimic": ["robosuite==1.4.1", "mujoco==3.3.7", "imageio", "imageio-ffmpeg"],
    "kitchen": ['gymnasium-robotics==1.4.2; python_version >= "3.10"', "mujoco==3.3.7"],
    "docs": ["sphinx", "furo", "myst-parser"],
    # Linters are bounded: a new release must not turn an unchanged tree red.
    "test": ["pytest>=7.4", "pytest-xdist", "ruff>=0.17,<0.18", 'mypy>=2.4,<2.5; python_version >= "3.10"'],
}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})

setup(
    name="ding_ebm",
    version=VERSION,
    description="Diffusion- and energy-based reinforcement learning for DI-engine",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # A tuple, so that tests, docs and benchmarks stay out of the wheel; dizoo_configs is imported by its own files.
    packages=find_packages(include=("ding_ebm", "ding_ebm.*", "dizoo_configs", "dizoo_configs.*")),
    package_data={"ding_ebm": ["py.typed"]},
    python_requires=">=3.9,<3.14",
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["ding-ebm = ding_ebm.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
