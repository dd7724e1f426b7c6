"""Sparse autoencoders: `load` an exported one here; training lives in the modules beside.

`model` is the exported autoencoder, `batchtopk` an architecture, `sparse` the kernels of the CPU back
end, `engine` one optimizer step, `training` the whole run, `quality` what it is worth on other text.
"""

from ghosttrack.sae.model import Sae, load, load_files

__all__ = ["Sae", "load", "load_files"]
