"""fedjax_lab: vectorized federated-learning simulation in JAX."""
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="fedjax_lab",
    version=re.search(r'__version__ = "(.+)"', (HERE / "fedjax_lab/__init__.py").read_text())[1],
    description="Federated learning as one accelerator call: a JAX research codebase for vectorized simulation",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["fedjax_lab*", "experiments*", "launch*"]),
    package_data={"experiments": ["*.flags", "scenarios/*.flags", "notebooks/*.ipynb"], "launch": ["README.md", "*.sbatch", "*.sh"]},
    install_requires=[
        "absl-py>=2.1", "chex>=0.1.90", "dp-accounting>=0.4.4", "etils>=1.9", "flax>=0.12", "importlib_resources>=6", "jax>=0.10", "matplotlib>=3.8", "networkx>=3.2",
        "numpy>=2.0", "optax>=0.2.6", "orbax-checkpoint>=0.12", "pillow>=10", "safetensors>=0.4", "scikit-learn>=1.4", "scipy>=1.12",
        "array_record>=0.8; sys_platform == 'linux'", "tensorflow-datasets>=4.9.9", "tqdm>=4.66",
    ],
    extras_require={
        "test": ["hypothesis>=6.100", "pytest>=8", "pytest-xdist>=3.6", "tensorboard>=2.18"],
        "gpu": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
    },
)
