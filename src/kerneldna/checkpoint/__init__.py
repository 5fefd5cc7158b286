"""Save and load networks: a folder with `config.json` (how to build it) and `model.safetensors` (each kernel once). No pickle."""

from kerneldna.checkpoint.folder import CONFIG, WEIGHTS, read_config
from kerneldna.checkpoint.loading import load
from kerneldna.checkpoint.saving import save

__all__ = ["CONFIG", "WEIGHTS", "load", "read_config", "save"]
