"`python -m reward_kit`, and so `torchrun -m reward_kit` and `accelerate launch -m reward_kit`: the command."

import sys

from .tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
