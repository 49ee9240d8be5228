"""Every folder with an ``__init__.py`` is a package of fedshift, whose root this folder is."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class Modules(build_py):
    """The modules of each package; this one, which lies in the root, is none."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if module[:2] != ("fedshift", "setup")]


setup(
    packages=["fedshift", *(f"fedshift.{name}" for name in find_packages(exclude=["tests*"]))],
    package_dir={"fedshift": "."},
    cmdclass={"build_py": Modules},
)
