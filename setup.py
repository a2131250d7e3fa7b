"Package metadata comes from settings.ini: name, version, requirements and console scripts stand there."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

statuses = ["0 - ", "1 - Planning", "2 - Pre-Alpha", "3 - Alpha", "4 - Beta", "5 - Production/Stable"]
licenses = {"apache2": "Apache-2.0"}
pythons = ["3.11", "3.12", "3.13"]
readme = here / "README.md"


def numbers(version):
    return tuple(map(int, version.split(".")))


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    url=cfg["git_url"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    license=licenses[cfg["license"]],
    keywords=cfg["keywords"].split(),
    classifiers=[
        f"Development Status :: {statuses[int(cfg['status'])]}",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        *(
            f"Programming Language :: Python :: {python}"
            for python in pythons
            if numbers(python) >= numbers(cfg["min_python"])
        ),
    ],
    packages=find_packages(include=["reward_kit", "reward_kit.*"]),
    package_data={"reward_kit": ["playground_base/*", "data/*.json"]},
    include_package_data=True,
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in ("peft", "serve", "dev")},
    entry_points={"console_scripts": cfg["console_scripts"].split("\n")},
    zip_safe=False,
)
