"""Compile the native engine into the wheel; everything else is said in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from resnet_cifar.native.build import Object, Unavailable, make
from resnet_cifar.native.sets import FAST, compilable


class BuildEngine(build_py):
    """Ships what a compiler makes. Without one, and in an editable installation, compiling waits for the first use."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        package = Path(self.build_lib) / "resnet_cifar"
        folder = package / "native/lib"
        for path in package.rglob("*"):  # what an earlier build left may be gone by now, and nodes compare digests
            if path.is_file() and path.parent != folder:
                path.unlink()
        super().run()
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {each.name: each for each in map(Object.of, compilable(FAST))}
        for path in folder.iterdir():
            if path.name not in wanted:
                path.unlink()
        for name, each in wanted.items():
            try:
                if not (folder / name).exists():
                    make(each, folder, self.announce)
            except Unavailable as error:
                self.warn(f"this wheel ships no native engine for {each.set.name}: {error}")


class PlatformWheel(bdist_wheel):
    """A wheel for this kind of machine and any Python."""

    def finalize_options(self) -> None:
        self.distribution.has_ext_modules = lambda: True
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"build_py": BuildEngine, "bdist_wheel": PlatformWheel})
