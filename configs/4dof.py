"""EscherNet 4DoF at full size; the camera encoding of the published 4DoF weights.

    python -m escherjax.train --config 4dof --workdir runs/4dof \\
        --config.data.source=SHARDS --config.init.pipeline=FOLDER

FOLDER holds EscherNet's weights. To start as the paper did, from Stable Diffusion 1.5:

        --config.init.unet=SD15 --config.init.vae=SD15 --config.init.encoder=CONVNEXTV2

Paper: 100k steps of 672 scenes, a week on 6 A100. `--config 4dof:smoke` runs the same
program on a CPU in a minute.
"""

from ml_collections import ConfigDict

from escherjax.config import config_from_file


def get_config(arg: str = "") -> ConfigDict:
    c = config_from_file("base")(arg)
    c.cape = "4dof"
    return c
