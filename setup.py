"""Every folder with an ``__init__.py`` is a package of fedshift, whose root this folder is."""

from setuptools import find_packages, setup

setup(
    packages=["fedshift", *(f"fedshift.{name}" for name in find_packages(exclude=["tests*"]))],
    package_dir={"fedshift": "."},
)
