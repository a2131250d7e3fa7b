"""Makes reward_kit importable in a kernel of Colab without a restart; the first cell of every tutorial runs
this there.

Colab asks for a restart when an installation replaces a package that the kernel has imported. So those
packages are held at their versions, and
torch with them, which is large and fits the machine. The files that lie beside the tutorials come with the
source. With DRIVE = True before it, results
go to Google Drive, where a training that was cut off is continued.
"""

import importlib.metadata as metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

source = Path("reward_kit-source").resolve()
if importlib.util.find_spec("reward_kit") is None:
    subprocess.run(
        ["git", "clone", "-q", "--depth", "1", "https://github.com/reward-kit/reward_kit", str(source)],
        check=True,
    )
    owners = metadata.packages_distributions()
    loaded = {name for module in list(sys.modules) for name in owners.get(module.split(".")[0], [])}
    keep = sorted(
        loaded | {name for name in ("torch", "torchvision", "torchaudio") if importlib.util.find_spec(name)}
    )
    Path("loaded.txt").write_text("".join(f"{name}=={metadata.version(name)}\n" for name in keep))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "-c", "loaded.txt", f"{source}[peft]"], check=True
    )
if source.exists():
    os.chdir(source / "nbs" / "tutorials")
if globals().get("DRIVE"):
    from google.colab import drive

    drive.mount("/content/drive")
    os.environ["REWARD_KIT_OUTPUT"] = "/content/drive/MyDrive/reward_kit"
