"""What pyproject.toml cannot say: the weights of the repository's own folder are installed beside the code."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages("src"), "promptseg.weights"],
    package_dir={"": "src", "promptseg.weights": "weights"},
)
